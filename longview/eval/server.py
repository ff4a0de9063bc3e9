"""Questions to a model behind an OpenAI-compatible server: ours, or another's. The one address of the `openai` client.

Media go along as data URIs. How frames are chosen is said in longview's own words to a longview server, so that it
answers as the engine does, and in vLLM's (`media_io_kwargs`) to others.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import LongviewError, MissingExtraError, RequestError
from longview.eval.ask import GoneError, LazyMessages, Reply, crops_of, likeliest, ordered, split_text
from longview.eval.items import Item, Protocol
from longview.media.formats import container_of, image_format_of
from longview.messages import Part

OURS = "longview"
"""What our servers call the owner of their models."""
PARTITIONED = "ovis2"
"""The family whose pictures are cut into as many crops as a request says."""
THREADS = 8
TIMEOUT = 600.0
RETRIES = 4
KEY = "none"
SAID = 300
"""Letters of a server's message that are shown."""


class Client:
    """A server's model. Errors of one request are its own; a server that does not answer ends the run."""

    def __init__(
        self,
        address: str,
        model: str | None = None,
        key: str | None = None,
        retries: int = RETRIES,
        what: str = "--server",
    ) -> None:
        """
        Args:
            model: Default: the only one that the server has.
            retries: Of a request that meets no server, or one that is busy.
            what: The option that named it, for errors.

        Raises:
            RequestError: the server does not answer, or has no such model.
            MissingExtraError: the client is not installed.
        """
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError(what, "openai") from error
        self._openai = openai
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise RequestError(f"{what} is {address!r:.80}; give an address, as http://127.0.0.1:8000/v1")
        base = self.address if self.address.endswith("/v1") else f"{self.address}/v1"
        self.client = openai.OpenAI(base_url=base, api_key=key or KEY, max_retries=retries, timeout=TIMEOUT)
        cards = self._cards()
        names = list(cards)
        if model is None and len(names) != 1:
            raise RequestError(
                f"{self.address} has {len(names)} models ({', '.join(names)[:200]}); name one by --model"
            )
        self.model = model or names[0]
        if names and self.model not in names:
            raise RequestError(f"{self.address} has no model {self.model!r:.60}; it has {', '.join(names)[:200]}")
        card = cards.get(self.model, {})
        self.ours = card.get("owned_by") == OURS
        self.family: str | None = card.get("family") if self.ours else None

    def _cards(self) -> dict[str, Mapping[str, Any]]:
        with self._calls(gone=True):
            return {card.id: card.model_dump() for card in self.client.with_options(max_retries=0).models.list()}

    def complete(self, messages: Sequence[Mapping[str, Any]], max_tokens: int, **more: Any) -> Any:
        """A chat completion, greedy.

        Raises:
            GoneError: the server does not answer, or refuses everything.
            RequestError: it refuses this request.
        """
        with self._calls():
            return self.client.chat.completions.create(
                model=self.model,
                messages=list(messages),  # type: ignore[arg-type]
                max_tokens=max_tokens,
                temperature=0,
                **more,
            )

    def decide(
        self, messages: Sequence[Mapping[str, Any]], text: str, choices: Sequence[str], **more: Any
    ) -> Mapping[str, Any]:
        """A longview server's `/v1/decisions`: the probability of each answer to a text behind messages."""
        question = {"type": "choice", "instructions": text, "choices": [{"value": choice} for choice in choices]}
        with self._calls():
            body = {"model": self.model, "input": list(messages), "questions": [question], **more}
            found: Any = self.client.post("/decisions", cast_to=object, body=body)
            return found

    @contextlib.contextmanager
    def _calls(self, gone: bool = False) -> Iterator[None]:
        """Errors of the client as ours; `gone`, where all of them end the run."""
        openai = self._openai
        try:
            yield
        except openai.APIConnectionError as error:
            raise GoneError(
                f"{self.address} does not answer ({_short(error.__cause__ or error)}); start it, or check the address"
            ) from None
        except openai.APIStatusError as error:
            said = _short(error.body.get("message") if isinstance(error.body, Mapping) else error)
            fatal = gone or error.status_code in (401, 403, 404, 429) or error.status_code >= 500
            raise (GoneError if fatal else RequestError)(
                f"{self.address} says {error.status_code}: {said}"
                + ("; mend that and give the same command again" if fatal else "")
            ) from None
        except openai.OpenAIError as error:
            raise GoneError(f"{self.address} gives no OpenAI reply ({_short(error)}); check the address") from None


