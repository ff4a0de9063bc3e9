"""The data types that all rooms share: Message and Part go in; Piece, Answer and Receipt come out.

Structure decides, never text: a picture is a `Part`, and nothing that a user writes inside a text part can turn into
one. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from PIL import Image

from longview.errors import RequestError
from longview.part_sources import held
from longview.requests import MediaOptions
from longview.wording import counted, with_article

if TYPE_CHECKING:
    from longview.answer_evidence import Evidence

Role = Literal["system", "user", "assistant"]
PartType = Literal["text", "image", "video"]
Detail = Literal["auto", "low", "high", "original"]
Source: TypeAlias = "str | Path | bytes | Image.Image | Sequence[Source]"
"""A path, an http(s) URL, a data URI, encoded bytes, or a decoded picture; for a video also a list of pictures.

A part also takes what `longview.part_sources` makes one of these of: open binary files and uint8 arrays.
"""

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called in slow steps as progress(done, total, label); perhaps from several threads, one at a time."""

ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Part:
    """One piece of a message: text, a picture, or a video (decoded later, by `longview.media`)."""

    type: PartType
    text: str = ""
    source: Source | None = None
    detail: Detail = "auto"
    """Of a picture: "low" shows it whole only, "high" and "original" in as many crops as the model was made for."""
    media: MediaOptions | None = None
    """Of a video: options in the place of the request's."""
    name: str = ""
    """What it is called in receipts and errors; default: by its source."""

    def __post_init__(self) -> None:
        if self.type not in get_args(PartType) or not isinstance(self.text, str):
            raise RequestError(f"a part is text, image or video, and its text a string; not {self.type!r:.40}")
        if self.detail not in get_args(Detail):
            raise RequestError(f"detail is {self.detail!r:.40}; give one of {', '.join(get_args(Detail))}")
        if any("\ud800" <= letter <= "\udfff" for letter in self.text):
            raise RequestError("a text holds half of a surrogate pair, which no encoding has; decode it again")
        if self.type != "text":
            object.__setattr__(self, "source", held(self.source, self.type))

    def __repr__(self) -> str:
        return f"Part({_shortened(self.text) if self.type == 'text' else f'{self.type} {described(self.source)}'})"

    @classmethod
    def from_dict(cls, part: Mapping[str, Any]) -> Part:
        """Read a part in our own, Hugging Face's (`image`, `video`) or OpenAI's (`image_url`, `video_url`) spelling."""
        if not isinstance(part, Mapping):
            raise RequestError(f"a part is a mapping with a type, not {part!r:.80}")
        kind = part.get("type")
        if kind == "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise RequestError(f'a text part needs a string under "text", not {text!r:.80}')
            return cls("text", text=text)
        medium = {"image": "image", "image_url": "image", "video": "video", "video_url": "video"}.get(str(kind))
        if medium is None:
            expected = '"text", "image", "video", "image_url" or "video_url"'
            raise RequestError(f"unknown part type {kind!r:.80}; expected {expected}")
        named = f"{with_article(str(kind))} part"
        keys = (medium, "source", "path", "url", "base64") if kind == medium else (f"{medium}_url",)
        given = [key for key in keys if part.get(key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise RequestError(f"{named} needs exactly one of {', '.join(keys)}; found {found}")
        source, detail = part[given[0]], part.get("detail")
        if given[0].endswith("_url") and isinstance(source, Mapping):
            detail = source.get("detail", detail)
            source = source.get("url")
        if given[0] == "base64" and isinstance(source, str):
            source = f"data:{medium}/*;base64,{source}"
        source = held(source, medium)
        if isinstance(source, Sequence) and not isinstance(source, (str, bytes)) and medium == "image":
            raise RequestError("an image part holds one picture; give several pictures as several parts")
        if not isinstance(source, (str, Path, bytes, Image.Image, Sequence)) or not source:
            given_instead = f"{source!r:.80}"
            raise RequestError(f"{named} cannot be read from {given_instead}; give a path, URL, bytes or picture")
        return cls("image" if medium == "image" else "video", source=source, detail=detail or "auto")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise RequestError(f"unknown role {self.role!r:.80}; expected one of {', '.join(ROLES)}")
        if not isinstance(self.parts, tuple) or not all(isinstance(part, Part) for part in self.parts):
            raise RequestError("a message's parts are a tuple of Part; Message.of(role, …) also takes strings")

    def __repr__(self) -> str:
        return f"Message({self.role}: {', '.join(repr(part)[5:-1] for part in self.parts)})"

    @property
    def media(self) -> list[Part]:
        return [part for part in self.parts if part.type != "text"]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if part.type == "text")

    @classmethod
    def of(cls, role: Role, *parts: str | Part) -> Message:
        return cls(role, tuple(Part("text", text=part) if isinstance(part, str) else part for part in parts))

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> Message:
        given = message.get("role")
        if given not in (*ROLES, "developer"):
            raise RequestError(f"unknown role {given!r:.80}; expected one of {', '.join(ROLES)}")
        role = cast(Role, "system" if given == "developer" else given)
        content = message.get("content")
        if isinstance(content, str):
            return cls.of(role, content)
        if not isinstance(content, Iterable) or isinstance(content, (bytes, Mapping)):
            raise RequestError(f"a message's content is a string or a list of parts, not {content!r:.80}")
        parts = [part if isinstance(part, (str, Part)) else Part.from_dict(part) for part in content]
        return cls.of(role, *parts)


def image(source: Any) -> Part:
    """A picture as a message part.

    Args:
        source: A path, URL or data URI; encoded bytes or an open binary file; a Pillow image; or an array of pixels,
            uint8, (H, W, C) or (H, W).

    Raises:
        RequestError: a file that cannot be read, or an array of another dtype or shape.
    """
    return Part("image", source=source)


def video(source: Any) -> Part:
    """A video as a message part.

    Args:
        source: A path, URL or data URI; encoded bytes or an open binary file; a list of pictures as `image` takes them;
            or an array of frames, uint8, (T, H, W, C). Frames that are given one by one are all used, unless media
            options say otherwise.

    Raises:
        RequestError: as `image`.
    """
    return Part("video", source=source)


def ask(question: str, *media: Part) -> Message:
    """The user's message for a question about some media, as the authors write them.

    One medium stands before the question on its own line; several are numbered, so that the question can name them:
    `Image 1: ▣ ⏎ Image 2: ▣ ⏎ In image 2, …`.
    """
    if not isinstance(question, str) or not all(isinstance(medium, Part) for medium in media):
        raise RequestError('ask takes a question and parts, as in longview.ask("What?", longview.image("photo.jpg"))')
    if len(media) < 2:
        return Message.of("user", *media, f"\n{question}" if media else question)
    return Message.of("user", *numbered(media, range(1, len(media) + 1)), question)


def numbered(media: Iterable[Part], numbers: Iterable[int]) -> list[str | Part]:
    """Media in lines, each behind its number: `Image 1: ▣ ⏎ Image 2: ▣ ⏎`."""
    named = zip(media, numbers, strict=True)
    return [piece for part, number in named for piece in (f"{part.type.capitalize()} {number}: ", part, "\n")]


Conversation: TypeAlias = "str | Iterable[Message | Mapping[str, Any]]"
"""What `Engine.stream` and `Engine.answer` accept: a question, or a list of messages."""


def parse_messages(conversation: Conversation) -> list[Message]:
    """Normalise a question or a list of messages; the last one must be the user's.

    Raises:
        RequestError: the list is empty, a message is malformed, or the last one is not the user's.
    """
    if isinstance(conversation, str):
        return [Message.of("user", conversation)]
    if isinstance(conversation, Mapping) or not isinstance(conversation, Iterable):
        raise RequestError(f"a conversation is a list of messages, not {conversation!r:.80}")
    messages = []
    for message in conversation:
        if not isinstance(message, (Message, Mapping)):
            raise RequestError(f"a message is a mapping with role and content, not {message!r:.80}")
        messages.append(message if isinstance(message, Message) else Message.from_dict(message))
    if not messages:
        raise RequestError("the conversation is empty; ask something")
    if messages[-1].role != "user":
        raise RequestError(f"the last message is the {messages[-1].role}'s; the user's must be the last")
    return messages


@dataclass(frozen=True)
class FrameUsed:
    """One frame that was given to the model."""

    medium: int  # which picture or video of the conversation, from 0
    name: str  # where it came from, fit to be shown
    kind: Literal["image", "video"]
    index: int  # frame number in the video; 0 for a picture
    seconds: float | None  # presentation time; None for a picture
    width: int  # pixels, upright, before the processor resized it
    height: int
    crops: int  # pictures this frame became for the model: 1, or the tiles plus the global view


@dataclass(frozen=True)
class TextRead:
    """The text that OCR found in one picture or video, and that was written into the question."""

    medium: int  # which picture or video of the conversation, from 0
    name: str  # where it came from, fit to be shown
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """Token counts. Visual tokens are those the model attends to; for owl3 they are no part of the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    pictures: int
    visual_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds spent in each step of one request."""

    media: float  # fetch, decode, select
    preprocess: float  # resize, tile, tokenise
    encode: float  # pixels → features
    prefill: float  # the prompt through the language model, up to the first token
    decode: float  # every token after the first
    first_token: float  # from the request to the first token
    load: float = 0.0  # opening the model, once for all requests of its engine; in no other of these

    @property
    def total(self) -> float:
        return self.first_token + self.decode


@dataclass(frozen=True)
class Receipt:
    """What an answer is based on."""

    model: str
    frames: tuple[FrameUsed, ...]
    usage: Usage
    timings: Timings
    settings: Mapping[str, Any]  # the sampling parameters and media options in effect
    warnings: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)  # what hooks have noted, by name
    digests: tuple[str, ...] = field(default=(), repr=False, compare=False)  # of each medium, for its thumbnails

    @property
    def summary(self) -> str:
        """Model, tokens and seconds, in one line."""
        usage = self.usage
        pictures = f" and {counted(usage.pictures, 'picture')}" if usage.pictures else ""
        tokens = f"{counted(usage.prompt_tokens, 'token')}{pictures} → {counted(usage.completion_tokens, 'token')}"
        return f"{self.model}: {tokens} in {self.timings.total:.2f} s"

    def __repr__(self) -> str:
        return f"Receipt({self.summary}{', with warnings' if self.warnings else ''})"

    def _repr_html_(self) -> str:
        """For notebooks."""
        from longview.notebook import receipt_html

        return receipt_html(self)

    @property
    def read(self) -> tuple[TextRead, ...] | None:
        """The text in each medium, where it was read into the question."""
        return self.notes.get("read")

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain data, the notes among its own fields."""
        plain = asdict(self)
        notes = plain.pop("notes")
        del plain["digests"]
        return {**plain, **notes}


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token of the answer, as OpenAI's API says it; and the token's id."""

    token: str  # half a character is a replacement character
    bytes: tuple[int, ...]  # of its text in UTF-8
    logprob: float
    id: int
    top_logprobs: tuple[TokenLogprob, ...] = ()  # the likeliest tokens at its place

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**self._alone(), "top_logprobs": [each._alone() for each in self.top_logprobs]}

    def _alone(self) -> dict[str, Any]:
        return {"token": self.token, "bytes": list(self.bytes), "logprob": self.logprob, "id": self.id}


