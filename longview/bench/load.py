"""Clients of a server, each of which asks its next question when it has its answer; and what they saw."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from longview.bench.workload import Asked
from longview.http_client import Client, ConnectionFailedError

CHAT = "/v1/chat/completions"
MAX_DISPUTES = 64
"""Answers of one run that are asked for again alone, where the first known word is not the own one."""


@dataclass
class Seen:
    """One request, as its client saw it. Seconds."""

    asked: Asked
    first: float = 0.0
    """From the request to the first text."""
    whole: float = 0.0
    gaps: list[float] = field(default_factory=list)
    """Between texts, which are tokens but for those that complete no character."""
    text: str = ""
    finished: bool = False
    error: str | None = None


async def ask_one(client: Client, asked: Asked) -> Seen:
    """Ask, and read the stream of the answer."""
    seen = Seen(asked)
    began = last = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    try:
        async with client.open("POST", CHAT, [asked.body], headers, len(asked.body)) as response:
            if response.status != 200:
                seen.error = f"{response.status} {(await response.read())[:200].decode(errors='replace')}"
                return seen
            async for data in response.events():
                now = time.perf_counter()
                if data == "[DONE]":
                    seen.finished = True
                    continue
                event = json.loads(data)
                if "error" in event:
                    seen.error = str(event["error"].get("message", event["error"]))[:200]
                    continue
                text = _text_of(event)
                if not text:
                    continue
                if seen.text:
                    seen.gaps.append(now - last)
                else:
                    seen.first = now - began
                seen.text += text
                last = now
    except ConnectionFailedError as error:
        seen.error = str(error)
    seen.whole = time.perf_counter() - began
    return seen


def _text_of(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


async def run_clients(client: Client, requests: Sequence[Asked], count: int) -> tuple[list[Seen], float]:
    """So many clients share the requests. Returns what they saw, and the seconds that it took."""
    left: Iterator[Asked] = iter(requests)
    seen: list[Seen] = []

    async def work() -> None:
        for asked in left:
            seen.append(await ask_one(client, asked))

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(count)))
    return seen, time.perf_counter() - began


@dataclass
class Verdicts:
    """How the answers of a run are: each is one of these."""

    errors: int = 0
    lost: int = 0
    """Streams that ended without an end."""
    crossed: int = 0
    """Answers that are not what the same request is answered with alone."""
    misread: int = 0
    """Answers that are, and still hold another word: the model's own mistake, or a text that it does not read."""
    unchecked: int = 0
    right: int = 0
    reasons: list[str] = field(default_factory=list)


class Judge:
    """Tells a model's own mistakes from answers of others, by asking again alone."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._alone: dict[str, str] = {}

    async def judge(self, seen: Sequence[Seen]) -> Verdicts:
        found, asked_again = Verdicts(), 0
        for each in seen:
            if each.error is not None:
                found.errors += 1
                found.reasons.append(each.error)
            elif not each.finished:
                found.lost += 1
            elif each.asked.is_answered_by(each.text):
                found.right += 1
            else:
                digest = hashlib.sha256(each.asked.body).hexdigest()
                if digest not in self._alone:
                    if asked_again == MAX_DISPUTES:
                        found.unchecked += 1
                        continue
                    asked_again += 1
                    self._alone[digest] = (await ask_one(self._client, each.asked)).text
                if self._alone[digest] == each.text:
                    found.misread += 1
                else:
                    found.crossed += 1
                    found.reasons.append(f"{each.text!r:.60} in place of {self._alone[digest]!r:.60}")
        return found
