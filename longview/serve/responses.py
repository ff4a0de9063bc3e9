"""`/v1/responses`: the part of OpenAI's Responses API that keeps nothing between requests.

It is a chat in other words: its request becomes a `ChatRequest`, whose events become a response, or the events
of one. What needs a memory (`previous_response_id`, `store: true`, `background`) or tools is refused.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from longview.serve import sse
from longview.serve.chat import Completion, Event
from longview.serve.errors import APIError
from longview.serve.items import InputMessage, messages_of
from longview.serve.schema import ChatRequest, Extension, MediaIO, Sampling, Strict, VideoIO


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(Sampling):
    """What `POST /v1/responses` takes."""

    model: str
    input: str | list[InputMessage]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    media_io_kwargs: MediaIO | None = None
    mm_processor_kwargs: VideoIO | None = None
    longview: Extension | None = None


def chat_of(request: ResponseRequest) -> ChatRequest:
    """The same request as a chat.

    Raises:
        APIError: its input is empty.
    """
    own = ("input", "instructions", "max_output_tokens", "text", "truncation", "background", "include", "top_logprobs")
    shared = {name: getattr(request, name) for name in type(request).model_fields if name not in own}
    form = None if request.text is None or request.text.format is None else request.text.format
    response_format: dict[str, Any] | None = None
    if form is not None:
        response_format = {"type": form.type}
        if form.type == "json_schema":
            response_format["json_schema"] = {"name": form.name or "answer", "schema": form.schema_}
    return ChatRequest.model_validate(
        {
            **shared,
            "messages": messages_of(request.input, request.instructions),
            "max_completion_tokens": request.max_output_tokens,
            "logprobs": True if request.include else None,
            "top_logprobs": request.top_logprobs if request.include else None,
            "response_format": response_format,
        }
    )


@dataclass
class Reply:
    """What all of a response's objects say, and the answer so far."""

    request: ResponseRequest
    completion: Completion
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(16)}")
    item_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(16)}")
    created_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_whole(self) -> bool:
        return self.completion.choices[0].finish_reason == "stop"

    def body(self, status: str) -> dict[str, Any]:
        """The response, while it is in progress or when it has ended."""
        ended = status != "in_progress"
        request = self.request
        form = {"type": "text"} if request.text is None or request.text.format is None else request.text.format
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": request.model,
            "output": [self.item(status), *self._images()] if ended else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": getattr(request, "temperature", None),
            "text": {"format": form if isinstance(form, dict) else form.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": "none",
            "tools": [],
            "top_p": getattr(request, "top_p", None),
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
            "metadata": {},
            **(self.completion.extension() if ended else {}),
        }

    def item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self.part()]
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _images(self) -> list[dict[str, Any]]:
        """What was painted, as OpenAI's tool for that has it."""
        choice = self.completion.choices.get(0)
        return [
            {
                "id": f"ig_{self.item_id[4:]}",
                "type": "image_generation_call",
                "status": "completed",
                "result": image["image_url"]["url"].partition(",")[2],
            }
            for image in (() if choice is None else choice.images)
        ]

    def part(self, text: str | None = None) -> dict[str, Any]:
        choice = self.completion.choices.get(0)
        logprobs = [] if choice is None or choice.logprobs is None or text is not None else choice.logprobs
        said = (choice.text if choice else "") if text is None else text
        return {"type": "output_text", "text": said, "annotations": [], "logprobs": logprobs}

    def _usage(self) -> dict[str, Any]:
        usage = self.completion.usage()
        details = usage["prompt_tokens_details"]
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**details, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


async def whole(events: AsyncGenerator[Event], reply: Reply) -> dict[str, Any]:
    """Read a job's events to the end.

    Raises:
        APIError: it failed.
    """
    async with contextlib.aclosing(events):  # at once, when one of them is none
        async for event in events:
            if event["event"] == "piece":
                reply.completion.add(event)
    return reply.body("completed" if reply.is_whole else "incomplete")


async def stream(events: AsyncIterator[Event], reply: Reply) -> AsyncGenerator[bytes]:
    """A job's events as those of a response."""
    number = -1

    def event_of(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return sse.encode({"type": kind, "sequence_number": number, **fields}, kind)

    place: Mapping[str, Any] = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}
    try:
        yield event_of("response.created", response=reply.body("in_progress"))
        yield event_of("response.in_progress", response=reply.body("in_progress"))
        yield event_of("response.output_item.added", output_index=0, item=reply.item("in_progress"))
        yield event_of("response.content_part.added", **place, part=reply.part(""))
        async for event in events:
            if event["event"] == "piece":
                reply.completion.add(event)
                if event["text"]:
                    logprobs = event.get("logprobs", [])
                    yield event_of("response.output_text.delta", **place, delta=event["text"], logprobs=logprobs)
    except APIError as error:
        yield event_of("error", **error.body["error"], **error.body)
        return
    part, status = reply.part(), "completed" if reply.is_whole else "incomplete"
    yield event_of("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
    yield event_of("response.content_part.done", **place, part=part)
    yield event_of("response.output_item.done", output_index=0, item=reply.item(status))
    yield event_of(f"response.{status}", response=reply.body(status))
