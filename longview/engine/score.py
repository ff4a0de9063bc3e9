"""How likely given answers to a question are: teacher forcing, side by side with everything else that the engine runs.

    conversation ── question 1 ── answer 1, answer 2, …       the conversation's media are opened and encoded once;
                 └─ question 2 ── answer 1, answer 2, …       its keys and values are copied to every question, and the
                                                              question's to each of its answers

An answer is a request whose tokens are given; its log-probability is the sum of theirs, the end of the answer included,
so that "red" and "red star" can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longview.messages import Message, Part
from longview.models.base import IGNORED, Processor


@dataclass(frozen=True)
class Question:
    """A question about a conversation, behind its last message, and the answers that are scored."""

    parts: tuple[Part, ...]
    answers: tuple[str, ...]

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """The conversation with the question in its last message."""
        *before, last = conversation
        between = (Part("text", text="\n"),) if last.parts and last.parts[-1].type == "text" else ()
        return [*before, Message("user", (*last.parts, *between, *self.parts))]

    @property
    def media(self) -> list[Part]:
        return [part for part in self.parts if part.type != "text"]


class ForcedTokens:
    """A matcher that admits one answer only; see `longview.engine.sampling.Matcher`."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    @property
    def complete(self) -> bool:
        return not self._tokens

    def mask_logits(self, logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -torch.inf)
        forced[self._tokens[0]] = 0.0
        return forced

    def accept(self, token: int) -> None:
        assert token == self._tokens[0], "only the given token can be chosen"
        del self._tokens[0]


def answer_tokens(processor: Processor, answer: str) -> list[int]:
    """The tokens that the model writes for an answer, up to its end; as in training, so that they are the family's."""
    messages = [Message.of("user", "?"), Message.of("assistant", answer)]
    inputs = processor.prepare(messages, [], train=True).text_inputs
    learned = inputs["input_ids"][0][inputs["labels"][0] != IGNORED].tolist()
    ends = [number for number, token in enumerate(learned) if token in processor.end_tokens]
    return learned[: ends[0] + 1] if ends else learned
