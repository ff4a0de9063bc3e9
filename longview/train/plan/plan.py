"""A recipe that is understood: its data opened, epochs turned into steps. Training and dry run both begin with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from longview.train.distributed import zero
from longview.train.objectives.base import Objective, make_objectives
from longview.train.recipe import Recipe, check


class Plan(NamedTuple):
    """What is going to be done."""

    recipe: Recipe
    """With steps in place of epochs and shares."""
    objectives: list[Objective]
    """Of each stage."""

    def digests(self) -> dict[str, str]:
        """Digests of the files that the run learns from, by name."""
        return {name: digest for objective in self.objectives for name, digest in objective.digests().items()}


FEW_STEPS = 20


def hints(recipe: Recipe) -> Iterator[str]:
    """What of a recipe with its steps known is probably not meant."""
    total = sum(stage.steps for stage in recipe.stages)
    if total < FEW_STEPS:
        yield (
            f"hint: the whole run has {total} step{'' if total == 1 else 's'}, and little is learned in fewer than "
            f"{FEW_STEPS}; give it more epochs or steps, or a smaller batch"
        )
    for stage in recipe.stages:
        if stage.warmup >= stage.steps > 1:
            yield (
                f"hint: the warm-up of {stage.warmup:,} steps is no shorter than stage {stage.name}, of {stage.steps:,}"
                "; its learning rate is never reached: give a smaller warmup, or warmup_ratio"
            )


def make_plan(recipe: Recipe) -> Plan:
    """Check a recipe and open its data.

    Raises:
        RecipeError: it cannot be followed, or a file of its data cannot be read.
    """
    check(recipe)
    zero.check_settings(recipe)
    objectives = make_objectives(recipe)
    recipe = settle(recipe, [objective.epoch for objective in objectives])
    for objective in objectives:
        objective.use_recipe(recipe)
    return Plan(recipe, objectives)


def settle(recipe: Recipe, epochs: Sequence[int | None]) -> Recipe:
    """The recipe with steps in place of epochs and shares.

    Args:
        epochs: Samples of an epoch, of each stage that has epochs.
    """
    stages = []
    for stage, epoch in zip(recipe.stages, epochs, strict=True):
        if stage.epochs and stage.data is not None and epoch is not None:
            steps = max(1, math.ceil(stage.epochs * epoch / stage.data.batch))
            stage = dataclasses.replace(stage, steps=steps, epochs=0.0)
        if stage.warmup_ratio:
            stage = dataclasses.replace(stage, warmup=math.ceil(stage.warmup_ratio * stage.steps), warmup_ratio=0.0)
        stages.append(stage)
    return dataclasses.replace(recipe, stages=stages)
