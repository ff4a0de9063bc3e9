"""How long a step of each stage really takes here: the recipe's model does a few, and nothing of it is kept.

An estimate from operations (estimate.py) leaves out what small models spend most time on: reading samples, and starting
each of many small computations.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from longview.train.build import ModelSpec, add_adapter, build_model
from longview.train.distributed import processes
from longview.train.loop import Trainer
from longview.train.plan.plan import Plan

TIMED = 2
"""Steps that are timed, after one that is not."""


class StageTime(NamedTuple):
    """Of one stage, in seconds."""

    prepare: float
    """What it draws from is made, once."""
    step: float


def time_stages(plan: Plan, spec: ModelSpec, folder: Path) -> list[StageTime]:
    """Time some steps of each stage.

    Args:
        folder: For what they write.

    Raises:
        LongviewError: what following the recipe would raise in its first steps.
    """
    recipe, objectives = plan
    model = build_model(recipe, spec)
    adapter = add_adapter(recipe, model)
    model.to(processes.device())
    trainer = Trainer(recipe, folder, model, spec.processor, objectives, adapter)
    found = []
    for number, objective in enumerate(objectives):
        began = time.monotonic()
        objective.prepare(lambda *_: None)
        prepared = time.monotonic() - began
        found.append(StageTime(prepared, trainer.time_stage(number, TIMED)))
    return found
