"""A random question about any scenes, and the vocabulary of all questions and answers."""

from __future__ import annotations

import functools
import random

from longview.world.questions.clips import ask_about_clip
from longview.world.questions.one_picture import Shares, ask_about_picture
from longview.world.questions.question import Question
from longview.world.questions.several_pictures import ask_about_pictures
from longview.world.scenes import Clip, Picture, Scene, draw_clip, draw_picture


def ask_about(rng: random.Random, *media: Scene, shares: Shares | None = None) -> Question:
    """A random question about one picture, several pictures, or one clip."""
    if len(media) == 1 and isinstance(media[0], Clip):
        return ask_about_clip(rng, media[0])
    pictures = [medium for medium in media if isinstance(medium, Picture)]
    if len(pictures) != len(media) or not media:
        raise ValueError("ask about one picture, several pictures, or one clip")
    if len(media) == 1:
        return ask_about_picture(rng, pictures[0], shares=shares)
    return ask_about_pictures(rng, pictures, shares=shares)


@functools.cache
def vocabulary(small_print: bool = False) -> frozenset[str]:
    """The words of many questions and answers, to build a tokenizer from; with those about small print, or without."""
    rng = random.Random(0)
    words: set[str] = set()
    share = 0.25 if small_print else 0.0
    for turn in range(6000):
        count = (1, 8, 0)[turn % 3]
        media: list[Scene] = [draw_picture(rng, print_share=share) for _ in range(count)] or [draw_clip(rng)]
        question = ask_about(rng, *media)
        for text in (question.text, question.answer):
            words.update("".join(letter if letter.isalpha() else " " for letter in text).split())
    return frozenset(words)
