"""Requests in OpenAI's names, and in those that clients of vLLM and SGLang send. What is unknown is refused.

The settings of sampling and of media are those of `longview.requests`, under the same names; only what OpenAI calls
otherwise is spelt out here. What asks for nothing (`tools: []`, `logit_bias: {}`, a null) is left out by `neutral`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from longview.errors import RequestError
from longview.messages import Detail
from longview.requests import MAX_PARTITION, MediaOptions, RequestSettings, SamplingParams
from longview.serve.errors import APIError
from longview.settings import Setting, settings_of

MAX_STOPS = 4
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id")
"""What a client notes for itself; no answer depends on it."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "priority": (0,),
    "best_of": (1,),
    "echo": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (False,),
    "stop_token_ids": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "return_token_ids": (False,),
}
"""What clients send although it asks for nothing, with the values that do not."""
NEUTRAL_IN_MESSAGES = (
    "refusal",
    "tool_calls",
    "function_call",
    "audio",
    "annotations",
    "reasoning",
    "reasoning_content",
)


def neutral(data: dict[str, Any]) -> dict[str, Any]:
    """A request without what asks for nothing.

    Raises:
        APIError: something of it asks for what is not done here.
    """
    found = {name: value for name, value in data.items() if value is not None and name not in LABELS}
    for name in NEUTRAL.keys() & found.keys():
        if not any(type(found[name]) is type(value) and found[name] == value for value in NEUTRAL[name]):
            raise APIError(400, f"{name} is not supported here; leave it out", name, "unsupported_parameter")
        del found[name]
    if found.get("top_k") == -1:  # vLLM's for all
        found["top_k"] = 0
    if isinstance(found.get("messages"), list):
        found["messages"] = [_neutral_message(message) for message in found["messages"]]
    return found


def _neutral_message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value or name not in NEUTRAL_IN_MESSAGES}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def settings_model(name: str, owner: type, leave_out: tuple[str, ...] = ()) -> Any:
    """A model whose fields are the settings of a class, each of them optional, checked as they check themselves."""
    fields: dict[str, Any] = {}
    for setting in settings_of(owner).values():
        if setting.name in leave_out:
            continue
        kind: Any = setting.type
        if setting.element is not None:
            kind = list[int] if setting.element is int else str | list[setting.element]  # type: ignore[name-defined]
        checked: Any = Annotated[kind, AfterValidator(_checker(setting))]
        fields[setting.name] = (checked | None, Field(default=None, description=setting.help))
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


# ── settings ──

RENAMED = ("logprobs", "json_schema", "regex")
"""Settings of sampling that OpenAI's requests spell otherwise."""

if TYPE_CHECKING:

    class Sampling(Strict): ...

    class Media(Strict): ...

else:
    Sampling = settings_model("Sampling", SamplingParams, leave_out=RENAMED)
    Media = settings_model("Media", MediaOptions)


# ── parts ──


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageURL(Strict):
    url: str
    detail: Detail | None = None


class ImagePart(Strict):
    """A picture: a data URI, an http(s) URL, or a file:// address where a folder is open."""

    type: Literal["image_url"]
    image_url: ImageURL | str


class FrameOptions(Strict):
    """Which frames of one video are used, in SGLang's names."""

    fps: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Frames a second.")
    max_frames: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Frames, at most.")


class VideoURL(FrameOptions):
    url: str | list[str]


class OwnMedia(Strict):
    longview: Media | None = Field(default=None, description="Which frames of this video are used, over the request's.")


class VideoPart(OwnMedia):
    """A video: an address as of a picture, or a list of pictures."""

    type: Literal["video_url"]
    video_url: VideoURL | str | list[str]


class InputVideo(FrameOptions):
    url: str | None = None
    data: str | None = Field(default=None, description="Base64.")
    format: str | None = None
    file_id: str | None = None


class InputVideoPart(OwnMedia):
    type: Literal["input_video"]
    input_video: InputVideo | str


class FrameListPart(FrameOptions):
    """A video that has been cut into pictures."""

    type: Literal["video"]
    video: list[str] = Field(min_length=1)


class FileSource(Strict):
    file_id: str | None = None
    file_data: str | None = Field(default=None, description="A data URI, or base64.")
    filename: str | None = None


class FilePart(OwnMedia):
    """A picture or a video that was uploaded, or that is sent along."""

    type: Literal["file"]
    file: FileSource


def _typed(part: Any) -> Any:
    """A part with its type, which vLLM's clients leave out: {"image_url": "…"}."""
    if isinstance(part, dict) and "type" not in part:
        kinds = [kind for kind in ("text", "image_url", "video_url", "input_video", "video", "file") if kind in part]
        if len(kinds) == 1:
            return {"type": kinds[0], **part}
    return part


ContentPart = Annotated[
    Annotated[
        TextPart | ImagePart | VideoPart | InputVideoPart | FrameListPart | FilePart, Field(discriminator="type")
    ],
    BeforeValidator(_typed),
]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = Field(default=None, description="A label; the model is not told.")


# ── what goes with them ──


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class JSONSchema(Strict):
    name: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="An answer fits the schema in either case.")
    description: str | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class StructuredOutputs(Strict):
    """vLLM's form of what an answer has to be."""

    regex: str | None = None
    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    choice: Annotated[list[str], Field(min_length=1)] | None = None


class VideoIO(Strict):
    num_frames: Annotated[int, Field(ge=-1)] | None = Field(default=None, description="Frames, at most; -1 for all.")
    do_sample_frames: Literal[False] | None = Field(default=None, description="Frames are chosen once, by the above.")
    fps: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Frames a second.")


class MediaIO(Strict):
    """vLLM's `media_io_kwargs`."""

    video: VideoIO | None = None
    image: dict[str, Any] | None = Field(default=None, max_length=0)


class OwnSettings(Media):
    """How media are shown, where OpenAI has no name for it."""

    max_partition: Annotated[int, Field(ge=1, le=MAX_PARTITION)] | None = Field(
        default=None, description=settings_of(RequestSettings)["max_partition"].help
    )


class Extension(OwnSettings):
    """What OpenAI has no name for: which frames of videos are used, and more."""

    ocr: bool | None = Field(default=None, description="Read the text in pictures into the question.")
    gen: bool | None = Field(default=None, description="Have MGM describe a picture to be painted.")
    return_evidence: bool | None = Field(
        default=None, description="Say in the reply what each token of the answer gave its attention to."
    )
    receipt: bool | None = Field(
        default=None, description="Say in the reply what the answer is based on; default: true."
    )


class ChatRequest(Sampling):
    """What `POST /v1/chat/completions` takes."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Tokens of the answer, at most; max_tokens is its older name."
    )
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    media_io_kwargs: MediaIO | None = None
    mm_processor_kwargs: VideoIO | None = None
    longview: Extension | None = None
