"""Requests in OpenAI's names. What is unknown is refused: nothing is accepted and ignored.

The settings of sampling are those of `longview.requests`, under the same names; only what OpenAI calls otherwise is
spelt out here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from longview.errors import RequestError
from longview.requests import SamplingParams
from longview.settings import Setting, settings_of


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def settings_model(name: str, owner: type, leave_out: tuple[str, ...] = ()) -> Any:
    """A model whose fields are the settings of a class, each of them optional, checked as they check themselves."""
    fields: dict[str, Any] = {}
    for setting in settings_of(owner).values():
        if setting.name in leave_out:
            continue
        kind: Any = setting.type if setting.element is None else str | list[setting.element]  # type: ignore[name-defined]
        checked: Any = Annotated[kind, AfterValidator(_checker(setting))]
        fields[setting.name] = (checked | None, Field(None, description=setting.help))
    return create_model(name, __base__=Strict, **fields)


def _checker(setting: Setting) -> Any:
    def check(value: Any) -> Any:
        low, high = (bound if not isinstance(bound, str) else None for bound in (setting.low, setting.high))
        if setting.element is not None:
            value = (value,) if isinstance(value, str) else tuple(value)
        try:
            setting.check(value, low, high)
        except RequestError as error:
            raise ValueError(str(error)) from None
        return value

    return check


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageURL(Strict):
    url: str


class ImagePart(Strict):
    """A picture: a data URI, or an http(s) URL."""

    type: Literal["image_url"]
    image_url: ImageURL | str


class VideoURL(Strict):
    url: str


class VideoPart(Strict):
    """A video: a data URI, or an http(s) URL."""

    type: Literal["video_url"]
    video_url: VideoURL | str


ContentPart = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None


class StreamOptions(Strict):
    include_usage: bool = False


RENAMED = ("logprobs", "json_schema", "regex")
"""Settings of sampling that OpenAI's requests spell otherwise."""

if TYPE_CHECKING:
    Sampling = Strict
else:
    Sampling = settings_model("Sampling", SamplingParams, leave_out=RENAMED)


class ChatRequest(Sampling):
    """What `POST /v1/chat/completions` takes."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens of the answer, at most; max_tokens is its older name."
    )
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
