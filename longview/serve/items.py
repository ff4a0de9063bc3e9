"""Input items of the Responses and Decisions APIs → messages of a chat, in which every medium has its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from longview.messages import Detail
from longview.serve.errors import invalid
from longview.serve.schema import (
    ChatMessage,
    ContentPart,
    FilePart,
    FileSource,
    ImagePart,
    ImageURL,
    InputVideoPart,
    Strict,
    TextPart,
    VideoPart,
)


class InputText(Strict):
    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = Field(default=None, description="Prefixes are kept without it.")


class Refusal(Strict):
    type: Literal["refusal"]
    refusal: str


class InputImage(Strict):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Detail | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class InputFile(FileSource):
    type: Literal["input_file"]


class InputJSON(Strict):
    """Written into the question as text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


ItemPart = Annotated[
    InputText | Refusal | InputImage | InputFile | InputJSON | InputVideoPart | VideoPart | ImagePart,
    Field(discriminator="type"),
]


class InputMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ItemPart]
    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


def messages_of(given: str | Sequence[InputMessage], instructions: str | None = None) -> list[ChatMessage]:
    """The messages of a chat with the same content."""
    first = [] if instructions is None else [ChatMessage(role="system", content=instructions)]
    if isinstance(given, str):
        return [*first, ChatMessage(role="user", content=given)]
    if not given:
        raise invalid("the input is empty; ask something", "input")
    return [*first, *(message_of(item.role, item.content) for item in given)]


def message_of(role: Any, content: str | Sequence[Any]) -> ChatMessage:
    """One message of a chat."""
    return ChatMessage(role=role, content=content if isinstance(content, str) else [_part_of(part) for part in content])


def _part_of(part: Any) -> ContentPart:
    if isinstance(part, InputText):
        return TextPart(type="text", text=part.text)
    if isinstance(part, Refusal):
        return TextPart(type="text", text=part.refusal)
    if isinstance(part, InputJSON):
        return TextPart(type="text", text=json.dumps(part.data, ensure_ascii=False))
    if isinstance(part, InputFile):
        source = FileSource(file_id=part.file_id, file_data=part.file_data, filename=part.filename)
        return FilePart(type="file", file=source)
    if isinstance(part, InputImage):
        if (part.image_url is None) == (part.file_id is None):
            raise invalid("an input_image needs one of image_url and file_id", "input")
        if part.image_url is not None:
            return ImagePart(type="image_url", image_url=ImageURL(url=part.image_url, detail=part.detail))
        return FilePart(type="file", file=FileSource(file_id=part.file_id))
    return part
