"""What a recipe would do: what learns, what samples hold, memory and time.

No weight is read (see estimate.py), but for the time of real steps (timing.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from longview.engine.devices import memory_of, name_of
from longview.files import writing
from longview.models import quantization
from longview.train.build import open_spec
from longview.train.plan.estimate import GIB, Estimate, StageEstimate, check_memory, estimate
from longview.train.plan.plan import hints, make_plan
from longview.train.plan.timing import TIMED, StageTime, time_stages
from longview.train.recipe import Recipe
from longview.train.report.journal import clock
from longview.train.report.page import about


def dry_run(recipe: Recipe, force: bool = False, timed: bool = False) -> Iterator[str]:
    """One line a fact; the first is a summary of all.

    Args:
        force: Say what is needed, too, where it is more memory than there is.
        timed: Read the weights, and take the time of a few steps of each stage.

    Raises:
        RecipeError, CheckpointError: what following the recipe would raise before its first step.
    """
    plan = make_plan(recipe)
    recipe = plan.recipe
    with tempfile.TemporaryDirectory() as folder, writing(Path(folder)):
        spec = open_spec(recipe, Path(folder))
        found = estimate(plan, spec)
        if not force:
            check_memory(recipe, found.stages)
        times = time_stages(plan, spec, Path(folder)) if timed else None
    rate = found.rate(recipe)
    memory = memory_of(found.device) / GIB
    yield _summary(recipe, found, rate, times)
    yield from hints(recipe)
    yield f"machine: {name_of(found.device)}; {memory:.1f} GiB, {rate / 1e9:,.0f} GFLOP/s in matrices"
    for number, (stage, objective) in enumerate(zip(recipe.stages, plan.objectives, strict=True)):
        of_stage = found.stages[number]
        step, data = objective.describe()
        yield f"stage {number + 1}, {stage.name}: {stage.objective}, {stage.steps:,} steps of {step}"
        yield from _parts(of_stage, found.parameters, found.four_bit)
        if data is not None:
            yield f"  data: {data}"
        yield from _sizes(of_stage)
        if of_stage.memory is not None:
            yield f"  memory: about {of_stage.memory / GIB:.1f} GiB"
        if times is not None:
            timed_as = times[number]
            making = f", after {clock(timed_as.prepare)} in which its samples are made" if timed_as.prepare > 1 else ""
            all_steps = clock(stage.steps * timed_as.step)
            yield f"  time: {all_steps}, by {TIMED} steps of {timed_as.step:.2g} s each{making}"
        elif of_stage.operations is not None:
            seconds = of_stage.operations / rate
            operations = f"{of_stage.operations:.2g} operations and {seconds:.2g} s a step"
            yield f"  time: {clock(stage.steps * seconds)} at least; {operations}; --time-steps measures it"
        else:
            what = "memory and time" if of_stage.memory is None else "time"
            yield f"  {what}: not estimated; --time-steps measures the time"
    if len(recipe.stages) > 1:
        yield f"time of all stages: {_time(recipe, found, rate, times)}"


def _summary(recipe: Recipe, found: Estimate, rate: float, times: Sequence[StageTime] | None) -> str:
    steps, count = sum(stage.steps for stage in recipe.stages), len(recipe.stages)
    known = [stage.memory for stage in found.stages if stage.memory is not None]
    memory = f", about {max(known) / GIB:.1f} GiB" if known else ""
    within = f" in {count} stages" if count > 1 else ""
    return f"{about(recipe)}: {steps:,} steps{within}{memory}, {_time(recipe, found, rate, times)}"


def _time(recipe: Recipe, found: Estimate, rate: float, times: Sequence[StageTime] | None) -> str:
    """The time of all stages."""
    if times is not None:
        seconds = [time.prepare + stage.steps * time.step for stage, time in zip(recipe.stages, times, strict=True)]
        return f"{clock(sum(seconds))} as timed"
    known = [
        stage.steps * each.operations / rate
        for stage, each in zip(recipe.stages, found.stages, strict=True)
        if each.operations is not None
    ]
    rest = "" if len(known) == len(recipe.stages) else ", some stages not estimated"
    return f"{clock(sum(known))} at least{rest}" if known else "time not estimated"


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
