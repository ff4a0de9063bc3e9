"""Answers that another model grades: any one behind an OpenAI-compatible server. Its name stands in the result.

The requests are longview's own; they ask what the benchmarks' authors ask of theirs, and a score by another judge is
another score.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from longview.errors import LongviewError
from longview.eval.ask import ordered
from longview.eval.items import Item, Verdict
from longview.eval.server import THREADS, Client

MAX_TOKENS = 64


@dataclass(frozen=True)
class Judging:
    """How a task's answers are judged.

    Attributes:
        request: What the judge is asked about an answer.
        read: The verdict in its reply.
        required: Whether nothing counts without it; else it is asked where no rule understood the answer.
    """

    request: Callable[[Item, str], str]
    read: Callable[[Item, str], Verdict]
    required: bool = False


@dataclass(frozen=True)
class Judge:
    """A model that judges."""

    client: Client

    @property
    def name(self) -> str:
        return f"{self.client.model} at {self.client.address}"

    def replies(self, judging: Judging, answers: Sequence[tuple[Item, str]]) -> Iterator[str | LongviewError]:
        """Its replies, in order.

        Raises:
            GoneError: it does not answer.
        """

        def ask(given: tuple[Item, str]) -> str:
            messages = [{"role": "user", "content": judging.request(*given)}]
            return self.client.complete(messages, MAX_TOKENS).choices[0].message.content or ""

        return ordered(ask, answers, THREADS)


# ── MM-Vet ──


def mmvet_request(item: Item, answer: str) -> str:
    """How right an answer is, in tenths."""
    truth = item.answer[0] if isinstance(item.answer, list) else item.answer
    return (
        "Grade an answer to a question about a picture that you do not see, by the reference. In the reference <AND> "
        "joins parts that are all needed, each worth its share; <OR> joins parts any of which is enough. Wording does "
        "not matter, content does. Reply with one number from 0.0 (all wrong) to 1.0 (all right), in tenths, and "
        f"nothing else.\n\nQuestion: {item.question}\nReference: {truth}\nAnswer: {answer}\n\nGrade:"
    )


def mmvet_read(item: Item, reply: str) -> Verdict:
    found = re.search(r"\b(?:1(?:\.0*)?|0(?:\.\d+)?)\b|(?<!\d)\.\d+", reply)
    return Verdict(None, False) if found is None else Verdict(float(found[0]))


# ── MathVista ──


def mathvista_request(item: Item, answer: str) -> str:
    """The final answer in a solution."""
    choices = item.facts["problem"]["choices"]
    among = f"\nChoices: {', '.join(map(str, choices))}. Reply with one of them." if choices else ""
    return (
        "Find the final answer in a solution, and reply with it alone: a number, a choice or a list, without units or "
        f"words.\n\nQuestion: {item.question}{among}\nSolution: {answer}\n\nFinal answer:"
    )
