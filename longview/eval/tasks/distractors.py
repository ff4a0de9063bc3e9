"""Distractor resistance: from a benchmark's file of multiple choices, or from the synthetic world."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from longview.errors import RequestError
from longview.eval import parsers, prompts
from longview.eval.distractor import check_numbers, distracted, identified, once, pool_of
from longview.eval.items import Item, Protocol, Shown, Verdict
from longview.eval.readers import tsv
from longview.eval.readers.files import Found
from longview.eval.scoring import CIRCULAR
from longview.eval.tasks.synthetic import said
from longview.eval.tasks.task import Options, Task
from longview.eval.world import normalise
from longview.world.questions import Question, ask_about_picture
from longview.world.render import write_picture
from longview.world.scenes import Picture, draw_picture

WORLD = "world"
KINDS = ("colour", "shape", "size", "position", "count")
PER_KIND = 4
"""Questions of each kind, unless told."""
SPARE = 8
"""Pictures of the pool beyond the largest number that is asked for."""


def items(options: Options) -> Iterable[Item]:
    """The questions, from the source that the options name.

    Raises:
        RequestError: there is no source, or it has too few pictures.
    """
    numbers = check_numbers(options.pictures)
    if options.source is None:
        raise RequestError("distractor takes its questions and pictures from a file or from world; name it by --from")
    if options.source == WORLD:
        return world_items(numbers, options.seed, options.per_kind or PER_KIND)
    path = Path(options.source).expanduser()
    if not path.is_file():
        raise RequestError(f"there is no {path}; give a TSV of multiple choices, such as MMBench_DEV_EN.tsv, or world")
    every = [identified(item) for item in tsv.read_choices(Found(path.parent, ((path,),)))]
    return distracted(once(every), pool_of(every), numbers, options.seed)


def world_items(numbers: Iterable[int], seed: int, per_kind: int) -> Iterable[Item]:
    """The same from held-out scenes, with answers in words: the embedded models know no letters."""
    numbers = tuple(numbers)
    rng = random.Random(f"distractors {seed}")
    asked = [_draw(rng, kind) for kind in KINDS for _ in range(per_kind)]
    spare = max(0, max(numbers) + SPARE - len(asked))
    pool = [_shown(scene, number) for number, scene in enumerate([s for _, s in asked] + _scenes(rng, spare))]
    about = [
        Item(f"{question.kind}-{number}", question.text, question.answer, (pool[number],))
        for number, (question, _) in enumerate(asked)
    ]
    return distracted(about, pool, numbers, seed, _in_image)


def _draw(rng: random.Random, kind: str) -> tuple[Question, Picture]:
    while True:
        scene = draw_picture(rng, held_out=True)
        try:
            return ask_about_picture(rng, scene, kind), scene
        except LookupError:  # the scene does not allow such a question
            continue


def _scenes(rng: random.Random, count: int) -> list[Picture]:
    return [draw_picture(rng, held_out=True) for _ in range(count)]


def _shown(scene: Picture, number: int) -> Shown:
    return Shown("image", lambda: _rendered(scene, number), f"scene {number + 1}")


@functools.lru_cache(maxsize=1024)
def _rendered(scene: Picture, number: int) -> bytes:
    """A scene as a JPEG; the same each time, so that its features are made once."""
    with tempfile.TemporaryDirectory(prefix="longview-world-") as folder:
        return write_picture(scene, Path(folder) / "scene.jpg", number, quality=85).read_bytes()


def _in_image(item: Item, place: int) -> Item:
    """As the world asks about one of several."""
    where, text = f"in image {place + 1}", item.question
    if "in the picture" in text:
        return replace(item, question=text.replace("in the picture", where))
    return replace(item, question=f"{where.capitalize()}, {text[0].lower()}{text[1:]}")


def parse(item: Item, answer: str) -> Verdict:
    """A letter where there are options, else the words."""
    return parsers.letter(item, answer) if item.options else said(item, answer)


def grade(item: Item, verdict: Verdict) -> float:
    truth = item.answer if item.options else normalise(item.answer)
    return float(verdict.value == truth)


NOTE = "Pictures are not cut, whatever their number. The suffix is MMBench's."

TASKS = (
    Task(
        name="distractor",
        title="Distractor resistance",
        about="Is the picture that a question names found among N, from 1 to 400? Questions and distractors come from "
        "one file of multiple choices (--from MMBench_DEV_EN.tsv), or from the synthetic world (--from world). Each "
        "question is asked four times, with its options in another order and among other distractors each time, and is "
        "right where all answers are. mPLUG-Owl3's authors give about 40 % at 400 pictures for their 7B model, and the "
        "breakdown of others near 50.",
        protocols={
            "owl3": Protocol(
                prompts.distractor,
                100,
                "low",
                note=NOTE,
            )
        },
        parse=parse,
        grade=grade,
        citation="mPLUG-Owl3, arXiv 2408.04840",
        make=items,
        get="any TSV of multiple choices, such as MMBench_DEV_EN.tsv; --from world needs none",
        metric=CIRCULAR,
        checked="world needs no files; never ran on the real MMBench",
        curve="pictures",
        pictures=2,
        example={"about": 1},
    ),
)
