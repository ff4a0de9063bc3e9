"""Needle-in-a-haystack videos: many shots, of which a short one, the needle, is the only one that answers the question.

▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭│▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭▭     240 s, 40 shots of 6 s
                            needle: 2 s, under 1 % of the video
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
    """A still picture, shown for some seconds."""

    picture: Picture
    seconds: int


@dataclass(frozen=True)
class NeedleVideo:
    """Shots one after another; what `question` names is shown by the shot `needle` alone."""

    shots: tuple[Shot, ...]
    needle: int
    question: Question

    @property
    def begin(self) -> int:
        """Second at which the needle begins."""
        return sum(shot.seconds for shot in self.shots[: self.needle])

    @property
    def end(self) -> int:
        """Second at which the needle ends."""
        return self.begin + self.shots[self.needle].seconds


def draw_needle_video(rng: random.Random, kind: str, held_out: bool = True, shots: int = SHOTS) -> NeedleVideo:
    """A random video, from one side of the split, with a question of a kind in `KINDS` about its needle.

    The needle cuts another shot in two, at any of its seconds, so that uniform frames hit it by chance alone.
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
    sequence = [Shot(picture, SHOT_SECONDS) for picture in others]
    sequence[where : where + 1] = [
        Shot(others[where], cut),
        Shot(needle, NEEDLE_SECONDS),
        Shot(others[where], SHOT_SECONDS - cut),
    ]
    return NeedleVideo(tuple(sequence), where + 1, question)
