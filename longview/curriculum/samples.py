"""Samples composed from the pool: conversations about pictures, clips and films of it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longview.curriculum.pool import Pool
from longview.curriculum.settings import MAX_PICTURES, WorldSettings
from longview.media.medium import Medium
from longview.messages import Message, Part, ask
from longview.world.naming import facts_held, facts_named
from longview.world.needle import KINDS as NEEDLE_KINDS
from longview.world.questions import Question, ask_about, ask_about_picture, describe
from longview.world.scene_text import SceneText, scene_text


@dataclass(frozen=True)
class WorldSample:
    """A conversation about some media, which pictures of the pool it shows, and the questions in it."""

    messages: list[Message]
    media: list[Medium]
    indices: list[int]
    questions: list[Question]
    description: SceneText | None = None
    """The scenes as text, with which the first message begins, in place of media."""


def draw_sample(
    rng: random.Random, pool: Pool, settings: WorldSettings, kind: str, in_text: bool = False
) -> WorldSample:
    """A conversation of the stage's length about `kind`: "1" … "8" pictures, a "clip", or a "film" of many scenes.

    Args:
        in_text: The scenes are described in text and not shown.
    """
    if kind == "clip":
        clip, first = rng.choice(pool.clips)
        indices = list(range(first, first + len(clip.frames)))
        questions = [ask_about(rng, clip) for _ in range(min(2, settings.turns))]
    elif kind == "film":
        indices, questions = _draw_film(rng, pool, min(2, settings.turns))
    else:
        indices, questions = _draw_pictures(rng, pool, settings, int(kind))
    if in_text:
        description = scene_text(*(pool.pictures[index] for index in indices))
        return WorldSample(converse(rng, questions, text=description.text), [], indices, questions, description)
    if kind in ("clip", "film"):
        return WorldSample(converse(rng, questions, ["video"]), [pool.medium(*indices)], indices, questions)
    media = [pool.medium(index) for index in indices]
    return WorldSample(converse(rng, questions, ["image"] * len(indices)), media, indices, questions)


def _draw_pictures(
    rng: random.Random, pool: Pool, settings: WorldSettings, count: int
) -> tuple[list[int], list[Question]]:
    """Some pictures, and questions about one of them or all."""
    choice = pool.simple if rng.random() < settings.simple else range(pool.stills)
    indices = [rng.choice(choice) for _ in range(count)]
    pictures = [pool.pictures[index] for index in indices]
    questions = []
    if len(pictures) > 1 and rng.random() < settings.captions:
        numbers = rng.sample(range(len(pictures)), min(3, len(pictures), settings.turns))
        questions = [
            Question(
                "description of one", f"What is in image {n + 1}?", describe(pictures[n]), number=n + 1, about=n + 1
            )
            for n in numbers
        ]
    questions += [ask_about(rng, *pictures, shares=settings.kinds) for _ in range(settings.turns - len(questions))]
    return indices, questions


def _draw_film(rng: random.Random, pool: Pool, turns: int) -> tuple[list[int], list[Question]]:
    """Pictures that are shown one after another, and questions about what stands in one of them alone."""
    questions: list[Question] = []
    while not questions:
        indices = [rng.randrange(pool.stills) for _ in range(MAX_PICTURES)]
        pictures = [pool.pictures[index] for index in indices]
        for _ in range(10 * turns):
            shown = rng.randrange(MAX_PICTURES)
            with contextlib.suppress(LookupError):  # this picture does not allow such a question
                question = ask_about_picture(rng, pictures[shown], rng.choice(NEEDLE_KINDS))
                named = facts_named(question.text)
                if named and sum(named <= facts_held(picture) for picture in pictures) == 1:
                    questions.append(replace(question, about=shown + 1, found_in=(shown,)))
    return indices, questions[:turns]


def converse(
    rng: random.Random, questions: Sequence[Question], media: Sequence[str] = (), text: str = ""
) -> list[Message]:
    """Questions with their answers as a conversation; the first carries the media, or the text in place of them.

    People do not always type neatly.
    """
    messages: list[Message] = []
    for question in questions:
        asked = question.text
        if rng.random() < 0.15:
            asked = asked.lower()
        if rng.random() < 0.15:
            asked = asked.rstrip("?.")
        if text and not messages:
            asked = f"{text}\n{asked}"
        parts = [Part(medium) for medium in media] if not messages else []  # type: ignore[arg-type]
        messages += [ask(asked, *parts), Message.of("assistant", question.answer)]
    return messages


def draw_kind(rng: random.Random, mix: dict[str, float]) -> str:
    return rng.choices(list(mix), list(mix.values()))[0]
