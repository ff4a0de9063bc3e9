"""Linear probes: throwaway layers that read hidden states during training, and what each of them is held to.

    block p      at each placeholder: the labels of its picture, and its number        `placeholder_loss`
                 or, of scenes in text, where a fact has been stated: that fact        `fact_loss`
    block p + 1  before each answer: the names and the number in the question          `question_loss`
    block p + 2  before each answer: the labels of the picture it is about             `picture_loss`
    block p + 3  before each answer: where what the question names stands              `pointer_loss`

A model this small takes very long without them to find the way from "image 3" to the third picture. What is to be
matched is read by the same probe on both sides, so that it comes to be encoded alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.curriculum.labels import CONTENT_CLASSES, NAMES, PLACE_CLASSES, SIGN_CLASSES, names_held, names_in
from longview.curriculum.settings import MAX_PICTURES
from longview.world.questions import Question
from longview.world.scene_text import SceneText

POINTERS = (9, 9, MAX_PICTURES)
"""What can be pointed at: places of the first thing a question names, of the second, and pictures or frames."""
NUMBER_CLASSES = (10, 10, 10)
"""Of the number of a picture: its hundreds, tens and ones."""


class LinearProbes(nn.ModuleDict):
    """Linear layers that read hidden states (…, D); nothing of them is left after training."""

    def __init__(self, width: int, most: int = MAX_PICTURES, fine_width: int = 0) -> None:
        """Args:
        most: Pictures of a sample; numbers above `MAX_PICTURES` are read digit by digit.
        fine_width: Of the features of a tower of high resolution; 0: there is none.
        """
        self.number_classes = NUMBER_CLASSES if most > MAX_PICTURES else (MAX_PICTURES,)
        sizes = {
            "mean": sum(CONTENT_CLASSES),
            "place": sum(PLACE_CLASSES),
            "placeholder": sum(CONTENT_CLASSES),
            "number": sum(self.number_classes),
            "names": len(NAMES),
            "picture": sum(CONTENT_CLASSES),
            "pointer": sum(POINTERS),
            "cell": 9,
        }
        super().__init__({name: nn.Linear(width, size) for name, size in sizes.items()})
        if fine_width:
            self["fine"] = nn.Linear(fine_width, sum(SIGN_CLASSES))

    def logits(self, name: str, hidden: Tensor) -> Tensor:
        """What one of the probes makes of hidden states, which are normalised first."""
        return self[name](functional.rms_norm(hidden, hidden.shape[-1:]))

    def number_loss(self, hidden: Tensor, numbers: Tensor) -> Tensor:
        """Cross-entropy of numbers of pictures, from 1 (N,), at hidden states (N, …, D)."""
        logits = self.logits("number", hidden).flatten(0, -2)
        numbers = numbers.repeat_interleave(len(logits) // len(numbers))
        targets = numbers[:, None] - 1 if len(self.number_classes) == 1 else digits(numbers)
        return label_loss(logits, targets, self.number_classes)


class FactToken(NamedTuple):
    """A token of a batch at which a description in text has completed a fact."""

    row: int
    position: int
    picture: int
    """Of the batch."""
    number: int
    """The picture's, from 0, among those of its row."""
    cell: int | None
    """Where the thing stands; None: it is a sign."""


class AskedQuestion(NamedTuple):
    """A question of a batch, and which picture of the batch it is about."""

    question: Question
    picture: int | None


