"""What a recipe would do: what learns, what samples hold, memory and time.

No weight is read: see estimate.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from longview.engine.devices import memory_of, name_of
from longview.models import quantization
from longview.train.build import open_spec
from longview.train.plan.estimate import GIB, StageEstimate, check_memory, estimate
from longview.train.plan.plan import make_plan
from longview.train.recipe import Recipe
from longview.train.report.journal import clock


def dry_run(recipe: Recipe, force: bool = False) -> Iterator[str]:
    """One line a fact.

    Args:
        force: Say what is needed, too, where it is more memory than there is.

    Raises:
        RecipeError, CheckpointError: what following the recipe would raise before its first step.
    """
    plan = make_plan(recipe)
    recipe = plan.recipe
    with tempfile.TemporaryDirectory() as folder:
        found = estimate(plan, open_spec(recipe, Path(folder)))
    rate = found.rate(recipe)
    memory = memory_of(found.device) / GIB
    yield f"machine: {name_of(found.device)}; {memory:.1f} GiB, {rate / 1e9:,.0f} GFLOP/s in matrices"
    total = 0.0
    for number, (stage, objective) in enumerate(zip(recipe.stages, plan.objectives, strict=True)):
        of_stage = found.stages[number]
        step, data = objective.describe()
        yield f"stage {number + 1}, {stage.name}: {stage.objective}, {stage.steps:,} steps of {step}"
        yield from _parts(of_stage, found.parameters, found.four_bit)
        if data is not None:
            yield f"  data: {data}"
        yield from _sizes(of_stage)
        if of_stage.memory is None or of_stage.operations is None:
            yield "  memory and time: not estimated"
            continue
        yield f"  memory: about {of_stage.memory / GIB:.1f} GiB"
        seconds = of_stage.operations / rate
        total += stage.steps * seconds
        operations = f"{of_stage.operations:.2g} operations and {seconds:.2g} s a step"
        yield f"  time: {clock(stage.steps * seconds)} at least; {operations}"
    if len(recipe.stages) > 1:
        yield f"time of all stages: {clock(total)} at least"
    if not force:
        check_memory(recipe, found.stages)


def _parts(stage: StageEstimate, total: int, four_bit: int) -> Iterator[str]:
    """What learns in a stage."""
    for part, size in stage.parts.items():
        what = "adapter of " if size.adapted else ""
        count, state = (size.learning, "learns") if size.learning or size.adapted else (size.frozen, "frozen")
        yield f"  {what}{part}: {count:,} parameters, {state}"
    learning = sum(size.learning for size in stage.parts.values())
    yield f"  {learning:,} of {total:,} parameters learn ({learning / total:.2%})"
    if four_bit:
        yield f"  {four_bit:,} frozen ones are kept in 4 bits (NF4): {four_bit * quantization.NF4_BYTES / GIB:.2f} GiB"


def _sizes(stage: StageEstimate) -> Iterator[str]:
    """What the first samples hold."""
    sizes = stage.sizes
    if sizes is None:
        return
    for what, counts in (("tokens", sizes.tokens), ("pictures", sizes.pictures)):
        if any(counts):
            mean = sum(counts) / len(counts)
            yield f"  {what} a sample: {mean:.0f}, {max(counts)} at most, in {len(counts)} samples"
    if sizes.broken:
        yield f"  {sizes.broken} of the first {sizes.broken + len(sizes.tokens)} samples cannot be shown"
