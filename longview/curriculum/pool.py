"""The synthetic world as training data: a pool of painted scenes, and samples composed from it.

Pictures are painted, sent through JPEG and resized once, before training; a sample picks some and asks questions about
them. Step s of a stage draws from its own random stream, so that a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longview.media.medium import Frame, Medium
from longview.messages import Message, Part, ask
from longview.train.recipe import MAX_PICTURES, DataPart, Stage
from longview.world.naming import facts_held, facts_named
from longview.world.needle import KINDS as NEEDLE_KINDS
from longview.world.questions import Question, ask_about, ask_about_picture, describe, plural
from longview.world.render import render
from longview.world.scene_text import SceneText, scene_text
from longview.world.scenes import COLOURS, SHAPES, SIZES, WORDS, Clip, Picture, draw_clip, draw_picture

PLACE_CLASSES = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
CONTENT_CLASSES = (*(size for size in PLACE_CLASSES for _ in range(9)), 4, len(WORDS) + 1, 11, 11)
"""Sizes of the 31 choices that describe a picture: colour, shape and size in each of nine places (0: none), the row of
the sign, its word, and its tens and ones."""

NAMES = (*COLOURS, *SHAPES)
"""What a question can name and a picture can hold, wherever it stands."""


def names_in(text: str) -> list[float]:
    """Which of `NAMES` a text holds, 0 or 1 each; plurals count."""
    words = re.findall("[a-z]+", text.lower())
    return [float(any(word in (name, plural(name)) for word in words)) for name in NAMES]


def names_held(contents: Tensor, places: Sequence[int]) -> Tensor:
    """Which of `NAMES` stand in some places, from contents (N, 31): (N, names), 0 or 1."""
    held = torch.zeros(len(contents), len(COLOURS) + len(SHAPES) + 2)
    for place in places:
        held.scatter_(1, contents[:, place, None], 1.0)
        held.scatter_(1, contents[:, 9 + place, None] + len(COLOURS) + 1, 1.0)
    nothing = (0, len(COLOURS) + 1)
    return held[:, [index for index in range(held.shape[1]) if index not in nothing]]


def contents(picture: Picture) -> list[int]:
    """A picture as 31 choices, see `CONTENT_CLASSES`."""
    choices = [0] * len(CONTENT_CLASSES)
    for thing in picture.things:
        choices[thing.cell] = 1 + COLOURS.index(thing.colour)
        choices[9 + thing.cell] = 1 + SHAPES.index(thing.shape)
        choices[18 + thing.cell] = 1 + SIZES.index(thing.size)
    sign = picture.sign
    if sign:
        choices[27] = 1 + sign.row if sign.cell is None else 0
        if sign.is_number:
            choices[29:] = [1 + int(sign.text) // 10 if len(sign.text) > 1 else 0, 1 + int(sign.text) % 10]
        else:
            choices[28] = 1 + WORDS.index(sign.text)
    return choices


@dataclass
class Pool:
    """Painted scenes: stills first, then the frames of each clip."""

    pictures: list[Picture]
    pixels: np.ndarray  # (N, R, R, 3) uint8
    contents: Tensor  # (N, 31) int64
    stills: int
    clips: list[tuple[Clip, int]]  # and the index of its first frame
    features: Tensor | None = None  # (N, P, D), what a model that learns no more of seeing makes of the pixels

    def __post_init__(self) -> None:
        self.simple = [i for i in range(self.stills) if len(self.pictures[i].things) + bool(self.pictures[i].sign) == 1]

    def medium(self, *indices: int) -> Medium:
        """Some pixels as `longview.media` would have opened them; several frames make a video of one a second."""
        side, length = self.pixels.shape[1], len(indices)
        seconds = [None] if length == 1 else [float(second) for second in range(length)]
        frames = [
            Frame(Image.fromarray(self.pixels[index]), number, moment)
            for number, (index, moment) in enumerate(zip(indices, seconds, strict=True))
        ]
        kind, duration, fps = ("image", None, None) if length == 1 else ("video", float(length), 1.0)
        return Medium(kind, "world", frames, side, side, length, duration, fps, digest="")  # type: ignore[arg-type]


def paint_pool(
    part: DataPart, side: int, seed: int, held_out: bool = False, progress: Callable[[int, int], None] | None = None
) -> Pool:
    """Draw and paint scenes from one side of the split; the seed decides every pixel.

    Args:
        side: Of the pixels; 0: nothing is painted, for those who are told of the scenes in words.
    """
    rng = random.Random(f"pool {seed}")
    scenes: list[tuple[Picture, int]] = []
    for _ in range(part.pictures):
        simple = rng.random() < part.simple
        if simple:
            picture = draw_picture(rng, held_out, max_things=1, sign_share=0.0)
        else:
            picture = draw_picture(rng, held_out, sign_share=part.signs, print_share=part.prints)
        scenes.append((picture, rng.randrange(1 << 30)))
    clips = []
    for _ in range(part.clips):
        clip, paint = draw_clip(rng, held_out), rng.randrange(1 << 30)
        clips.append((clip, len(scenes)))
        scenes += [(frame, paint) for frame in clip.frames]
    pixels = np.empty((len(scenes), side, side, 3), dtype=np.uint8)
    for index, (picture, paint) in enumerate(scenes if side else ()):
        file = io.BytesIO()
        render(picture, paint).save(file, "JPEG", quality=rng.randint(50, 95))
        pixels[index] = np.asarray(Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        if progress and index % 500 == 0:
            progress(index, len(scenes))
    pictures = [picture for picture, _ in scenes]
    return Pool(pictures, pixels, torch.tensor([contents(p) for p in pictures]), part.pictures, clips)


@dataclass(frozen=True)
class Sample:
    """A conversation about some media, which pictures of the pool it shows, and the questions in it."""

    messages: list[Message]
    media: list[Medium]
    indices: list[int]
    questions: list[Question]
    told: SceneText | None = None
    """The scenes in words, which the first message begins with."""


def draw_sample(rng: random.Random, pool: Pool, stage: Stage, kind: str) -> Sample:
    """A conversation of the stage's length about `kind`: "1" … "8" pictures, a "clip", or a "film" of many scenes."""
    if kind == "clip":
        clip, first = rng.choice(pool.clips)
        indices = list(range(first, first + len(clip.frames)))
        questions = [ask_about(rng, clip) for _ in range(min(2, stage.turns))]
    elif kind == "film":
        indices, questions = _draw_film(rng, pool, min(2, stage.turns))
    else:
        indices, questions = _draw_pictures(rng, pool, stage, int(kind))
    if stage.objective == "words":
        told = scene_text(*(pool.pictures[index] for index in indices))
        return Sample(converse(rng, questions, told=told.text), [], indices, questions, told)
    if kind in ("clip", "film"):
        return Sample(converse(rng, questions, ["video"]), [pool.medium(*indices)], indices, questions)
    media = [pool.medium(index) for index in indices]
    return Sample(converse(rng, questions, ["image"] * len(indices)), media, indices, questions)


