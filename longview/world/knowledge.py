"""Knowledge about the world's things: a name for each colour and shape, which nothing in a picture tells.

    passage     ▣ a large red star    "It is called music."
    question    ▣ a small red star    "What is it called?"    music

Names are drawn anew for each knowledge base, so that a model has to read them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from longview.world.questions.question import Question
from longview.world.scenes import COLOURS, SHAPES, SIZES, WORDS, Picture, Thing, draw_thing, is_held_out

KINDS = tuple(itertools.product(COLOURS, SHAPES))
UNKNOWN = "not known"
"""The answer where no passage tells."""


@dataclass(frozen=True)
class Named:
    """What the things of a colour and shape are called."""

    colour: str
    shape: str
    name: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.colour, self.shape


def draw_names(rng: random.Random, count: int, kinds: Sequence[tuple[str, str]] = KINDS) -> list[Named]:
    """Different names for different kinds of things, `len(WORDS)` at most."""
    drawn = zip(rng.sample(kinds, count), rng.sample(WORDS, count), strict=True)
    return [Named(colour, shape, name) for (colour, shape), name in drawn]


def passage_text(rng: random.Random, named: Named, shown: bool) -> str:
    """What a passage says; with a picture beside it, it need not say of what."""
    if shown and rng.random() < 0.5:
        return f"It is called {named.name}."
    return f"The {named.colour} {named.shape} is called {named.name}."


def ask_name(rng: random.Random, named: Named, shown: bool) -> Question:
    """What a thing is called; with a picture beside it, the question does not say which."""
    whole = f"{named.colour} {named.shape}"
    which = rng.choice(("it", "this", "the thing in the picture", "the shape")) if shown else f"the {whole}"
    phrasings = (f"What is {which} called?", f"What is the name of {which}?", f"Tell me what {which} is called.")
    return Question("name", rng.choice(phrasings), named.name, WORDS)


def alone(kind: tuple[str, str], held_out: bool = False) -> list[tuple[str, int]]:
    """Sizes and cells in which a thing of a kind, alone in its picture, is on one side of the split."""
    drawn = {(size, cell): _alone(random.Random(0), kind, size, cell) for size in SIZES for cell in range(9)}
    return [look for look, picture in drawn.items() if is_held_out(picture) == held_out]


def draw_alone(rng: random.Random, kind: tuple[str, str], held_out: bool = False, count: int = 1) -> list[Picture]:
    """Pictures of a thing of a kind alone, from one side of the split; each of another size, or with it elsewhere.

    Raises:
        ValueError: there are not so many.
    """
    return [_alone(rng, kind, size, cell) for size, cell in rng.sample(alone(kind, held_out), count)]


def _alone(rng: random.Random, kind: tuple[str, str], size: str, cell: int) -> Picture:
    place = draw_thing(rng, cell)
    return Picture((Thing(*kind, size, place.x, place.y),))
