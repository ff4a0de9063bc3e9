"""Long films of many shots, one of them short and the only one that can answer the question: a needle.

▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭│▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭     240 s, 40 shots of 6 s
                            needle: 2 s, under 1 % of the film
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from longview.world.naming import facts_held, facts_named
from longview.world.questions import Question, ask_about_picture
from longview.world.scenes import Picture, draw_picture

SHOTS = 40
SHOT_SECONDS = 6
NEEDLE_SECONDS = 2
KINDS = ("colour", "shape", "size", "position")


@dataclass(frozen=True)
class Shot:
    """A picture that stands still for some seconds."""

    picture: Picture
    seconds: int


@dataclass(frozen=True)
class Film:
    """Shots one after another; what `question` names is held by the shot `needle` alone."""

    shots: tuple[Shot, ...]
    needle: int
    question: Question

    @property
    def begin(self) -> int:
        """Second at which the needle begins."""
        return sum(shot.seconds for shot in self.shots[: self.needle])

    @property
    def end(self) -> int:
        """Second at which the needle is gone."""
        return self.begin + self.shots[self.needle].seconds


def draw_film(rng: random.Random, kind: str, held_out: bool = True, shots: int = SHOTS) -> Film:
    """A film whose needle is asked a question of a kind in `KINDS`; its pictures are from one side of the split.

    The needle cuts another shot in two, at any of its seconds, so that frames at even distances have no luck with it.
    """
    while True:
        needle = draw_picture(rng, held_out, max_things=2, sign_share=0.0)
        try:
            question = ask_about_picture(rng, needle, kind)
        except LookupError:  # this picture does not allow such a question
            continue
        named = facts_named(question.text)
        if named:
            break
    others: list[Picture] = []
    while len(others) < shots:
        picture = draw_picture(rng, held_out, max_things=3)
        if not named <= facts_held(picture):
            others.append(picture)
    where, cut = rng.randrange(shots), rng.randrange(1, SHOT_SECONDS)
    film = [Shot(picture, SHOT_SECONDS) for picture in others]
    film[where : where + 1] = [
        Shot(others[where], cut),
        Shot(needle, NEEDLE_SECONDS),
        Shot(others[where], SHOT_SECONDS - cut),
    ]
    return Film(tuple(film), where + 1, question)
