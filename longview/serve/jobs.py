"""A request in OpenAI's names → a `Job` for a model's process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from longview.errors import LongviewError
from longview.media.fetch import local_path
from longview.requests import Limits, SamplingParams
from longview.serve.errors import APIError, invalid
from longview.serve.process import Job
from longview.serve.schema import ChatMessage, ChatRequest, ContentPart, TextPart
from longview.serve.settings import ServerOptions
from longview.settings import settings_of

BLOB_LENGTH = 4096
"""A source that is longer travels as a blob."""


class JobBuilder:
    """Checks a request against the server's limits, and makes its job."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options

    def chat(self, request: ChatRequest) -> Job:
        """
        Raises:
            APIError: the request is over a limit, or names what may not be opened.
        """
        job = Job([], {})
        job.messages = self._messages(request, job)
        job.settings = self._settings(request)
        return job

    def _messages(self, request: ChatRequest, job: Job) -> list[dict[str, Any]]:
        if len(request.messages) > self._options.max_messages:
            raise invalid(
                f"a request holds {self._options.max_messages:,} messages at most, not {len(request.messages):,}",
                "messages",
            )
        left = int(self._options.max_text_bytes)
        messages = []
        for number, message in enumerate(request.messages):
            parts = self._parts(message, f"messages[{number}].content", job)
            left -= sum(len(part["text"].encode(errors="replace")) for part in parts if part["type"] == "text")
            if left < 0:
                limit = f"{self._options.max_text_bytes:,}"
                raise APIError(413, f"the texts of a request hold {limit} bytes at most", "messages", "text_too_long")
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "parts": parts})
        if messages[-1]["role"] != "user":
            raise invalid("the last message must be the user's", f"messages[{len(messages) - 1}].role")
        return messages

    def _parts(self, message: ChatMessage, path: str, job: Job) -> list[dict[str, Any]]:
        if isinstance(message.content, str):
            return [{"type": "text", "text": message.content}]
        return [self._part(part, f"{path}[{number}]", job) for number, part in enumerate(message.content)]

    def _part(self, part: ContentPart, path: str, job: Job) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text}
        given = getattr(part, part.type)
        url = given if isinstance(given, str) else given.url
        param = f"{path}.{part.type}" + ("" if isinstance(given, str) else ".url")
        return {"type": part.type.removesuffix("_url"), "source": self._source(url, param, job)}

    def _source(self, url: str, param: str, job: Job) -> Any:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "file":
            return self._file(url, param)
        if scheme not in ("http", "https", "data"):
            raise invalid("a medium is an http(s) URL or a data URI", param, "invalid_url")
        if len(url) < BLOB_LENGTH:
            return url
        job.blobs = [*job.blobs, url.encode(errors="replace")]
        return {"blob": len(job.blobs) - 1}

    def _file(self, url: str, param: str) -> str:
        """The path of a file:// address below the folder that is open."""
        if self._options.media_root is None:
            raise invalid("file:// addresses are not opened by this server (--media-root)", param, "invalid_url")
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise invalid("a file:// address is file:///folder/file", param, "invalid_url")
        try:
            return str(local_path(unquote(parts.path), Limits(file_roots=(Path(self._options.media_root),))))
        except LongviewError as error:
            raise invalid(str(error), param, "invalid_url") from None

    def _settings(self, request: ChatRequest) -> Mapping[str, Any]:
        names = settings_of(SamplingParams)
        params = {name: value for name in names if (value := getattr(request, name, None)) is not None}
        if request.max_completion_tokens is not None:
            if "max_tokens" in params:
                raise invalid("max_tokens is the older name of max_completion_tokens; give one of them", "max_tokens")
            params["max_tokens"] = request.max_completion_tokens
        n = 1 if request.n is None else request.n
        if n > self._options.max_answers:
            raise invalid(f"n is {n}; this server gives {self._options.max_answers} answers at most", "n")
        return {"params": params, "n": n}
