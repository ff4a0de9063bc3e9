"""Teacher-forced scoring: which questions models answer right, from one forward pass over question and true answer.

A greedy answer is the true one if, and only if, each of its tokens is the most likely one after those before it. So one
pass over the true answer gives the result of decoding at a fraction of its cost, and several models share the files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longview.eval.world import Case, PictureInput, Score, case_messages
from longview.media import open_media
from longview.messages import Message, ask
from longview.models.sequence import IGNORED
from longview.world.scene_text import scene_text

ROWS = 16
"""Questions of one batch."""


@torch.inference_mode()
def score_by_teacher_forcing(
    engines: Sequence[Any],
    cases: Sequence[Case],
    pictures: PictureInput | None,
    every: int = 1,
    folder: Path | None = None,
) -> list[list[Score]]:
    """Scores of models of one family, which are given the same files.

    Args:
        pictures: Which pictures they are given; None: none, but the scenes as text.
        every: All models but the last are asked one of so many questions.
        folder: Where the files are kept, for the next family; None: they are not kept.
    """
    processor = engines[0].processor
    scores: list[dict[tuple[str, str], Score]] = [{} for _ in engines]
    with tempfile.TemporaryDirectory(prefix="longview-world-") as temporary:
        for at in range(0, len(cases), ROWS):
            some = cases[at : at + ROWS]
            rows = []
            for number, case in enumerate(some):
                if pictures is None:
                    messages = [ask(f"{scene_text(*case.media).text}\n{case.question.text}")]
                else:
                    kept = folder / f"{pictures} {case.group} {case.seed}" if folder else Path(temporary) / str(number)
                    messages = case_messages(case, pictures, kept, reuse=folder is not None)
                media = open_media(messages[0].media, None, default=processor.default_media)
                answer = Message.of("assistant", case.question.answer)
                rows.append(processor.prepare([*messages, answer], media, train=True))
            batches = {step: processor.collate(rows[::step]) for step in {1, every}}
            for engine, by_kind in zip(engines, scores, strict=True):
                step = 1 if engine is engines[-1] else every
                for case, right in zip(some[::step], _is_right(engine.model, batches[step]), strict=True):
                    score = by_kind.setdefault(key := (case.group, case.question.kind), Score(*key))
                    score.total += 1
                    score.right += right
                    score.answers[case.question.answer] += 1
    return [list(by_kind.values()) for by_kind in scores]


def _is_right(model: Any, batch: Any) -> list[bool]:
    """Whether greedy decoding would give the labels, for each row of a batch."""
    arguments = model.embed_pictures(batch)
    labels = arguments.pop("labels")[:, 1:]
    predicted = model(**arguments, use_cache=False).logits[:, :-1].argmax(-1)
    right: list[bool] = ((predicted == labels) | (labels == IGNORED)).all(1).tolist()
    return right
