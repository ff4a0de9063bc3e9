"""What a stage of training minimises.

    contents    pixels ── encode ── features ── readers ── what stands where
    answers     a conversation ── forward ── the assistant's words,
                and, with probes, what the text stream knows on its way:

        block p      at each placeholder: its picture's contents and number        seeing
                     or, of scenes in words, where a thing was told: what it is
        block p + 1  before each answer: the names and the number in the question  understanding
        block p + 2  before each answer: the contents of the picture it is about   finding
        block p + 3  before each answer: where what the question names stands      pointing

The probes are throwaway linear readers. A model this small finds the way from "image 3" to the third picture only very
long without them; what is to be matched is read by the same reader on both sides, so that it comes to be spelt alike.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from longview.curriculum.pool import (
    CONTENT_CLASSES,
    NAMES,
    PLACE_CLASSES,
    Pool,
    draw_kind,
    draw_sample,
    names_held,
    names_in,
)
from longview.train.recipe import MAX_PICTURES, Stage
from longview.world.questions import Question
from longview.world.scene_text import SceneText

ASKED_WEIGHT = 5.0  # of what stands before an answer, against the 36 facts at a placeholder
FOUND_WEIGHT = 0.1  # of the 31 facts that are found, against the question itself
POINTED_WEIGHT = 0.5  # of the places and pictures that are pointed at, against the question itself
POINTED = (9, 9, MAX_PICTURES)
"""What can be pointed at: places of the first thing a question names, of the second, and pictures or frames."""

LOOK_AT = 64  # pictures at a time
SEEING = {"vision", "connector"}
"""Parts of a model that decide what it sees in a picture; where none of them learns, each picture is seen but once."""

Notes = dict[str, Any]
"""What a step tells the log."""


class Readers(nn.ModuleDict):
    """Linear layers that read hidden states (…, D) during training, and are thrown away after it."""

    def __init__(self, width: int) -> None:
        sizes = {
            "mean": sum(CONTENT_CLASSES),
            "place": sum(PLACE_CLASSES),
            "placeholder": sum(CONTENT_CLASSES),
            "number": MAX_PICTURES,
            "names": len(NAMES),
            "found": sum(CONTENT_CLASSES),
            "pointed": sum(POINTED),
            "cell": 9,
        }
        super().__init__({name: nn.Linear(width, size) for name, size in sizes.items()})

    def read(self, name: str, hidden: Tensor) -> Tensor:
        return self[name](functional.rms_norm(hidden, hidden.shape[-1:]))


class Told(NamedTuple):
    """A token of a batch that ends telling of something."""

    row: int
    position: int
    picture: int
    """Of the batch."""
    number: int
    """The picture's, from 0, among those of its row."""
    cell: int | None
    """Where the thing stands; None: it is a sign."""


class Asked(NamedTuple):
    """A question of a batch, and which picture of the batch it is about."""

    question: Question
    picture: int | None


def contents_loss(
    model: Any, processor: Any, readers: Readers, pool: Pool, stage: Stage, rng: random.Random
) -> tuple[Tensor, Notes]:
    """What the features of random pictures do not tell of their contents.

    A place must tell its colour and shape in the same way as the others, as a search for "the circle" has to find it
    anywhere; their mean must tell what the sign says. For the objective `contents` it must also keep apart what stands
    where, as one look at a whole picture has to; where places take turns in the language sequence (`places`), their
    order says that.
    """
    chosen = [rng.randrange(len(pool.pictures)) for _ in range(stage.batch)]
    images = [Image.fromarray(pool.pixels[index]) for index in chosen]
    features = model.encode(**processor.pixel_inputs(images))  # (N, P, D)
    side = math.isqrt(features.shape[1])
    grid = features.transpose(1, 2).unflatten(-1, (side, side))
    places = functional.adaptive_avg_pool2d(grid, 3).flatten(2).transpose(1, 2)  # (N, 9, D)
    contents = pool.contents[chosen]
    held = contents[:, :27].view(-1, 3, 9).transpose(1, 2).flatten(0, 1)  # (N·9, 3)
    if stage.objective == "places":  # as the language model will: it normalises what it reads
        features, places = (functional.rms_norm(hidden, hidden.shape[-1:]) for hidden in (features, places))
    told = readers["mean"](features.mean(1))
    signs = read_loss(told[:, -sum(CONTENT_CLASSES[27:]) :], contents[:, 27:], CONTENT_CLASSES[27:])
    whole = read_loss(told, contents, CONTENT_CLASSES) if stage.objective == "contents" else signs
    each = read_loss(readers["place"](places.flatten(0, 1)), held, PLACE_CLASSES)
    shown = {"samples": stage.batch, "pictures": stage.batch}
    return whole + 9 * each, shown | {"each": round(each.item(), 4), "signs": round(signs.item(), 4)}


