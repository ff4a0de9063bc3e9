"""Answers of a model before and after training, to a few questions of the kind it was trained on."""

from __future__ import annotations

import base64
import gc
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from longview.engine import Engine, load
from longview.errors import MediaError, RequestError
from longview.files import replace_text
from longview.train.data.sample_format import open_shown
from longview.train.objectives.base import SampleQuestion
from longview.train.recipe import Recipe, objective_class
from longview.train.saved.export import export_checkpoint
from longview.train.saved.folder import exported, newest_checkpoint, steps_of, writing

FILE = "answers.json"
MOST_TOKENS = 64
SIDE = 224  # pixels of a picture's longer side on the page
SHOWN = 4
"""Pictures, or frames, of a sample that are shown."""


@dataclass
class SampleAnswers:
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
    """Questions with the model's answers before the run, and now; kept in answers.json.

    A new model has no answers from before. None where the run teaches nothing to answer, or has no checkpoint.

    Raises:
        CheckpointError: a model cannot be opened, or the answers not be written.
    """
    state, path = newest_checkpoint(output), output / FILE
    if state is None or not count:
        return None
    key = {"steps": steps_of(state), "count": count}
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.items() >= key.items():
            return kept
    asking = (objective_class(stage).sample_questions(recipe, stage) for stage in reversed(recipe.stages))
    about, questions = next(filter(None, asking), ("", None))
    if questions is None:
        return None
    answered = _ask(recipe, questions, output, count)
    found = {**key, "about": about, "samples": [asdict(each) for each in answered]}
    with writing(path, output):
        replace_text(path, json.dumps(found, ensure_ascii=False) + "\n")
    return found


def _ask(recipe: Recipe, questions: Iterator[SampleQuestion], output: Path, count: int) -> list[SampleAnswers]:
    samples: list[SampleAnswers] = []
    asked: list[SampleQuestion] = []
    for moment in ("before", "after"):
        if moment == "before" and recipe.model.start is None:
            continue
        engine = _open(recipe, output, moment)
        if not asked:
            asked, samples = _showable(engine, questions, count)
        for each, sample in zip(asked, samples, strict=True):
            films = any(part.type == "video" for part in each.media)
            media = {"frames": each.frames or None, "fps": each.fps or None} if films else None
            sample.answers[moment] = engine.answer(each.messages, media=media, max_tokens=MOST_TOKENS).text
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return samples


def _open(recipe: Recipe, output: Path, moment: str) -> Engine:
    """The model that the run started from, or what it has trained so far."""
    if moment == "before":
        return load(recipe.model.start)
    with tempfile.TemporaryDirectory() as beside:
        folder = exported(output) or export_checkpoint(output, Path(beside) / "model")
        return load(folder) if recipe.model.adapter is None else load(recipe.model.start, adapter=folder)


def _showable(
    engine: Engine, questions: Iterator[SampleQuestion], count: int
) -> tuple[list[SampleQuestion], list[SampleAnswers]]:
    """The first questions whose media can be opened."""
    asked: list[SampleQuestion] = []
    samples: list[SampleAnswers] = []
    for each in questions:
        try:
            media = open_shown(each.media, each.frames, each.fps, engine.processor.default_media)
            frames = [frame.image for medium in media for frame in medium.frames if frame.image is not None]
        except (MediaError, RequestError):
            continue
        text = "\n".join(message.text.strip() for message in each.messages if message.role == "user")
        shown = frames[:: max(1, -(-len(frames) // SHOWN))][:SHOWN]
        pictures = [thumbnail(frame) for frame in shown]
        samples.append(SampleAnswers(text, each.expected, pictures, len(frames) - len(shown)))
        asked.append(each)
        if len(asked) == count:
            break
    return asked, samples


def thumbnail(image: Image.Image) -> str:
    """A small picture as a data URI."""
    small, data = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def moments_of(samples: Sequence[dict[str, Any]]) -> list[str]:
    """The moments of which there are answers."""
    return [moment for moment in ("before", "after") if any(moment in sample["answers"] for sample in samples)]
