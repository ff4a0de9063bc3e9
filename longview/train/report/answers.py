"""What a model answers before and after it was trained, to a few questions of the kind it was trained on."""

from __future__ import annotations

import base64
import gc
import io
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from longview.curriculum.contrastive import FAMILY as TOWERS
from longview.engine import Engine, load
from longview.errors import MediaError, RequestError
from longview.messages import Message, Part, ask
from longview.train.data.datasets import Mixture
from longview.train.data.sample_format import open_shown
from longview.train.recipe import OF_USERS, Recipe, Stage
from longview.train.saved.export import export_checkpoint
from longview.train.saved.folder import newest_checkpoint, replace_text, steps_of, writing
from longview.world.questions import ask_about
from longview.world.render import render
from longview.world.scenes import draw_picture

FILE = "answers.json"
MOST_TOKENS = 64
SIDE = 224  # pixels of a picture's longer side on the page
SHOWN = 4
"""Pictures, or frames, of a sample that are shown."""


class Asked(NamedTuple):
    """A conversation that ends with a question, and the answer that is right."""

    messages: list[Message]
    expected: str
    stage: Stage
    """Says how many frames of a video are seen."""

    @property
    def media(self) -> list[Part]:
        return [part for message in self.messages for part in message.media]


@dataclass
class Told:
    """A question with its answers, as it is kept."""

    question: str
    expected: str
    pictures: list[str]
    """As data URIs, small."""
    more: int
    """Pictures that are not shown."""
    answers: dict[str, str] = field(default_factory=dict)
    """By "before" and "after"."""


def sample_answers(recipe: Recipe, output: Path, count: int) -> dict[str, Any] | None:
    """Questions with what the model said to them before the run, and what it says now; kept in answers.json.

    A model made from nothing says nothing before. None where the run teaches nothing to answer, or has no checkpoint.

    Raises:
        CheckpointError: a model cannot be opened, or the answers not be written.
    """
    state, path = newest_checkpoint(output), output / FILE
    stage = next((stage for stage in reversed(recipe.stages) if stage.objective in ("answers", *OF_USERS)), None)
    if state is None or stage is None or recipe.model.family == TOWERS or not count:
        return None
    key = {"steps": steps_of(state), "count": count}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.items() >= key.items():
            return kept
    about, told = _ask(recipe, stage, output, count)
    found = {**key, "about": about, "samples": [asdict(each) for each in told]}
    with writing(path, output):
        replace_text(path, json.dumps(found, ensure_ascii=False) + "\n")
    return found


def _ask(recipe: Recipe, stage: Stage, output: Path, count: int) -> tuple[str, list[Told]]:
    about, questions = (_of_users if stage.objective in OF_USERS else _of_world)(recipe, stage)
    told: list[Told] = []
    asked: list[Asked] = []
    for moment in ("before", "after"):
        if moment == "before" and recipe.model.start is None:
            continue
        engine = _open(recipe, output, moment)
        if not asked:
            asked, told = _showable(engine, questions, count)
        for each, sample in zip(asked, told, strict=True):
            films = any(part.type == "video" for part in each.media)
            media = {"frames": each.stage.frames or None, "fps": each.stage.fps or None} if films else None
            sample.answers[moment] = engine.answer(each.messages, media=media, max_tokens=MOST_TOKENS).text
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return about, told


def _open(recipe: Recipe, output: Path, moment: str) -> Engine:
    """The model that the run began with, or what it has made of it so far."""
    if moment == "before":
        return load(recipe.model.start)
    with tempfile.TemporaryDirectory() as beside:
        adapter, model = output / "adapter", output / "model"
        if not (adapter / "adapter_model.safetensors").exists() and not any(model.glob("model*.safetensors*")):
            adapter = model = export_checkpoint(output, Path(beside) / "model")
        if recipe.model.adapter is not None:
            return load(recipe.model.start, adapter=adapter)
        return load(model)


def _of_users(recipe: Recipe, stage: Stage) -> tuple[str, Iterator[Asked]]:
    """The first samples of a user's first dataset."""
    mixture = Mixture(replace(stage, datasets=stage.datasets[:1]), recipe.seed)

    def questions() -> Iterator[Asked]:
        for position in range(mixture.epoch):
            data, number = mixture.at(position)
            example = data[number]
            yield Asked(list(example.messages[:-1]), example.messages[-1].text, stage)

    return f"samples of {stage.datasets[0].path.rpartition('/')[2]}, from which it learned", questions()


def _of_world(recipe: Recipe, stage: Stage) -> tuple[str, Iterator[Asked]]:
    """Pictures of the synthetic world that no run ever sees."""

    def questions() -> Iterator[Asked]:
        rng = random.Random(f"{recipe.seed} sample answers")
        while True:
            scenes = [draw_picture(rng, held_out=True) for _ in range(rng.choice((1, 1, 2)))]
            question = ask_about(rng, *scenes)
            pictures = [Part("image", source=render(scene, rng.randrange(1 << 30))) for scene in scenes]
            yield Asked([ask(question.text, *pictures)], question.answer, stage)

    return "held-out pictures of the synthetic world", questions()


def _showable(engine: Engine, questions: Iterator[Asked], count: int) -> tuple[list[Asked], list[Told]]:
    """The first questions whose media can be opened."""
    asked: list[Asked] = []
    told: list[Told] = []
    for each in questions:
        try:
            media = open_shown(each.media, each.stage, engine.processor.default_media)
            frames = [frame.image for medium in media for frame in medium.frames if frame.image is not None]
        except (MediaError, RequestError):
            continue
        words = "\n".join(message.text.strip() for message in each.messages if message.role == "user")
        shown = frames[:: max(1, -(-len(frames) // SHOWN))][:SHOWN]
        told.append(Told(words, each.expected, [thumbnail(frame) for frame in shown], len(frames) - len(shown)))
        asked.append(each)
        if len(asked) == count:
            break
    return asked, told


def thumbnail(image: Image.Image) -> str:
    """A small picture as a data URI."""
    small, data = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def answered(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Of which moments there are answers."""
    return [moment for moment in ("before", "after") if any(moment in sample["answers"] for sample in samples)]
