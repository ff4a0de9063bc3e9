"""Samples composed from the pool: conversations about pictures, clips and films of it."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longview.curriculum.knowledge import (
    MOST_PIECES,
    Asked,
    Piece,
    conversation,
    draw_names_known,
    draw_names_told,
    scenes_known,
)
from longview.curriculum.pool import Pool, bits_of
from longview.curriculum.settings import MAX_PICTURES, WorldSettings
from longview.media.medium import Medium
from longview.messages import Message, Part, ask, numbered
from longview.world.naming import facts_held, facts_named
from longview.world.needle import KINDS as NEEDLE_KINDS
from longview.world.questions import Question, ask_about, ask_about_one_of, ask_about_picture, describe, which_image
from longview.world.questions.several_pictures import ORDINALS
from longview.world.scene_text import SceneText, scene_text
from longview.world.scenes import COLOURS, SHAPES

LEFT_OUT = 0.5
"""Share of the samples of many pictures whose numbers have gaps, where the stage wants that: a picture is then found by
all digits of its number, and in no other way."""
NAMED = 0.35
"""Share of the questions about many pictures that name theirs by what stands in it, as long as there is such a one."""


@dataclass(frozen=True)
class WorldSample:
    """A conversation about some media, which pictures of the pool it shows, and the questions in it."""

    messages: list[Message]
    media: list[Medium]
    indices: list[int]
    questions: list[Question]
    description: SceneText | None = None
    """The scenes as text, with which the first message begins, in place of media."""
    numbers: Sequence[int] = ()
    """What the pictures are called, where that is not 1, 2, …"""


def draw_sample(
    rng: random.Random, pool: Pool, settings: WorldSettings, kind: str, in_text: bool = False, count: int = MAX_PICTURES
) -> WorldSample:
    """A conversation of the stage's length about `kind`: "1" … "8" pictures, "many" that are numbered, one that is
    shown "close", a "clip", a "film" of many scenes, "knowledge" before a question, or "passages" of text alone.

    Args:
        in_text: The scenes are described in text and not shown.
        count: Pictures of many, or of a film.
    """
    numbers: Sequence[int] = ()
    if kind == "clip":
        clip, first = rng.choice(pool.clips)
        indices = list(range(first, first + len(clip.frames)))
        questions = [ask_about(rng, clip) for _ in range(min(2, settings.turns))]
    elif kind == "film" and count == MAX_PICTURES:
        indices, questions = _draw_film(rng, pool, min(2, settings.turns))
    elif kind == "film":
        indices, questions = _draw_named(rng, pool, count, min(3, settings.turns), numbered=False)
    elif kind == "knowledge":
        return WorldSample(*conversation(pool, *_draw_knowledge(rng, pool, min(3, settings.turns))))
    elif kind == "passages":
        return WorldSample(*conversation(pool, *draw_names_told(rng, settings.turns)))
    elif kind == "many":
        indices, questions = _draw_many(rng, pool, settings, count)
        if count > 1 and settings.numbers and not in_text and rng.random() < LEFT_OUT:
            numbers = sorted(rng.sample(range(1, settings.numbers + 1), count))
            questions = [_renumbered(question, numbers) for question in questions]
    elif kind == "close":
        indices = [rng.randrange(pool.first_close, len(pool.pictures))]
        questions = [ask_about(rng, pool.pictures[indices[0]], shares=settings.kinds) for _ in range(settings.turns)]
    else:
        indices, questions = _draw_pictures(rng, pool, settings, int(kind))
    if in_text:
        description = scene_text(*(pool.pictures[index] for index in indices))
        return WorldSample(converse(rng, questions, text=description.text), [], indices, questions, description)
    if kind in ("clip", "film"):
        return WorldSample(converse(rng, questions, ["video"]), [pool.medium(*indices)], indices, questions)
    media = [pool.medium(index) for index in indices]
    messages = converse(rng, questions, ["image"] * len(indices), numbers=numbers)
    return WorldSample(messages, media, indices, questions, numbers=numbers)


def draw_count(rng: random.Random, settings: WorldSettings, kind: str, step: int) -> int:
    """How many pictures samples of a kind hold, which all of a step share; as many of each order of magnitude."""
    least, most = {"many": (settings.least, settings.most), "film": (MAX_PICTURES, settings.frames)}.get(kind, (0, 0))
    if most <= MAX_PICTURES:
        return rng.randint(least, most) if kind == "many" else MAX_PICTURES
    grown = MAX_PICTURES * (most / MAX_PICTURES) ** min(1.0, step / max(1, settings.grow))
    return max(least, min(most, round(math.exp(rng.uniform(math.log(least), math.log(grown + 0.5))))))


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


def _draw_many(rng: random.Random, pool: Pool, settings: WorldSettings, count: int) -> tuple[list[int], list[Question]]:
    """Numbered pictures, and questions about one of them, which they name by its number or by what stands in it.

    The more pictures, the more questions: they are encoded once for all of them.
    """
    turns = settings.turns * (1 + (count > 16) + (count > 64))
    indices, named = _draw_named(rng, pool, count, 1 + (count > 2) + (count > 16))
    pictures = [pool.pictures[index] for index in indices]
    questions: list[Question] = []
    while len(questions) < turns:
        if named and rng.random() < NAMED:
            questions.append(named.pop())
        elif 1 < count <= MAX_PICTURES and rng.random() < 0.3:
            questions.append(ask_about(rng, *pictures, shares=settings.kinds))
        else:
            with contextlib.suppress(LookupError):
                questions.append(ask_about_one_of(rng, pictures, shares=settings.kinds))
    return indices, questions


def _renumbered(question: Question, numbers: Sequence[int]) -> Question:
    """A question about pictures that are called otherwise than 1, 2, …"""
    if question.kind == "which image":
        return replace(question, answer=str(numbers[question.about - 1]), choices=tuple(map(str, numbers)))
    if not question.number:
        return question
    called = numbers[question.number - 1]
    text = re.sub(r"(image|picture) \d+", rf"\g<1> {called}", question.text)
    if text == question.text:  # "the third image"
        text = re.sub(rf"the ({'|'.join(ORDINALS)}) (image|picture)", rf"\g<2> {called}", text, flags=re.IGNORECASE)
    return replace(question, text=text, number=called)


def _draw_named(
    rng: random.Random, pool: Pool, count: int, needles: int, numbered: bool = True
) -> tuple[list[int], list[Question]]:
    """Pictures, and questions that name what stands in one of them alone; at least one.

    The pictures that are asked about come first, then others that hold nothing of what is named.

    Args:
        numbered: The model is told their numbers, and may be asked for one.
    """
    chosen: list[tuple[int, Question]] = []
    forbidden = held = 0
    while len(chosen) < min(needles, count) and (not chosen or rng.random() < 0.98):
        index = rng.randrange(pool.stills)
        with contextlib.suppress(LookupError):  # this picture does not allow such a question
            question = ask_about_picture(rng, pool.pictures[index], rng.choice(NEEDLE_KINDS))
            bits = _bits_named(question.text)
            if bits and not bits & held and not pool.held[index] & forbidden:
                chosen.append((index, question))
                forbidden, held = forbidden | bits, held | pool.held[index]
    indices = [index for index, _ in chosen]
    tries = 0
    while len(indices) < count:
        index, tries = rng.randrange(pool.stills), tries + 1
        if not pool.held[index] & forbidden or tries > 100 * count:  # a small pool may have no such picture
            indices.append(index)
    order = rng.sample(range(count), count)  # which of them stands where
    questions = []
    for number, (_, question) in enumerate(chosen):
        place = order.index(number)
        if numbered and count > 1 and rng.random() < 0.4:
            name = min((fact for fact in facts_named(question.text) if _bits_of(fact)), key=len)
            name = name.removeprefix("small ").removeprefix("large ")
            questions.append(which_image(rng, name, place + 1, count))
        else:
            questions.append(replace(question, about=place + 1, found_in=(place,)))
    return [indices[number] for number in order], questions


def _draw_knowledge(rng: random.Random, pool: Pool, turns: int) -> tuple[list[Piece], list[Asked]]:
    """Pieces of knowledge, and questions: two in three are about names that passages tell."""
    if rng.random() < 2 / 3:
        return draw_names_known(rng, pool, turns)
    indices, questions = _draw_named(rng, pool, rng.randint(1, MOST_PIECES), turns, numbered=False)
    return scenes_known(rng, pool, indices, questions)


def _bits_named(text: str) -> int:
    """The colours, shapes and shapes of a colour that a question names, as `bits_of` numbers them."""
    return functools.reduce(operator.or_, map(_bits_of, facts_named(text)), 0)


def _bits_of(fact: str) -> int:
    """The same of one fact, in the form of `longview.world.naming`."""
    words = fact.split()
    colour = next((word for word in words if word in COLOURS), None)
    return bits_of(colour, next((word for word in words if word in SHAPES), None))


def converse(
    rng: random.Random,
    questions: Sequence[Question],
    media: Sequence[str] = (),
    text: str = "",
    numbers: Sequence[int] = (),
) -> list[Message]:
    """Questions with their answers as a conversation; the first carries the media, or the text in place of them.

    `numbers` are those of the media, if not 1, 2, …

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
        gaps = numbers and parts
        message = Message.of("user", *numbered(parts, numbers), asked) if gaps else ask(asked, *parts)
        messages += [message, Message.of("assistant", question.answer)]
    return messages


def draw_kind(rng: random.Random, mix: dict[str, float]) -> str:
    return rng.choices(list(mix), list(mix.values()))[0]
