"""A request in OpenAI's names → a `Job` for a model's process: limits are checked, media found, settings collected."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from longview.errors import LongviewError, RequestError
from longview.media.fetch import local_path
from longview.media.formats import HEAD, container_of, image_format_of
from longview.requests import Limits, MediaOptions, Plugins, SamplingParams
from longview.serve import schema
from longview.serve.backend import Job
from longview.serve.errors import APIError, invalid
from longview.serve.files import FileStore
from longview.serve.settings import ServerOptions
from longview.settings import settings_of

BLOB_LENGTH = 4096
"""A source that is longer travels as a blob."""


class JobBuilder:
    """Makes the jobs of a server, under its limits."""

    def __init__(self, options: ServerOptions, limits: Limits, files: FileStore) -> None:
        self._options, self._limits, self._files = options, limits, files

    def chat(self, request: schema.ChatRequest, tenant: str, root: str = "messages") -> Job:
        """
        Args:
            tenant: Whose files it may name.
            root: The field that the messages come from.

        Raises:
            APIError: the request is over a limit, contradicts itself, or names what may not be opened.
        """
        media = self._media(request)
        messages = _Messages(self._options, self._limits, self._files, media, tenant)
        job = messages.job(request.messages, root)
        job.settings = self._settings(request, media)
        return job

    def score(
        self,
        messages: list[schema.ChatMessage],
        questions: Sequence[tuple[schema.ChatMessage, list[str]]],
        tenant: str,
        own: schema.OwnSettings | None = None,
    ) -> Job:
        """
        Args:
            questions: Each as a message, and its answers.

        Raises:
            APIError: as `chat`.
        """
        media = {} if own is None else media_options(options_of(own), self._limits, "longview")
        built = _Messages(self._options, self._limits, self._files, media, tenant)
        job = built.job(messages, "input")
        job.do, job.settings = "score", {"media": media, **crops_of(own)}
        job.questions = [
            {"parts": built.parts(question, f"questions[{number}].instructions"), "answers": answers}
            for number, (question, answers) in enumerate(questions)
        ]
        return job

    def _settings(self, request: schema.ChatRequest, media: Mapping[str, Any]) -> Mapping[str, Any]:
        n = 1 if request.n is None else request.n
        if n > self._options.max_answers:
            raise invalid(f"n is {n}; this server gives {self._options.max_answers} answers at most", "n")
        plugins = {name: bool(getattr(request.longview, name, None)) for name in settings_of(Plugins)}
        evidence = request.longview is not None and bool(request.longview.return_evidence)
        own = {"evidence": evidence, **plugins, **crops_of(request.longview)}
        return {"params": sampling_of(request), "media": media, "n": n, **own}

    def _media(self, request: schema.ChatRequest) -> dict[str, Any]:
        """The media options of all videos, from all the places in which clients put them.

        Raises:
            APIError: two of them differ, or the options contradict each other.
        """
        found: dict[str, Any] = {}
        extension = request.longview
        if extension is not None:
            found = options_of(extension)
        video = None if request.media_io_kwargs is None else request.media_io_kwargs.video
        for param, given in (("media_io_kwargs.video", video), ("mm_processor_kwargs", request.mm_processor_kwargs)):
            if given is None:
                continue
            frames = self._limits.max_frames if given.num_frames == -1 else given.num_frames
            for name, value in (("frames", frames), ("fps", given.fps)):
                if value is not None and found.setdefault(name, value) != value:
                    raise invalid(f"{name} is given twice, as {found[name]} and {value}; give it once", param)
        return media_options(found, self._limits, "longview")


def options_of(given: schema.Media) -> dict[str, Any]:
    """The fields of `MediaOptions` that are given."""
    return {name: value for name in settings_of(MediaOptions) if (value := getattr(given, name)) is not None}


def crops_of(given: schema.OwnSettings | None) -> dict[str, int]:
    """How many crops a picture is cut into, where that is given."""
    return {} if given is None or given.max_partition is None else {"max_partition": given.max_partition}


def media_options(given: dict[str, Any], limits: Limits, param: str) -> dict[str, Any]:
    """The same options.

    Raises:
        APIError: they contradict each other, or exceed a limit.
    """
    try:
        MediaOptions(**given)
    except RequestError as error:
        raise invalid(str(error), param, "invalid_value") from None
    if given.get("frames", 0) > limits.max_frames:
        limit = f"{limits.max_frames:,.0f}"
        raise invalid(f"frames is {given['frames']:,}; this server shows {limit} frames of a video at most", param)
    return given


def sampling_of(request: schema.ChatRequest) -> dict[str, Any]:
    """The fields of `SamplingParams` that a request gives.

    Raises:
        APIError: it contradicts itself.
    """
    given = {name: getattr(request, name, None) for name in settings_of(SamplingParams) if name not in schema.RENAMED}
    params = {name: value for name, value in given.items() if value is not None}
    if len(params.get("stop", ())) > schema.MAX_STOPS:
        raise invalid(f"stop holds {schema.MAX_STOPS} texts at most", "stop")
    if request.max_completion_tokens is not None:
        if params.get("max_tokens", request.max_completion_tokens) != request.max_completion_tokens:
            raise invalid("max_tokens is the older name of max_completion_tokens; give one of them", "max_tokens")
        params["max_tokens"] = request.max_completion_tokens
    if request.logprobs:
        params["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    params |= form_of(request)
    try:
        SamplingParams(**params)
    except RequestError as error:
        name = str(error).partition(" ")[0]
        raise invalid(str(error), name if name in params else None, "invalid_value") from None
    return params


def form_of(request: schema.ChatRequest) -> dict[str, str]:
    """The grammar that the answer has to follow: its json_schema or regex, or none."""
    found: dict[str, tuple[str, str]] = {}
    asked = request.response_format
    if asked is not None and asked.type == "json_object":
        found["response_format"] = "json_schema", '{"type": "object"}'
    elif asked is not None and asked.type == "json_schema":
        if asked.json_schema is None or asked.json_schema.schema_ is None:
            raise invalid("a response_format of type json_schema needs a schema", "response_format.json_schema.schema")
        found["response_format"] = "json_schema", json.dumps(asked.json_schema.schema_)
    elif asked is not None and asked.json_schema is not None:
        raise invalid("a json_schema needs type: json_schema", "response_format.type")
    wanted = request.structured_outputs
    if wanted is not None:
        json_schema = wanted.json_ if isinstance(wanted.json_, str | None) else json.dumps(wanted.json_)
        choice = None if wanted.choice is None else "|".join(map(re.escape, wanted.choice))
        forms = {"regex": wanted.regex or choice, "json_schema": json_schema}
        found |= {f"structured_outputs.{name}": (name, form) for name, form in forms.items() if form is not None}
    if len(found) > 1:
        raise invalid("an answer has one form; give one of response_format, regex, json and choice", [*found][1])
    return dict(found.values())


class _Messages:
    """The messages of one job, and its media."""

    def __init__(
        self, options: ServerOptions, limits: Limits, files: FileStore, media: Mapping[str, Any], tenant: str
    ) -> None:
        self._options, self._limits, self._files, self._media, self._tenant = options, limits, files, media, tenant
        self._blobs: list[bytes] = []
        self._params: list[str] = []

    def job(self, given: list[schema.ChatMessage], root: str) -> Job:
        if len(given) > self._options.max_messages:
            most = f"{self._options.max_messages:,}"
            raise invalid(f"a request holds {most} messages at most, not {len(given):,}", root)
        left = int(self._options.max_text_bytes)
        messages = []
        for number, message in enumerate(given):
            parts = self.parts(message, f"{root}[{number}].content")
            left -= sum(len(part["text"].encode(errors="replace")) for part in parts if part["type"] == "text")
            if left < 0:
                limit = f"{self._options.max_text_bytes:,}"
                raise APIError(413, f"the texts of a request hold {limit} bytes at most", root, "text_too_long")
            messages.append({"role": "system" if message.role == "developer" else message.role, "parts": parts})
        if messages[-1]["role"] != "user":
            raise invalid("the last message must be the user's", f"{root}[{len(messages) - 1}].role")
        return Job(messages, {}, self._blobs, self._params)

    def parts(self, message: schema.ChatMessage, path: str) -> list[dict[str, Any]]:
        if isinstance(message.content, str):
            return [{"type": "text", "text": message.content}]
        return [self._part(part, f"{path}[{number}]") for number, part in enumerate(message.content)]

    def _part(self, part: Any, path: str) -> dict[str, Any]:
        if isinstance(part, schema.TextPart):
            return {"type": "text", "text": part.text}
        param = f"{path}.{part.type}"
        given = getattr(part, part.type)
        self._params.append(param)
        if isinstance(part, schema.FrameListPart):
            return self._video(given, part, param)
        if isinstance(part, schema.FilePart):
            return self._with_own_media(self._file_part(given, param), part, path)
        if isinstance(part, schema.ImagePart):
            url, detail = (given, None) if isinstance(given, str) else (given.url, given.detail)
            return {"type": "image", "source": self._source(url, param), "detail": detail or "auto"}
        if isinstance(part, schema.InputVideoPart) and not isinstance(given, str):
            found = self._input_video(given, param)
        elif isinstance(given, schema.VideoURL):
            found = self._video(given.url, given, param)
        else:
            found = self._video(given, None, param)
        return self._with_own_media(found, part, path)

    def _with_own_media(self, found: dict[str, Any], part: schema.OwnMedia, path: str) -> dict[str, Any]:
        """A video with the options that its part holds; numbers of frames take the place of all others."""
        own = {} if part.longview is None else options_of(part.longview)
        if not own:
            return found
        if found["type"] != "video":
            raise invalid("a picture has no frames to choose; leave longview out of its part", f"{path}.longview")
        before = {} if "indices" in own else found.get("media") or self._media
        return {**found, "media": media_options({**before, **own}, self._limits, f"{path}.longview")}

    def _video(self, source: str | list[str], options: schema.FrameOptions | None, param: str) -> dict[str, Any]:
        if isinstance(source, list):
            if len(source) > self._limits.max_frames:
                most = f"{self._limits.max_frames:,.0f}"
                raise APIError(413, f"a video is {most} pictures at most, not {len(source):,}", param, "max_frames")
            sources: Any = [self._source(each, f"{param}[{number}]") for number, each in enumerate(source)]
        else:
            sources = self._source(source, param)
        return {"type": "video", "source": sources, "media": self._own_media(options, param)}

    def _own_media(self, options: schema.FrameOptions | None, param: str) -> dict[str, Any] | None:
        """The options of a video that has some of its own, over those of the request."""
        if options is None or (options.fps is None and options.max_frames is None):
            return None
        own = {"fps": options.fps, "frames": options.max_frames}
        return media_options({**self._media, **{k: v for k, v in own.items() if v is not None}}, self._limits, param)

    def _input_video(self, given: schema.InputVideo, param: str) -> dict[str, Any]:
        sources = [each for each in (given.url, given.data, given.file_id) if each is not None]
        if len(sources) != 1:
            raise invalid("an input_video needs one of url, data and file_id", param)
        if given.file_id is not None:
            return {**self._stored(given.file_id, f"{param}.file_id"), "media": self._own_media(given, param)}
        url = given.url or f"data:video/{given.format or 'mp4'};base64,{given.data}"
        return self._video(url, given, param)

    def _file_part(self, given: schema.FileSource, param: str) -> dict[str, Any]:
        if (given.file_id is None) == (given.file_data is None):
            raise invalid("a file needs one of file_id and file_data", param)
        if given.file_id is not None:
            return self._stored(given.file_id, f"{param}.file_id")
        data = given.file_data or ""
        url = data if data[:5].lower() == "data:" else f"data:application/octet-stream;base64,{data}"
        kind = _kind_of(url)
        if kind is None:
            raise invalid("file_data is no picture and no video of a known format", f"{param}.file_data")
        return {"type": kind, "source": self._source(url, f"{param}.file_data"), "name": given.filename or ""}

    def _stored(self, id: str, param: str) -> dict[str, Any]:
        try:
            stored = self._files.find(id, self._tenant)
        except APIError as error:
            error.param = param
            raise
        return {"type": stored.kind, "source": str(self._files.path(stored)), "name": stored.filename}

    def _source(self, url: str, param: str) -> Any:
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "file":
            return self._local(url, param)
        if scheme not in ("http", "https", "data"):
            raise invalid("a medium is an http(s) URL or a data URI", param, "invalid_url")
        if len(url) < BLOB_LENGTH:
            return url
        self._blobs.append(url.encode(errors="replace"))
        return {"blob": len(self._blobs) - 1}

    def _local(self, url: str, param: str) -> str:
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


def _kind_of(uri: str) -> str | None:
    """Whether a data URI in base64 begins as a picture or a video."""
    header, _, body = uri[: 4 * HEAD + 200].partition(",")
    if not header.lower().endswith(";base64"):
        return None
    encoded = body[: 4 * HEAD // 3 // 4 * 4]
    try:
        head = base64.b64decode(encoded, validate=True)
    except ValueError:
        return None
    return "video" if container_of(head) else "image" if image_format_of(head) else None
