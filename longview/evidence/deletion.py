"""The deletion check: how the answer's log-probability changes without some of the pictures.

    pictures 1 2 3 4, ranked by attention 3 1 4 2      each of them left out: exact, for few pictures
                                                       the k highest, the k lowest, k at random: does the ranking hold?

A picture that is taken away is left out of the conversation; of a video, the frame is. What numbers it stays ("Image
2:"), so that the question means the same pictures as before; and the others are cut into crops as if it were there. The
other way, a blank picture in its place, keeps every position, but shows the model something that nobody asked about,
and answers about blank pictures are answers too. Patches are not taken away: whatever is painted over them is seen.

The pictures' features and the prompt up to the first one that is left out are kept, so a check costs a prefill of the
rest, and a pass over the answer, each time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from longview.answer_evidence import Evidence
from longview.engine.prepare import MAX_SCORED
from longview.engine.score import Question
from longview.errors import RequestError
from longview.evidence.sentences import CLEARLY, sentences_of
from longview.media.fetch import fetch
from longview.messages import Answer, Conversation, Message, Part, parse_messages
from longview.requests import Limits, MediaOptions

if TYPE_CHECKING:
    from longview.engine import Engine

MAX_ALONE = 64
"""Pictures that are left out one by one, at most."""
DRAWS = 5
"""Random choices of k pictures."""
Result = TypeVar("Result")

__all__ = ["CLEARLY", "Deletion", "Step", "acheck", "changes_without", "check", "wait_for"]


@dataclass(frozen=True)
class Step:
    """Changes of the log-probability, in nats, without `count` pictures."""

    count: int
    highest: float
    """Without those with most attention."""
    lowest: float
    """Without those with least."""
    random: tuple[float, ...]
    """Without as many at random, for each draw."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.random))

    @property
    def deviation(self) -> float:
        """The standard deviation over the draws; 0 for one."""
        return float(np.std(self.random, ddof=1)) if len(self.random) > 1 else 0.0