def digits(numbers: Tensor) -> Tensor:
    """Numbers of pictures, from 1 (N,) → their hundreds, tens and ones (N, 3)."""
    return torch.stack([numbers // 100 % 10, numbers // 10 % 10, numbers % 10], dim=-1)


class AskedTargets(NamedTuple):
    """What the probes are to read before the answers of Q questions."""

    names: Tensor
    """Which of `NAMES` each question holds: (Q, names), 0 or 1."""
    numbers: Tensor
    """Of the picture that each names, (Q,), from 1; 0: it names none."""
    pictures: Tensor
    """Of the batch, that each is about, (Q,); −1: none alone."""
    meant: Tensor
    """The places and pictures that each points at, (Q, sum of `POINTERS`), 0 or 1."""
    matters: Tensor
    """And where it points at any, likewise."""


def placeholder_loss(probes: LinearProbes, hidden: Tensor, places: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
    """Cross-entropy of pictures' labels (N, 31) and numbers at their placeholders.

    The first placeholder is held to the first cells of its picture, the last one to the last cells and the sign; each
    to the picture's number in its row, and to the names of what it holds.

    Args:
        hidden: (B, T, D).
        places: Rows and positions of the placeholders, (N, W, 2).
        numbers: (N,), from 1; 0: the picture has none.
    """
    at = hidden[places[..., 0], places[..., 1]]  # (N, W, D)
    width = at.shape[1]
    share = [cell * width // 9 for cell in range(9)]
    logits = probes.logits("placeholder", at)
    columns = share * 3 + [width - 1] * 4  # which placeholder is held to each of the 31 labels
    chosen = torch.cat([logits[:, t, part] for t, part in zip(columns, _slices(CONTENT_CLASSES), strict=True)], dim=-1)
    number, known = hidden.new_zeros(()), numbers > 0
    if bool(known.any()):
        number = probes.number_loss(at if bool(known.all()) else at[known], numbers[known])
    held = torch.stack([names_held(labels, [c for c in range(9) if share[c] == t]) for t in range(width)], dim=1)
    names = functional.binary_cross_entropy_with_logits(probes.logits("names", at), held)
    return label_loss(chosen, labels, CONTENT_CLASSES) + width * (number + len(NAMES) * names)


def fact_ends(tokenizer: Any, row: Sequence[int], description: SceneText) -> list[int]:
    """The positions in a row of token ids at which each fact of a description is complete."""
    encoded = tokenizer(description.text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    begin = next(at for at in range(len(row)) if row[at : at + len(ids)] == ids)
    ends = {end: begin + at for at, (_, end) in enumerate(encoded["offset_mapping"])}
    return [ends[mention.end] for mention in description.mentions]


def fact_loss(probes: LinearProbes, hidden: Tensor, facts: Sequence[FactToken], labels: Tensor) -> Tensor:
    """Cross-entropy of the facts that a description in text has stated, where it has.

    The last token of a thing is held to its place, colour, shape and size, their names, and its picture's number; that
    of a sign to what the sign says.

    Args:
        hidden: (B, T, D).
        labels: Of the batch's pictures, (N, 31).
    """
    loss = hidden.new_zeros(())
    things = [(fact, fact.cell) for fact in facts if fact.cell is not None]
    if things:
        cells = torch.tensor([cell for _, cell in things], device=hidden.device)
        rows, positions, pictures, numbers = _columns([fact for fact, _ in things], hidden.device)
        at = hidden[rows, positions]  # (S, D)
        held = torch.stack([labels[pictures, cells + 9 * attribute] for attribute in range(3)], dim=1)  # (S, 3)
        names = torch.stack([names_held(labels[fact.picture, None], [cell])[0] for fact, cell in things])
        name = functional.binary_cross_entropy_with_logits(probes.logits("names", at), names)
        number = probes.number_loss(at, numbers + 1)
        cell = functional.cross_entropy(probes.logits("cell", at), cells)
        thing = label_loss(probes.logits("place", at), held, PLACE_CLASSES)
        loss = loss + 9 * (thing + cell + number + len(NAMES) * name)
    signs = [fact for fact in facts if fact.cell is None]
    if signs:
        rows, positions, pictures, _ = _columns(signs, hidden.device)
        logits = probes.logits("placeholder", hidden[rows, positions])[:, sum(CONTENT_CLASSES[:27]) :]
        loss = loss + label_loss(logits, labels[pictures, 27:], CONTENT_CLASSES[27:])
    return loss


def _columns(facts: Sequence[FactToken], device: torch.device) -> list[Tensor]:
    """Rows, positions, pictures and numbers, (S,) each."""
    return [torch.tensor(column, device=device) for column in zip(*(fact[:4] for fact in facts), strict=True)]


def asked_targets(asked: Sequence[AskedQuestion]) -> AskedTargets:
    """What the probes are to read before the answers of some questions."""
    meant, matters = torch.zeros(2, len(asked), sum(POINTERS))
    offsets = [0, *itertools.accumulate(POINTERS)]
    for row, (question, _) in enumerate(asked):
        for places, begin, end in zip(
            (question.cells, question.other_cells, question.found_in), offsets, offsets[1:], strict=False
        ):
            if places is not None and all(place < end - begin for place in places):
                matters[row, begin:end] = 1
                meant[row, [begin + place for place in places]] = 1
    return AskedTargets(
        torch.tensor([names_in(question.text) for question, _ in asked]),
        torch.tensor([question.number for question, _ in asked]),
        torch.tensor([-1 if picture is None else picture for _, picture in asked]),
        meant,
        matters,
    )


def question_loss(probes: LinearProbes, hidden: Tensor, asked: AskedTargets) -> Tensor:
    """Cross-entropy of the names and the number in each question, at hidden states before its answer (Q, D)."""
    loss = len(NAMES) * functional.binary_cross_entropy_with_logits(probes.logits("names", hidden), asked.names)
    numbered = asked.numbers > 0
    if bool(numbered.any()):
        loss = loss + probes.number_loss(hidden[numbered], asked.numbers[numbered])
    return loss


def picture_loss(probes: LinearProbes, hidden: Tensor, asked: AskedTargets, labels: Tensor) -> Tensor:
    """Cross-entropy of the labels, of (N, 31), of the picture that each question is about, before its answer (Q, D)."""
    meant = asked.pictures >= 0
    if not bool(meant.any()):
        return hidden.new_zeros(())
    logits = probes.logits("picture", hidden[meant])
    return label_loss(logits, labels[asked.pictures[meant]], CONTENT_CLASSES)


def pointer_loss(probes: LinearProbes, hidden: Tensor, asked: AskedTargets) -> Tensor:
    """Cross-entropy of the places and pictures that matter to each question, before its answer (Q, D)."""
    logits = probes.logits("pointer", hidden)
    missed = functional.binary_cross_entropy_with_logits(logits, asked.meant, reduction="none")
    return (missed * asked.matters).sum() / len(asked.names)


def label_loss(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Cross-entropy of logits (N, sum of `classes`) against labels (N, len(classes)), summed over the labels."""
    parts = logits.split(list(classes), dim=-1)
    return torch.stack([functional.cross_entropy(part, labels[:, i]) for i, part in enumerate(parts)]).sum()


def _slices(classes: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(classes))
    return [slice(end - size, end) for size, end in zip(classes, ends, strict=True)]
