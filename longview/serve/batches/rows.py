"""The rows of a batch: OpenAI's lines, and a simple form, as requests in OpenAI's form.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": …, "messages": […]}}
    {"id": "a", "question": "What is this?", "image": "a.jpg", "max_tokens": 20}

The simple form is what training reads (`longview.train.data.rows`), less the answer, and what `longview ask` reads
(`files`); beside it stand fields of a request.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from longview.errors import LongviewError, MediaError, RecipeError, RequestError
from longview.media import sniff
from longview.messages import Message, Part, ask
from longview.requests import Limits, MediaOptions, SamplingParams
from longview.serve.errors import invalid
from longview.serve.schema import ChatRequest
from longview.settings import settings_of
from longview.train.data.rows import NAMES, TAG, UNLEARNABLE, read_question
from longview.train.data.sources import RowSource, open_file, parse

CHAT = "/v1/chat/completions"
URLS = (CHAT, "/v1/responses", "/v1/decisions")
OPENAI_KEYS = ("custom_id", "method", "url", "body")
FORMS = ("response_format", "structured_outputs")
"""Fields of a request that say what an answer has to be; one of them is enough."""
MAX_ID = 512


@dataclass(frozen=True)
class Row:
    """A request.

    Attributes:
        number: From 0.
        own_files: Its file:// addresses are files of whoever runs the batch, and not of a server.
    """

    number: int
    id: str
    url: str
    body: Mapping[str, Any]
    own_files: bool = False


def body_of_settings(params: SamplingParams, media: MediaOptions, ocr: bool = False) -> dict[str, Any]:
    """Settings of the command line as fields of a request; those that are as they are without saying are left out."""
    body = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(params).items()
        if name not in ("logprobs", "regex", "json_schema") and value != settings_of(SamplingParams)[name].default
    }
    if params.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.logprobs}
    if params.regex is not None:
        body["structured_outputs"] = {"regex": params.regex}
    if params.json_schema is not None:
        schema = {"name": "answer", "schema": json.loads(params.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    extension = {name: value for name, value in asdict(media).items() if value is not None}
    if ocr:
        extension["ocr"] = True
    return {**body, **({"longview": extension} if extension else {})}


class Rows:
    """The rows of a file, each read when it is wanted.

    Args:
        folder: Where relative paths of the simple form begin; None: the file's own.
        ignore: Columns of the simple form that are left out.
        settings: Fields of a request for rows that do not say otherwise; see `body_of_settings`.
        model: For all rows; None: the one that a row names.
        default_model: For rows that name none.

    Raises:
        RecipeError: the file cannot be read.
    """

    default_model: str | None = None

    def __init__(
        self,
        path: Path,
        folder: Path | None = None,
        ignore: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        model: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        source: RowSource
        source, self.digest = open_file(path)
        self._source, self._path, self._folder = source, path, path.parent if folder is None else folder
        self._ignore, self._settings, self._limits = tuple(ignore), settings or {}, limits or Limits()
        self.model = model
        self.ids: list[str] = []
        """Of every row."""
        self.models: set[str] = set()
        """That rows name."""
        self._again: dict[int, int] = {}
        """Rows whose id an earlier one has: that one."""
        self._scan()

    def __len__(self) -> int:
        return len(self._source)

    def place(self, number: int) -> str:
        """A row, as a user finds it."""
        return f"{self._path}, {self._source.unit} {self._source.number(number)}"

    def _scan(self) -> None:
        """Look through the ids, which have to differ, and the models."""
        seen: dict[str, int] = {}
        for number in range(len(self)):
            row: Any = None
            with contextlib.suppress(RecipeError):  # told when it is read again
                row = parse(self._source.row(number))
            id = _id_of(row) or f"row-{self._source.number(number)}"
            self.ids.append(id)
            if seen.setdefault(id, number) != number:
                self._again[number] = seen[id]
            body = row.get("body", row) if isinstance(row, Mapping) else None
            if isinstance(body, Mapping) and isinstance(body.get("model"), str):
                self.models.add(body["model"])

    def row(self, number: int) -> Row:
        """
        Raises:
            APIError: it is no request; says why.
        """
        if number in self._again:
            first = self._source.number(self._again[number])
            message = f"{self._source.unit} {first} has the same id; ids have to differ"
            raise invalid(message, "custom_id", "duplicate_custom_id")
        try:
            row = parse(self._source.row(number))
            if isinstance(row, str):
                row = {"question": row}
            if not isinstance(row, Mapping):
                raise invalid(f"a row is an object, not {row!r:.60}", None, "invalid_row")
            if "body" in row:
                return self._of_openai(number, row)
            return self._of_simple(number, row)
        except LongviewError as error:
            raise invalid(
                str(error), None, "invalid_media" if isinstance(error, MediaError) else "invalid_row"
            ) from None

    def _of_openai(self, number: int, row: Mapping[str, Any]) -> Row:
        strange = [key for key in row if key not in OPENAI_KEYS]
        if strange:
            raise invalid(f"{strange[0]} is not known beside a body; leave it out", strange[0], "unknown_parameter")
        if _id_of(row) is None:
            raise invalid("custom_id is missing; give each row one of its own", "custom_id", "missing_custom_id")
        if row.get("method", "POST") != "POST":
            raise invalid(f"method is {row['method']!r:.40}; a batch posts", "method", "invalid_method")
        url, body = row.get("url", CHAT), row["body"]
        if url not in URLS:
            raise invalid(f"url is {url!r:.80}; there are {', '.join(URLS)}", "url", "invalid_url")
        if not isinstance(body, Mapping):
            raise invalid(f"body is an object, not {body!r:.60}", "body", "invalid_row")
        if body.get("stream"):
            raise invalid("a batch does not stream; leave it out", "body.stream", "unsupported_parameter")
        if self._settings and url != CHAT:
            names = ", ".join(self._settings)
            raise invalid(f"options of the command line ({names}) are of {CHAT}; write them into the row", "url")
        return Row(number, self.ids[number], url, self._completed(body))

    def _of_simple(self, number: int, row: Mapping[str, Any]) -> Row:
        row = {name: value for name, value in row.items() if name not in (*self._ignore, "custom_id", "id")}
        files = row.pop("files", None) or []
        own = {name: row.pop(name) for name in [*row] if name in ChatRequest.model_fields and name != "messages"}
        unlearned = [name for name in row if name in UNLEARNABLE and row[name]]
        if unlearned:
            raise invalid(f"column {unlearned[0]!r} holds what no model here can read; --ignore it", unlearned[0])
        messages = [*read_question(row, self._folder)]
        plain = not any(NAMES.get(name) in ("messages", "history", "input") for name in row)
        if not isinstance(files, list) or not all(isinstance(file, str) and file for file in files):
            raise invalid(f"files are a list of names, not {files!r:.60}", "files", "invalid_row")
        more = [self._sniffed(file) for file in files]
        last = messages[-1]
        if plain and not any(TAG.search(value) for value in row.values() if isinstance(value, str)):
            messages[-1] = ask(last.text, *last.media, *more)  # as `longview ask` does
        elif more:
            messages[-1] = Message(last.role, (*more, *last.parts))
        body = self._completed({**own, "messages": [_message(message) for message in messages]})
        return Row(number, self.ids[number], CHAT, body, own_files=True)

    def _sniffed(self, file: str) -> Part:
        is_address = file.startswith(("http://", "https://", "data:"))
        source = file if is_address else str(self._folder / Path(file).expanduser())
        return Part(sniff(source, self._limits), source=source)

    def _completed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body with the settings that it does not say itself."""
        settings = dict(self._settings)
        if "max_completion_tokens" in body:
            settings.pop("max_tokens", None)
        if any(body.get(form) for form in FORMS):
            settings = {name: value for name, value in settings.items() if name not in FORMS}
        if isinstance(body.get("longview"), Mapping) and "longview" in settings:
            settings["longview"] = {**settings["longview"], **body["longview"]}
            body = {name: value for name, value in body.items() if name != "longview"}
        default = {} if self.default_model is None else {"model": self.default_model}
        model = {} if self.model is None else {"model": self.model}
        return {**default, **settings, **body, **model}


def _id_of(row: Any) -> str | None:
    """The id that a row gives itself."""
    if not isinstance(row, Mapping):
        return None
    names = ("custom_id",) if "body" in row else ("custom_id", "id")
    id = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not 0 < len(id) <= MAX_ID or any("\ud800" <= letter <= "\udfff" for letter in id):
        return None
    return id


def _message(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form."""
    if not message.media:
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: Part) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    url: Any = [_url(frame) for frame in part.source] if isinstance(part.source, list) else _url(part.source)
    detail = {} if part.detail == "auto" else {"detail": part.detail}
    return {"type": f"{part.type}_url", f"{part.type}_url": {"url": url, **detail}}


def _url(source: Any) -> str:
    """A path as a file:// address, bytes as a data URI; addresses as they are."""
    if isinstance(source, bytes):
        return f"data:application/octet-stream;base64,{base64.b64encode(source).decode()}"
    if not isinstance(source, (str, Path)):
        raise RequestError(f"a medium is a path, an address or bytes, not {type(source).__name__}")
    text = str(source)
    if text[:5].lower() == "data:" or text.partition("://")[0].lower() in ("http", "https", "file"):
        return text
    return f"file://{quote(str(Path(text).absolute()))}"