@dataclass(frozen=True)
class Deletion:
    """What an answer loses without some of its pictures. Changes are in nats, negative where it becomes less likely."""

    logprob: float
    """Of the answer's tokens, with all pictures."""
    tokens: int
    """How many of these were scored: all, or the first ones of a long answer."""
    without_all: float
    """The change without any picture."""
    alone: tuple[float, ...]
    """The change without each picture alone, in their order; empty where there are more than `MAX_ALONE`."""
    steps: tuple[Step, ...]
    """For a growing number of pictures; empty for one picture."""
    sentences: tuple[str, ...]
    """What that says, and where it contradicts the map."""
    passes: int
    """Conversations that were prefilled and scored for it."""
    seed: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As plain data, rounded."""
        plain = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
            if name not in ("alone", "steps")
        }
        steps = [
            {
                "count": step.count,
                "highest": round(step.highest, 4),
                "lowest": round(step.lowest, 4),
                "random": [round(each, 4) for each in step.random],
                "random_mean": round(step.mean, 4),
                "random_deviation": round(step.deviation, 4),
            }
            for step in self.steps
        ]
        return {**plain, "alone": [round(each, 4) for each in self.alone], "steps": steps}


def check(
    engine: Engine,
    conversation: Conversation,
    answer: Answer,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    limits: Limits | None = None,
    ocr: bool = False,
) -> Deletion:
    """Check the evidence of an answer that `Engine.answer(conversation, evidence=True)` gave.

    Args:
        seed: Of the random choices.
        draws: Random choices of each number of pictures.
        limits, ocr: As the answer was asked for.

    Raises:
        RequestError: the answer has no evidence, or its question no picture.
    """
    return wait_for(acheck(engine, conversation, answer, seed=seed, draws=draws, limits=limits, ocr=ocr))


async def acheck(
    engine: Engine,
    conversation: Conversation,
    answer: Answer,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    limits: Limits | None = None,
    ocr: bool = False,
) -> Deletion:
    """As `check`, for asyncio."""
    began, evidence = time.perf_counter(), answer.evidence
    if evidence is None:
        raise RequestError("the answer has no evidence; ask for it with evidence=True")
    if not evidence.pictures:
        raise RequestError("the question has no picture to take away; ask about one")
    if draws < 1:
        raise RequestError(f"draws is {draws}; give a whole number from 1 up")
    limits = limits or Limits()
    messages = await asyncio.to_thread(fetched, parse_messages(conversation), limits)
    count = len(evidence.pictures)
    every = frozenset(range(1, count + 1))
    ranked = evidence.ranked
    plan = [(each, drawn(count, each, draws, seed)) for each in counts_of(count)]
    alone = [frozenset([number]) for number in every] if count <= MAX_ALONE else []
    wanted = [every, *alone]
    for each, chosen in plan:
        wanted += [frozenset(ranked[:each]), frozenset(ranked[-each:]), *chosen]
    wanted = list(dict.fromkeys(wanted))
    ids = answer.tokens[:MAX_SCORED]
    whole, found = await changes_without(
        engine,
        without(messages, evidence, frozenset()),
        [without(messages, evidence, left_out) for left_out in wanted],
        ids,
        num_media=sum(len(message.media) for message in messages),
        limits=limits,
        ocr=ocr,
        max_partition=answer.receipt.settings.get("max_partition"),
    )
    change = dict(zip(wanted, found, strict=True))
    steps = tuple(
        Step(
            each,
            change[frozenset(ranked[:each])],
            change[frozenset(ranked[-each:])],
            tuple(change[subset] for subset in chosen),
        )
        for each, chosen in plan
    )
    of_each = tuple(change[left_out] for left_out in alone)
    said = sentences_of(evidence, change[every], of_each, steps)
    seconds = time.perf_counter() - began
    return Deletion(whole, len(ids), change[every], of_each, steps, said, 1 + len(wanted), seed, seconds)


async def changes_without(
    engine: Engine,
    whole: Conversation,
    others: Iterable[Conversation],
    answer: str | tuple[int, ...],
    **settings: Any,
) -> tuple[float, list[float]]:
    """The log-probability of an answer to a conversation, and how it changes in others, in nats.

    Args:
        others: The conversation without some of what it shows.
        answer: Its text, whose end counts, or its tokens.
        settings: As of `Engine.ascore`.
    """

    async def logprob(conversation: Conversation) -> float:
        (scores,) = await engine.ascore(conversation, [Question((), (answer,))], **settings)
        return scores.logprobs[0]

    first = await logprob(whole)  # alone, so that the others find its features and its prompt
    found = await asyncio.gather(*(logprob(other) for other in others))
    return first, [each - first for each in found]


def fetched(messages: Sequence[Message], limits: Limits) -> list[Message]:
    """The same conversation with what URLs name in their place, so that it is fetched once.

    Raises:
        MediaError: it cannot be.
    """

    def held(part: Part) -> Part:
        if not isinstance(part.source, str) or not part.source.lower().startswith(("http://", "https://")):
            return part
        found = fetch(part.source, limits, f"max_{part.type}_bytes")
        return replace(part, source=found.data, name=part.name or found.name)

    return [Message(message.role, tuple(map(held, message.parts))) for message in messages]


def counts_of(pictures: int) -> list[int]:
    """How many are taken away: 1, 2, 4, … below their number."""
    return [1 << power for power in range(pictures.bit_length()) if 1 << power < pictures]


def drawn(pictures: int, count: int, draws: int, seed: int) -> list[frozenset[int]]:
    """Different random choices of so many pictures; fewer than `draws` where there are not as many."""
    random = np.random.default_rng([seed, count])
    found: dict[frozenset[int], None] = {}
    for _ in range(8 * draws):
        if len(found) < draws:
            found[frozenset((random.permutation(pictures)[:count] + 1).tolist())] = None
    return list(found)


def without(messages: Sequence[Message], evidence: Evidence, left_out: frozenset[int]) -> list[Message]:
    """A conversation without some pictures, by their numbers; videos show exactly the frames that are left."""
    kept: dict[int, list[int]] = {}
    for picture in evidence.pictures:
        own = kept.setdefault(picture.frame.medium, [])
        if picture.number not in left_out:
            own.append(picture.frame.index)
    medium = -1
    found = []
    for message in messages:
        parts: list[Part] = []
        for part in message.parts:
            if part.type == "text":
                parts.append(part)
                continue
            medium += 1
            if kept[medium]:
                options = MediaOptions(indices=tuple(kept[medium])) if part.type == "video" else part.media
                parts.append(replace(part, media=options))
        found.append(Message(message.role, tuple(parts)))
    return found


def wait_for(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, also where an event loop runs already, as in notebooks."""
    run: Callable[[Coroutine[Any, Any, Result]], Result] = asyncio.run
    with ThreadPoolExecutor(1, thread_name_prefix="longview-evidence") as pool:
        return pool.submit(run, coroutine).result()
