"""What validation has told of a stage so far: it is a part of the run's state, so that a resumed run judges alike."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from longview.errors import CheckpointError
from longview.train.recipe import Recipe
from longview.train.saved.folder import REPAIR, checkpoint_after, read_state, reading


class Evaluation(NamedTuple):
    """The loss over samples that are never learned from, after a step."""

    step: int
    loss: float


@dataclass
class Evaluations:
    """Those of one stage, in order."""

    found: list[Evaluation] = field(default_factory=list)

    def add(self, step: int, loss: float) -> float:
        """Take one more; returns its loss, rounded for the log."""
        self.found.append(Evaluation(step, loss))
        return round(loss, 4)

    @property
    def best(self) -> Evaluation | None:
        """The lowest; of several the first. A loss that is no number is none."""
        return min((one for one in self.found if one.loss == one.loss), key=lambda one: one.loss, default=None)

    def exhausted(self, patience: int) -> bool:
        """Whether so many in a row were no better than one before; 0: never."""
        best = self.best
        since = sum(best is None or one.step > best.step for one in self.found)
        return bool(patience) and since >= patience


def read_evaluations(checkpoint: Path) -> Evaluations:
    """
    Raises:
        CheckpointError: state.json is missing or damaged.
    """
    path = checkpoint / "state.json"
    with reading(path):
        found = json.loads(path.read_text(encoding="utf-8")).get("validation", [])
    try:
        return Evaluations([Evaluation(int(step), float(loss)) for step, loss in found])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} holds no steps and losses under 'validation'; {REPAIR}") from error


def best_checkpoint(checkpoint: Path, recipe: Recipe) -> Path:
    """The best checkpoint of the stage that one is of, by its validation; without any, that one."""
    best = read_evaluations(checkpoint).best
    if best is None:
        return checkpoint
    stage, _ = read_state(checkpoint, recipe)
    return checkpoint_after(checkpoint.parent, recipe, stage, best.step)
