"""How likely given answers to a question are: teacher forcing, side by side with everything else that the engine runs.

    conversation ── question 1 ── answer 1, answer 2, …       the conversation's media are opened and encoded once; its
                 └─ question 2 ── answer 1, answer 2, …       keys and values are copied to every question

A question is a request that ends when its prompt is prefilled and its answers' tokens have been through the model, all
in one pass, in which none of them sees another. The log-probability of an answer is the sum of its tokens', the end of
the answer included, so that "red" and "red star" can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longview.messages import Message, Part, Receipt
from longview.models.base import IGNORED, Processor


@dataclass(frozen=True)
class Question:
    """A question about a conversation, behind its last message, and the answers that are scored; without parts, answers
    to the last message itself."""

    parts: tuple[Part, ...]
    answers: tuple[str | tuple[int, ...], ...]
    """Texts, whose ends are scored with them; or tokens, which are all that is scored."""

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """The conversation with the question in its last message."""
        *before, last = conversation
        apart = self.parts and last.parts and last.parts[-1].type == "text"
        between = (Part("text", text="\n"),) if apart else ()
        return [*before, Message("user", (*last.parts, *between, *self.parts))]

    @property
    def media(self) -> list[Part]:
        return [part for part in self.parts if part.type != "text"]


@dataclass(frozen=True)
class Scores:
    """What the answers to a question scored."""

    logprobs: tuple[float, ...]
    """The log-probability of each."""
    receipt: Receipt


def answer_tokens(processor: Processor, answer: str) -> list[int]:
    """The tokens that the model writes for an answer, up to its end; as in training, so that they are the family's."""
    messages = [Message.of("user", "?"), Message.of("assistant", answer)]
    inputs = processor.prepare(messages, [], train=True).text_inputs
    learned = inputs["input_ids"][0][inputs["labels"][0] != IGNORED].tolist()
    ends = [number for number, token in enumerate(learned) if token in processor.end_tokens]
    return learned[: ends[0] + 1] if ends else learned


@dataclass
class AnswerPass:
    """Tokens of several rows' answers for one pass behind rows of these lengths; padded to one length, T.

    None of the answers sees another, and none sees what is behind its own row:

        row 1   ▓▓▓▓▓▓▓▓▓▓░░░░  yes─no──        row 2   ▓▓▓▓▓▓▓▓▓▓▓▓▓▓  red─dark blue─
    """

    lengths: Sequence[int]
    answers: list[tuple[int, int, Sequence[int]]]
    """Row, number of the answer, and its tokens, at least two: all but the last are read."""

    @cached_property
    def spans(self) -> list[slice]:
        """Where in its row's tokens each answer is."""
        used = [0] * len(self.lengths)
        found = []
        for row, _, tokens in self.answers:
            found.append(slice(used[row], used[row] + len(tokens) - 1))
            used[row] = found[-1].stop
        return found

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids (B, T), their positions (B, T), and what each sees of the rows and of the tokens, (B, T, L + T)."""
        longest, length = max(self.lengths), max(span.stop for span in self.spans)
        ids = torch.zeros(len(self.lengths), length, dtype=torch.long)
        positions = ids + torch.tensor(self.lengths)[:, None]
        visible = torch.zeros(len(self.lengths), length, longest + length, dtype=torch.bool)
        for row, row_length in enumerate(self.lengths):
            visible[row, :, :row_length] = True
        for (row, _, tokens), span in zip(self.answers, self.spans, strict=True):
            count = len(tokens) - 1
            ids[row, span] = torch.tensor(tokens[:-1])
            positions[row, span] += torch.arange(count)
            before = torch.ones(count, count, dtype=torch.bool).tril()
            visible[row, span, longest + span.start : longest + span.stop] = before
        return ids.to(device), positions.to(device), visible.to(device)

    def logprobs(self, logits: Tensor) -> list[float]:
        """The log-probability of each answer's tokens behind its first, of logits (B, T, V)."""
        rows: list[int] = []
        places: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for number, ((row, _, tokens), span) in enumerate(zip(self.answers, self.spans, strict=True)):
            rows += [row] * (len(tokens) - 1)
            places += range(span.start, span.stop)
            targets += tokens[1:]
            owners += [number] * (len(tokens) - 1)
        chosen = logits[rows, places].float().log_softmax(-1)
        each = chosen.gather(1, torch.tensor(targets, device=chosen.device)[:, None])[:, 0].double().cpu()
        return torch.zeros(len(self.answers), dtype=torch.float64).index_add_(0, torch.tensor(owners), each).tolist()


def passes_of(
    lengths: Sequence[int], answers: Sequence[Sequence[Sequence[int]]], max_positions: int
) -> list[AnswerPass]:
    """The passes that the answers of each row take, of about so many positions in all rows at most.

    Args:
        answers: By row; answers of one token need no pass.
    """
    most = max(1, max_positions // len(lengths))
    passes: list[AnswerPass] = []
    used: list[list[int]] = []
    for row, of_row in enumerate(answers):
        current = 0
        for number, tokens in enumerate(of_row):
            more = len(tokens) - 1
            if not more:
                continue
            if current < len(used) and used[current][row] and used[current][row] + more > most:
                current += 1
            if current == len(passes):
                passes.append(AnswerPass(lengths, []))
                used.append([0] * len(lengths))
            passes[current].answers.append((row, number, tokens))
            used[current][row] += more
    return passes
