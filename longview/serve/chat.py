"""`/v1/chat/completions`: the events of a job → a completion, or chunks of one."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from longview.serve import sse
from longview.serve.errors import APIError

Event = Mapping[str, Any]
SAID = ("model", "usage")
"""Of a receipt, what OpenAI's reply says already."""


@dataclass
class Choice:
    """One answer so far."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[Mapping[str, Any]] | None = None
    images: list[dict[str, Any]] = field(default_factory=list)
    """What was painted of it, as data URIs."""
    evidence: Mapping[str, Any] | None = None
    """Where asked for; see `longview.answer_evidence.Evidence`."""


@dataclass
class Completion:
    """What all replies to one request say of it, and the answers so far."""

    model: str
    facts: Mapping[str, Any]
    """Of the model; not known before it is loaded."""
    with_receipt: bool = True
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    receipts: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take a piece in."""
        choice = self.choices.setdefault(event["choice"], Choice())
        choice.text += event["text"]
        choice.finish_reason = event.get("finish_reason", choice.finish_reason)
        if "logprobs" in event:
            choice.logprobs = [*(choice.logprobs or ()), *event["logprobs"]]
        if "receipt" in event:
            self.receipts[event["choice"]] = event["receipt"]
        choice.evidence = event.get("evidence", choice.evidence)
        drawing = event.get("made", {}).get("drawing")
        if drawing is not None:
            url = f"data:image/png;base64,{drawing['png']}"
            choice.images = [{"type": "image_url", "image_url": {"url": url}}]

    def usage(self) -> dict[str, Any]:
        """Tokens of the prompt, once, and of all answers. Pictures are part of the prompt where they take positions."""
        first = next(iter(self.receipts.values()))["usage"]
        completion = sum(receipt["usage"]["completion_tokens"] for receipt in self.receipts.values())
        text = first["prompt_tokens"] - (first["visual_tokens"] if self.facts["picture_positions"] else 0)
        return {
            "prompt_tokens": first["prompt_tokens"],
            "completion_tokens": completion,
            "total_tokens": first["prompt_tokens"] + completion,
            "prompt_tokens_details": {
                "text_tokens": text,
                "image_tokens": first["visual_tokens"],
                "cached_tokens": first["cached_tokens"],
            },
        }

    def receipt(self, choice: int = 0) -> dict[str, Any]:
        """What an answer is based on, under its key; see `longview.messages.Receipt`."""
        if not self.with_receipt:
            return {}
        return {"longview": {name: value for name, value in self.receipts[choice].items() if name not in SAID}}

    def extension(self) -> dict[str, Any]:
        """The first answer's receipt, and the evidence of the only answer, or of each in turn, under their key."""
        evidence = [choice.evidence for _, choice in sorted(self.choices.items()) if choice.evidence is not None]
        if not evidence:
            return self.receipt()
        shown = evidence if len(self.choices) > 1 else evidence[0]
        return {"longview": {**self.receipt().get("longview", {}), "evidence": shown}}

    def body(self) -> dict[str, Any]:
        """The whole completion."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None, **_images(choice)},
                "logprobs": _logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in sorted(self.choices.items())
        ]
        head = self._head("chat.completion")
        return {**head, "choices": choices, "usage": self.usage(), **self.extension()}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return sse.encode({**self._head("chat.completion.chunk"), "choices": choices, **more})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def whole(events: AsyncGenerator[Event], completion: Completion) -> dict[str, Any]:
    """Read a job's events to the end.

    Raises:
        APIError: it failed.
    """
    async with contextlib.aclosing(events):  # at once, when one of them is none
        async for event in events:
            if event["event"] == "piece":
                completion.add(event)
    return completion.body()


async def chunks(events: AsyncIterator[Event], completion: Completion, include_usage: bool) -> AsyncGenerator[bytes]:
    """A job's events as server-sent events. A job that fails ends in an error, and without `[DONE]`."""
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    try:
        async for event in events:
            if event["event"] == "piece":
                for chunk in _of_piece(event, completion, more):
                    yield chunk
    except APIError as error:
        yield sse.encode(error.body)
        return
    if include_usage:
        yield completion.chunk([], usage=completion.usage())
    yield sse.DONE


def _of_piece(event: Event, completion: Completion, more: Mapping[str, Any]) -> list[bytes]:
    index = event["choice"]
    is_first = index not in completion.choices
    completion.add(event)
    found = []
    if is_first:
        found.append(completion.chunk([_choice(index, {"role": "assistant", "content": ""})], **more))
    if event["text"] or event.get("logprobs"):
        delta = {"content": event["text"]}
        found.append(completion.chunk([_choice(index, delta, logprobs=event.get("logprobs"))], **more))
    if "receipt" in event:
        last = _choice(index, {}, event["finish_reason"])
        found.append(completion.chunk([last], **more, **completion.receipt(index)))
    if "evidence" in event:
        last = _choice(index, {})
        found.append(completion.chunk([last], **more, longview={"evidence": event["evidence"]}))
    if "made" in event and completion.choices[index].images:
        found.append(completion.chunk([_choice(index, _images(completion.choices[index]))], **more))
    return found


def _images(choice: Choice) -> dict[str, Any]:
    """The field of a message for pictures, which OpenRouter's clients know; OpenAI has none."""
    return {"images": choice.images} if choice.images else {}


def _choice(
    index: int,
    delta: Mapping[str, Any],
    finish_reason: str | None = None,
    logprobs: list[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": finish_reason}


def _logprobs(content: list[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    return None if content is None else {"content": content, "refusal": None}
