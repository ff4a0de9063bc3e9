"""Which questions models answer as they should, without decoding: question and true answer in one pass.

A greedy answer is the true one if, and only if, each of its tokens is the likeliest after those before it. So a pass
over the true answer tells what decoding would, at a fraction of the cost, and several models can share the files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longview.eval.world import Case, Score, Shown, ask_case
from longview.media import open_media
from longview.messages import Message, ask
from longview.models.base import IGNORED
from longview.world.scene_text import scene_text

ROWS = 16
"""Questions that pass a model at a time."""


@torch.inference_mode()
def answered(
    engines: Sequence[Any], cases: Sequence[Case], shown: Shown | None, every: int = 1, files: Path | None = None
) -> list[list[Score]]:
    """Scores of models of one family, to which the same files are shown.

    Args:
        shown: How; None: the scenes are told in words, to a model that sees nothing.
        every: Of how many questions all models but the last are asked one.
        files: A folder to keep what is painted in, for the next family to be shown; None: nothing is kept.
    """
    processor = engines[0].processor
    tallies: list[dict[tuple[str, str], Score]] = [{} for _ in engines]
    with tempfile.TemporaryDirectory(prefix="longview-world-") as beside:
        for at in range(0, len(cases), ROWS):
            some = cases[at : at + ROWS]
            rows = []
            for number, case in enumerate(some):
                if shown is None:
                    messages = [ask(f"{scene_text(*case.media).text}\n{case.question.text}")]
                else:
                    kept = files / f"{shown} {case.group} {case.seed}" if files else Path(beside) / str(number)
                    messages = ask_case(case, shown, kept, again=files is not None)
                media = open_media(messages[0].media, None, default=processor.default_media)
                answer = Message.of("assistant", case.question.answer)
                rows.append(processor.prepare([*messages, answer], media, train=True))
            batches = {step: processor.collate(rows[::step]) for step in {1, every}}
            for engine, tally in zip(engines, tallies, strict=True):
                step = 1 if engine is engines[-1] else every
                for case, right in zip(some[::step], _right(engine.model, batches[step]), strict=True):
                    score = tally.setdefault(key := (case.group, case.question.kind), Score(*key))
                    score.total += 1
                    score.right += right
                    score.answers[case.question.answer] += 1
    return [list(tally.values()) for tally in tallies]


def _right(model: Any, batch: Any) -> list[bool]:
    """Which rows of a batch a model would answer as their labels say."""
    arguments = model.embed_pictures(batch)
    labels = arguments.pop("labels")[:, 1:]
    likeliest = model(**arguments, use_cache=False).logits[:, :-1].argmax(-1)
    right: list[bool] = ((likeliest == labels) | (labels == IGNORED)).all(1).tolist()
    return right