def _draw_pictures(rng: random.Random, pool: Pool, stage: Stage, count: int) -> tuple[list[int], list[Question]]:
    """Some pictures, and questions about one of them or all."""
    choice = pool.simple if rng.random() < stage.simple else range(pool.stills)
    indices = [rng.choice(choice) for _ in range(count)]
    pictures = [pool.pictures[index] for index in indices]
    questions = []
    if len(pictures) > 1 and rng.random() < stage.captions:
        numbers = rng.sample(range(len(pictures)), min(3, len(pictures), stage.turns))
        questions = [
            Question(
                "description of one", f"What is in image {n + 1}?", describe(pictures[n]), number=n + 1, about=n + 1
            )
            for n in numbers
        ]
    questions += [ask_about(rng, *pictures, shares=stage.kinds) for _ in range(stage.turns - len(questions))]
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
    rng: random.Random, questions: Sequence[Question], media: Sequence[str] = (), told: str = ""
) -> list[Message]:
    """Questions with their answers as a conversation; the first carries the media, or has them told in words.

    People do not always type neatly.
    """
    messages: list[Message] = []
    for question in questions:
        text = question.text
        if rng.random() < 0.15:
            text = text.lower()
        if rng.random() < 0.15:
            text = text.rstrip("?.")
        if told and not messages:
            text = f"{told}\n{text}"
        parts = [Part(medium) for medium in media] if not messages else []  # type: ignore[arg-type]
        messages += [ask(text, *parts), Message.of("assistant", question.answer)]
    return messages


def draw_kind(rng: random.Random, mix: dict[str, float]) -> str:
    return rng.choices(list(mix), list(mix.values()))[0]
