"""OpenAI's error object, and which failures a client should try again.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "messages[0].content[1]", "code": "…"}}

OpenAI's clients repeat a request after 408, 409, 429 and 500 up, unless `x-should-retry: false` says that it would fail
again; they wait as long as `Retry-After` says, up to 120 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

MAX_RETRY_AFTER = 120

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    431: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class APIError(Exception):
    """A request that ends in an error.

    Args:
        param: Which field of the request is wrong, as `messages[0].content[1].image_url`.
        retry_after: Seconds after which the same request may succeed; None: it would fail again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(min(self.retry_after, MAX_RETRY_AFTER))
        elif self.status in (408, 409, 429) or self.status >= 500:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="longview", charset="UTF-8"'  # a browser asks for the key
        return headers


def invalid(message: str, param: str | None = None, code: str | None = None) -> APIError:
    """The request cannot be answered as it is."""
    return APIError(400, message, param, code)


SIZES = ("max_pixels", "max_pictures", "max_frames", "max_image_bytes", "max_video_bytes", "max_decoded_bytes")
"""Limits of media whose excess is answered with 413; what else is wrong with a medium, with 400."""
FIELDS = {
    "json_schema": "response_format",
    "regex": "structured_outputs",
    **dict.fromkeys(("start", "select", "max_partition"), "longview"),
}
"""Fields of a request in which a setting stands under another name."""


def of_job(error: Mapping[str, Any], params: Sequence[str]) -> APIError:
    """The error that a model's process has sent.

    Args:
        params: Where in the request each medium stands.
    """
    kind, text = error["kind"], error["text"]
    if kind == "media":
        param = None if error["medium"] is None else params[error["medium"]]
        status = 413 if error["limit"] in SIZES else 400
        return APIError(status, text, param, "media_over_limit" if error["limit"] else "invalid_media")
    if kind == "request":
        name = text.partition(" ")[0]
        param = "messages" if name == "the" else FIELDS.get(name)
        return invalid(text, param, "context_length_exceeded" if "tokens long" in text else "invalid_request")
    if kind == "left":
        text = "the process of this model has left the server; ask once more, or another model"
        return APIError(503, text, code="model_down", retry_after=5)
    if kind == "process":
        text = "the process of this model ended, and is being started again; ask once more"
        return APIError(503, text, code="model_down", retry_after=5)
    return internal() if kind == "internal" else APIError(500, text, code="model_error")


def internal() -> APIError:
    """A bug; what happened is in the server's log, and nobody else's business."""
    return APIError(500, "the server failed on this request; its log says why", code="internal_error")


def of_validation(error: ValidationError, body: Any) -> APIError:
    """The first thing that is wrong with a request's body."""
    first = min(error.errors(include_url=False), key=_depth)
    param = path_of(first["loc"], body)
    value = "" if first["type"] == "missing" else f", not {first['input']!r:.60}"
    if first["type"] == "extra_forbidden":
        return invalid(f"{param} is not known here; leave it out, or check its spelling", param, "unknown_parameter")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return invalid(message, param, "invalid_value")
    return invalid(f"{param or 'the body'}: {message[:1].lower()}{message[1:]}{value}", param, "invalid_value")


def _depth(error: Mapping[str, Any]) -> int:
    """Of the errors of a union's members, the one that got farthest is the one to show."""
    return -len(error["loc"])


def path_of(loc: Sequence[int | str], body: Any) -> str | None:
    """Pydantic's place of an error → `messages[0].content[1].text`, without the names of a union's members."""
    path, here = "", body
    for number, step in enumerate(loc):
        last = number == len(loc) - 1
        if isinstance(step, int) and isinstance(here, list) and step < len(here):
            path, here = f"{path}[{step}]", here[step]
        elif isinstance(step, str) and isinstance(here, dict) and (step in here or last):
            path, here = f"{path}.{step}" if path else step, here.get(step)
    return path or None