class ServerAsker:
    """A server's model as an `Asker`."""

    def __init__(self, client: Client, threads: int = THREADS) -> None:
        self._client, self._threads = client, threads
        self.name = client.model
        self.family = client.family
        self.where = client.address

    @property
    def partitions(self) -> bool:
        return self._client.family == PARTITIONED

    def answers(self, items: Sequence[Item], protocol: Protocol) -> Iterator[Reply | LongviewError]:
        def answer(item: Item) -> Reply:
            messages, extra = self._request(item, protocol)
            reply = self._client.complete(messages, protocol.max_tokens, extra_body=extra)
            receipt = (reply.model_extra or {}).get(OURS) or {}
            choice, usage = reply.choices[0], reply.usage
            return Reply(
                choice.message.content or "",
                [_frame(frame) for frame in receipt.get("frames", ())],
                choice.finish_reason,
                usage.prompt_tokens if usage else None,
                warnings=tuple(receipt.get("warnings", ())),
            )

        return ordered(answer, items, self._threads)

    def choices(self, items: Sequence[Item], protocol: Protocol) -> Iterator[Reply | LongviewError]:
        """
        Raises:
            RequestError: the server is another's, which does not tell how likely given answers are.
        """
        if not self._client.ours:
            raise RequestError(
                f"--by-probability needs a longview server's /v1/decisions, which {self._client.address} has not; "
                "leave it out"
            )
        return ordered(lambda item: self._choose(item, protocol), items, self._threads)

    def _choose(self, item: Item, protocol: Protocol) -> Reply:
        import math

        (message,) = LazyMessages(protocol, item)
        before, text = split_text(message.parts)
        content, extra = self._content(before, protocol)
        for part in content:
            if part["type"] == "text":
                part["type"] = "input_text"
        scored = self._client.decide([{"role": "user", "content": content}], text, list(item.letters), **extra)
        shares = [each["probability"] for each in scored["answers"][0]["probabilities"]]
        receipt = scored.get(OURS, {})
        logprobs = [math.log(share) if share > 0 else -1e9 for share in shares]
        return likeliest(
            item, logprobs, [_frame(each) for each in receipt.get("frames", ())], receipt.get("warnings", ())
        )

    def _request(self, item: Item, protocol: Protocol) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        (message,) = LazyMessages(protocol, item)
        content, extra = self._content(message.parts, protocol)
        return [{"role": "user", "content": content}], extra

    def _content(self, parts: Sequence[Part], protocol: Protocol) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """A message's parts in OpenAI's form, and what else a request says of its media."""
        content: list[dict[str, Any]] = []
        extra: dict[str, Any] = {}
        for part in parts:
            if part.type == "text":
                content.append({"type": "text", "text": part.text})
            elif part.type == "image":
                content.append(image_part(part, self._client.ours))
            else:
                content += video_parts(part, self._client.ours)
                extra |= self._frames(part)
        if crops := crops_of(self, protocol):
            extra[OURS] = extra.get(OURS, {}) | crops
        return content, extra

    def _frames(self, video: Part) -> dict[str, Any]:
        """How frames of a video are chosen, in the server's words.

        Raises:
            RequestError: another's server cannot be told.
        """
        chosen = {
            name: value
            for name in ("frames", "fps", "select", "start", "end")
            if video.media is not None and (value := getattr(video.media, name)) is not None
        }
        if self._client.ours or not chosen:
            return {OURS: chosen} if chosen else {}
        if {"start", "end"} & chosen.keys():
            raise RequestError(
                f"{self._client.address} cannot be asked about some seconds of a video; only a longview server can"
            )
        return {"media_io_kwargs": {"video": {"num_frames": chosen["frames"]}}} if "frames" in chosen else {}


def image_part(part: Part, ours: bool) -> dict[str, Any]:
    """A picture in OpenAI's form; "original" detail is ours alone."""
    detail = {} if part.detail == "auto" else {"detail": part.detail if ours or part.detail != "original" else "high"}
    return {"type": "image_url", "image_url": {"url": data_uri(part.source, "image"), **detail}}


def video_parts(part: Part, ours: bool) -> list[dict[str, Any]]:
    """A video: its file, or its frames where it is a list of pictures."""
    source: Any = part.source
    if isinstance(source, (list, tuple)):
        frames = [data_uri(each, "image") for each in source]
        if ours:
            return [{"type": "video", "video": frames}]
        return [{"type": "image_url", "image_url": {"url": frame}} for frame in frames]
    return [{"type": "video_url", "video_url": {"url": data_uri(source, "video")}}]


def data_uri(source: Any, kind: str) -> str:
    """A source as a data URI; what is on the web is named by its address.

    Raises:
        RequestError: a file that cannot be read.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        return source
    if isinstance(source, Image.Image):
        written = io.BytesIO()
        source.save(written, "PNG")
        source = written.getvalue()
    if not isinstance(source, bytes):
        try:
            source = Path(str(source)).expanduser().read_bytes()
        except OSError as error:
            raise RequestError(f"{source} cannot be read ({error.strerror}); check the file") from None
    form = (image_format_of(source[:64]) or "jpeg").lower() if kind == "image" else container_of(source[:64]) or "mp4"
    return f"data:{kind}/{form};base64,{base64.b64encode(source).decode()}"


def _frame(frame: Mapping[str, Any]) -> dict[str, Any]:
    """A frame of a receipt as `longview.eval.ask.frames_of` has it."""
    place = {} if frame["kind"] == "image" else {"index": frame["index"], "seconds": frame["seconds"]}
    return {"medium": frame["medium"], "name": frame["name"], **place}


def _short(said: Any) -> str:
    return " ".join(str(said).split())[:SAID] or type(said).__name__