@dataclass(frozen=True)
class Piece:
    """A part of an answer as it is generated. The last piece carries the reason it ended, and the receipt."""

    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    receipt: Receipt | None = None
    choice: int = 0  # which answer it belongs to, where several were asked for
    logprobs: tuple[TokenLogprob, ...] | None = None  # one a token, where asked for
    made: Mapping[str, Any] | None = None  # by hooks of the whole answer, by name; in a piece behind the last
    evidence: Evidence | None = None  # of the whole answer, where asked for; in a piece behind the last


@dataclass(frozen=True)
class Answer:
    """A whole answer: its pieces joined."""

    text: str
    finish_reason: FinishReason
    receipt: Receipt
    tokens: tuple[int, ...] = field(default=(), repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    made: Mapping[str, Any] = field(default_factory=dict)  # by hooks, by name
    evidence: Evidence | None = field(default=None, repr=False)  # where asked for

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Answer({_shortened(self.text)}, {self.finish_reason}; {self.receipt.summary})"

    def _repr_html_(self) -> str:
        """For notebooks."""
        from longview.notebook import answer_html

        return answer_html(self)

    def as_dict(self) -> dict[str, Any]:
        found = {"text": self.text, "finish_reason": self.finish_reason, **self.receipt.as_dict()}
        if self.logprobs is not None:
            found["logprobs"] = [logprob.as_dict() for logprob in self.logprobs]
        if self.evidence is not None:
            found["evidence"] = self.evidence.as_dict()
        return {**found, **self.made}


# ── short, for people ────────────────────────────────────────────────────────────────────────────────────────────────


def described(source: Source | None) -> str:
    """A source in a few words: a path or address, or how much there is of what is in memory."""
    if isinstance(source, (str, Path)):
        return _shortened(str(source))
    if isinstance(source, bytes):
        return f"{len(source):,} bytes"
    if isinstance(source, Image.Image):
        return f"{source.width}×{source.height} {source.mode}"
    return "without a source" if source is None else counted(len(source), "picture")


def _shortened(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")