@torch.no_grad()
def look_once(model: Any, processor: Any, pool: Pool) -> Tensor:
    """The features of all pictures of a pool, (N, P, D)."""
    features: list[Tensor] = []
    for begin in range(0, len(pool.pixels), LOOK_AT):
        images = [Image.fromarray(pixels) for pixels in pool.pixels[begin : begin + LOOK_AT]]
        features.append(model.encode(**processor.pixel_inputs(images)))
    return torch.cat(features)


def answers_loss(
    model: Any, processor: Any, readers: Readers, pool: Pool, stage: Stage, rng: random.Random
) -> tuple[Tensor, Notes]:
    """Next-token loss on the assistant's words in random conversations, and the probes' losses."""
    kind = draw_kind(rng, stage.mix)
    rows: list[Any] = []
    indices: list[int] = []
    asked: list[Asked] = []
    told: list[Told] = []
    tokens = 0
    while tokens < stage.tokens:
        sample = draw_sample(rng, pool, stage, kind)
        row = processor.prepare(sample.messages, sample.media, train=True)
        rows.append(row if pool.features is None else replace(row, encoder_inputs=()))  # what was seen needs no pixels
        for question in sample.questions:
            about = question.about or int(kind == "1")
            asked.append(Asked(question, len(indices) + about - 1 if about else None))
        if sample.told is not None:
            ends = mentions_in(processor.tokenizer, row.text_inputs["input_ids"][0].tolist(), sample.told)
            for end, mention in zip(ends, sample.told.mentions, strict=True):
                told.append(Told(len(rows) - 1, end, len(indices) + mention.picture, mention.picture, mention.cell))
        indices += sample.indices
        tokens += rows[-1].length
    batch = processor.collate(rows)
    arguments = model.embed_pictures(batch, features=None if pool.features is None else pool.features[indices])
    labels = arguments.pop("labels")[:, 1:]
    output = model(**arguments, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    # Three tokens in four are not learned; logits of them would be for nothing.
    learned = labels != -100
    logits = model.get_output_embeddings()(output.hidden_states[-1][:, :-1][learned])
    loss = functional.cross_entropy(logits, labels[learned])
    shown = len(indices) if stage.objective == "answers" else 0
    notes: Notes = {"samples": len(rows), "tokens": tokens, "pictures": shown}
    notes |= {"kind": kind, "answers": round(loss.item(), 4)}
    if not stage.probe_layer:
        return loss, notes
    seeing, understanding, finding, pointing = output.hidden_states[stage.probe_layer :][:4]
    contents = pool.contents[indices]
    if stage.objective == "answers":
        seen = places_loss(readers, seeing, processor.placeholder_positions(batch), contents)
    else:
        seen = told_loss(readers, seeing, told, contents)
    begins = learned & ~functional.pad(learned, (1, 0))[:, :-1]  # (B, T - 1): the last token before each answer
    understood = question_loss(readers, understanding[:, :-1][begins], asked)
    found = finding_loss(readers, finding[:, :-1][begins], asked, contents)
    pointed = pointing_loss(readers, pointing[:, :-1][begins], asked)
    probes = {"probe": seen, "asked": understood, "found": found, "pointed": pointed}
    notes |= {name: round(value.item(), 4) for name, value in probes.items()}
    probed = seen + ASKED_WEIGHT * (understood + FOUND_WEIGHT * found + POINTED_WEIGHT * pointed)
    return loss + stage.probe_weight * probed, notes


def places_loss(readers: Readers, hidden: Tensor, places: Tensor, contents: Tensor) -> Tensor:
    """What the hidden states (B, T, D) at the pictures' places (N, W, 2) do not tell of their contents and numbers.

    The first place tells the first cells of its picture's contents (N, 31), the last one the last cells and the sign;
    each tells the picture's number in its row, and the names of what it holds.
    """
    at = hidden[places[..., 0], places[..., 1]]  # (N, W, D)
    width = at.shape[1]
    share = [cell * width // 9 for cell in range(9)]
    logits = readers.read("placeholder", at)
    tellers = share * 3 + [width - 1] * 4  # which place tells each of the 31 choices
    told = torch.cat([logits[:, t, part] for t, part in zip(tellers, _slices(CONTENT_CLASSES), strict=True)], dim=-1)
    rows = places[:, 0, 0].tolist()
    numbers = torch.tensor([rows[:index].count(row) for index, row in enumerate(rows)])
    miscounted = functional.cross_entropy(readers.read("number", at).flatten(0, 1), numbers.repeat_interleave(width))
    held = torch.stack([names_held(contents, [c for c in range(9) if share[c] == t]) for t in range(width)], dim=1)
    unnamed = functional.binary_cross_entropy_with_logits(readers.read("names", at), held)
    return read_loss(told, contents, CONTENT_CLASSES) + width * (miscounted + len(NAMES) * unnamed)


def mentions_in(tokenizer: Any, row: Sequence[int], scenes: SceneText) -> list[int]:
    """Where in a row of tokens each mention of a scene text ends."""
    encoded = tokenizer(scenes.text, add_special_tokens=False, return_offsets_mapping=True)
    words = encoded["input_ids"]
    begin = next(at for at in range(len(row)) if row[at : at + len(words)] == words)
    ends = {end: begin + at for at, (_, end) in enumerate(encoded["offset_mapping"])}
    return [ends[mention.end] for mention in scenes.mentions]


def told_loss(readers: Readers, hidden: Tensor, told: Sequence[Told], contents: Tensor) -> Tensor:
    """What the hidden states (B, T, D) do not tell of what the words up to them told; contents (N, 31).

    A thing's last word tells its place, colour, shape and size, their names, and its picture's number; that of a sign,
    what it says.
    """
    loss = hidden.new_zeros(())
    things = [(each, each.cell) for each in told if each.cell is not None]
    if things:
        cells = torch.tensor([cell for _, cell in things])
        rows, positions, pictures, numbers = _columns([each for each, _ in things])
        at = hidden[rows, positions]  # (S, D)
        held = torch.stack([contents[pictures, cells + 9 * attribute] for attribute in range(3)], dim=1)  # (S, 3)
        names = torch.stack([names_held(contents[each.picture, None], [cell])[0] for each, cell in things])
        unnamed = functional.binary_cross_entropy_with_logits(readers.read("names", at), names)
        miscounted = functional.cross_entropy(readers.read("number", at), numbers)
        misplaced = functional.cross_entropy(readers.read("cell", at), cells)
        each_thing = read_loss(readers.read("place", at), held, PLACE_CLASSES)
        loss = loss + 9 * (each_thing + misplaced + miscounted + len(NAMES) * unnamed)
    signs = [each for each in told if each.cell is None]
    if signs:
        rows, positions, pictures, _ = _columns(signs)
        logits = readers.read("placeholder", hidden[rows, positions])[:, sum(CONTENT_CLASSES[:27]) :]
        loss = loss + read_loss(logits, contents[pictures, 27:], CONTENT_CLASSES[27:])
    return loss


def _columns(told: Sequence[Told]) -> list[Tensor]:
    """Rows, positions, pictures and numbers, (S,) each."""
    return [torch.tensor(column) for column in zip(*(each[:4] for each in told), strict=True)]


def question_loss(readers: Readers, hidden: Tensor, asked: Sequence[Asked]) -> Tensor:
    """What the text stream before each answer (Q, D) does not tell of the names and the number in the question."""
    names = torch.tensor([names_in(question.text) for question, _ in asked])
    loss = len(NAMES) * functional.binary_cross_entropy_with_logits(readers.read("names", hidden), names)
    numbered = [index for index, (question, _) in enumerate(asked) if question.number]
    if numbered:
        numbers = torch.tensor([asked[index].question.number - 1 for index in numbered])
        loss = loss + functional.cross_entropy(readers.read("number", hidden[numbered]), numbers)
    return loss


def finding_loss(readers: Readers, hidden: Tensor, asked: Sequence[Asked], contents: Tensor) -> Tensor:
    """What the text stream before each answer (Q, D) does not tell of the picture it is about; contents (N, 31)."""
    meant = [(index, picture) for index, (_, picture) in enumerate(asked) if picture is not None]
    if not meant:
        return hidden.new_zeros(())
    rows, pictures = (list(column) for column in zip(*meant, strict=True))
    return read_loss(readers.read("found", hidden[rows]), contents[pictures], CONTENT_CLASSES)


def pointing_loss(readers: Readers, hidden: Tensor, asked: Sequence[Asked]) -> Tensor:
    """What the text stream before each answer (Q, D) does not tell of where, and in which pictures, to look."""
    meant, matters = torch.zeros(2, len(asked), sum(POINTED))
    offsets = [0, *itertools.accumulate(POINTED)]
    for row, (question, _) in enumerate(asked):
        for places, begin, end in zip(
            (question.cells, question.other_cells, question.found_in), offsets, offsets[1:], strict=False
        ):
            if places is not None:
                matters[row, begin:end] = 1
                meant[row, [begin + place for place in places]] = 1
    missed = functional.binary_cross_entropy_with_logits(readers.read("pointed", hidden), meant, reduction="none")
    return (missed * matters).sum() / len(asked)


def read_loss(logits: Tensor, contents: Tensor, classes: Sequence[int]) -> Tensor:
    """Cross-entropy of logits (N, sum of `classes`) against the right choices (N, len(classes)), summed."""
    parts = logits.split(list(classes), dim=-1)
    return torch.stack([functional.cross_entropy(part, contents[:, i]) for i, part in enumerate(parts)]).sum()


def _slices(classes: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(classes))
    return [slice(end - size, end) for size, end in zip(classes, ends, strict=True)]
