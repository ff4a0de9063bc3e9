"""Questions of different lengths for an engine, and how their answers are compared."""

from __future__ import annotations

from typing import ClassVar

import pytest
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.engine import Engine
from longview.messages import Message

PICTURE, OTHER = longview.image(noise(1)), longview.image(noise(7, 30, 60))
CLIP = longview.video([noise(2), noise(3), noise(4)])
QUESTIONS = {
    "no picture": [longview.ask("Hello there, who are you?")],
    "one picture": [longview.ask("What?", PICTURE)],
    "a picture that is cut in another way": [longview.ask("Which one?", OTHER)],
    "two pictures and a clip": [longview.ask("Which one is brighter, and what happens?", PICTURE, OTHER, CLIP)],
    "a conversation": [
        longview.ask("What is it?", PICTURE),
        Message.of("assistant", "A blue one."),
        Message.of("user", "And what is this: ", OTHER, "?"),
    ],
}
SETTINGS = {"max_tokens": 12, "temperature": 0.5, "seed": 5, "logprobs": 0}
"""Random weights repeat themselves when greedy. The probabilities of the tokens tell questions apart."""


class Spelt:
    """A processor whose every token is a character of the answer, and none of which ends it."""

    end_tokens = ()

    def __init__(self, inner) -> None:
        self._inner = inner
        self.tokenizer = self

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    added_tokens_decoder: ClassVar[dict] = {}

    def convert_ids_to_tokens(self, token: int) -> str:
        return self.decode([token])

    def decode(self, ids, **_) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)


def new_engine(tiny, **settings) -> Engine:
    model, processor = tiny
    return Engine(model, Spelt(processor), name="tiny", **settings)


def same(found, expected) -> bool:
    """Whether two answers have the same tokens with the same probabilities, as far as fp32 goes."""
    probabilities = pytest.approx([each.logprob for each in expected.logprobs], abs=SAME_MATHS)
    return found.tokens == expected.tokens and [each.logprob for each in found.logprobs] == probabilities


def all_same(found, expected) -> bool:
    return all(same(*pair) for pair in zip(found, expected, strict=True))
