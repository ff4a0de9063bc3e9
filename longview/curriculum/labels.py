"""What stands in a picture as class labels, which a probe can be held to; and the names that a question can use."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from longview.world.questions import plural
from longview.world.scenes import COLOURS, SHAPES, SIZES, WORDS, Picture

PLACE_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
CONTENT_CLASSES = (*(size for size in PLACE_CLASSES for _ in range(9)), 4, len(WORDS) + 1, 11, 11)
"""Numbers of classes of the 31 labels of a picture: colour, shape and size in each of nine places (0: none), the row of
the sign, its word, and its tens and ones."""
SIGN_CLASSES = CONTENT_CLASSES[27:]
"""Of the labels of the sign."""

NAMES = (*COLOURS, *SHAPES)
"""What a question can name and a picture can hold, wherever it stands."""


def names_in(text: str) -> list[float]:
    """Which of `NAMES` a text holds, 0 or 1 each; plurals count."""
    words = re.findall("[a-z]+", text.lower())
    return [float(any(word in (name, plural(name)) for word in words)) for name in NAMES]


def names_held(labels: Tensor, places: Sequence[int]) -> Tensor:
    """Which of `NAMES` stand in some places, from labels (N, 31): (N, names), 0 or 1."""
    held = torch.zeros(len(labels), len(COLOURS) + len(SHAPES) + 2, device=labels.device)
    for place in places:
        held.scatter_(1, labels[:, place, None], 1.0)
        held.scatter_(1, labels[:, 9 + place, None] + len(COLOURS) + 1, 1.0)
    nothing = (0, len(COLOURS) + 1)
    return held[:, [index for index in range(held.shape[1]) if index not in nothing]]


def labels_of(picture: Picture) -> list[int]:
    """The 31 labels of a picture, see `CONTENT_CLASSES`."""
    labels = [0] * len(CONTENT_CLASSES)
    for thing in picture.things:
        labels[thing.cell] = 1 + COLOURS.index(thing.colour)
        labels[9 + thing.cell] = 1 + SHAPES.index(thing.shape)
        labels[18 + thing.cell] = 1 + SIZES.index(thing.size)
    sign = picture.sign
    if sign:
        labels[27] = 1 + sign.row if sign.cell is None else 0
        if sign.is_number:
            labels[29:] = [1 + int(sign.text) // 10 if len(sign.text) > 1 else 0, 1 + int(sign.text) % 10]
        else:
            labels[28] = 1 + WORDS.index(sign.text)
    return labels
