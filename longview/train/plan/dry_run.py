"""What a recipe is going to do, told before it does it: what learns, what samples hold, memory and time.

No weight is read: see estimate.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longview.engine.devices import memory_of, name_of
from longview.models import adapters, quantization
from longview.train.data.sample_format import check_cutting
from longview.train.distributed.zero import check_settings
from longview.train.optimizers import select_parts
from longview.train.plan.estimate import GIB, bare_model, check_memory, device_of, forecasts, in_four_bits, rate_of
from longview.train.recipe import OF_USERS, Recipe, Stage
from longview.train.report.journal import clock
from longview.train.run import check_stages, open_datasets, settle


def outlook(recipe: Recipe, force: bool = False) -> Iterator[str]:
    """One line a fact.

    Args:
        force: Say what is needed, too, where it is more memory than there is.

    Raises:
        RecipeError, CheckpointError: what following the recipe would raise before its first step.
    """
    check_settings(recipe)
    mixtures = open_datasets(recipe)
    recipe = settle(recipe, mixtures)
    model, processor = bare_model(recipe)
    check_stages(recipe, model)
    check_cutting(recipe, processor, mixtures)
    total = sum(parameter.numel() for parameter in model.parameters())
    told = [list(_parts(recipe, stage, model, total)) for stage in recipe.stages]
    found = forecasts(recipe, mixtures, model, processor)
    device = device_of(recipe)
    rate = rate_of(recipe, model, device)
    yield f"machine: {name_of(device)}; {memory_of(device) / GIB:.1f} GiB, {rate / 1e9:,.0f} GFLOP/s in matrices"
    seconds = 0.0
    for number, (stage, forecast) in enumerate(zip(recipe.stages, found, strict=True)):
        yield f"stage {number + 1}, {stage.name}: {stage.objective}, {stage.steps:,} steps of {_step(stage)}"
        yield from told[number]
        if stage.objective in OF_USERS:
            mixture, drawn = mixtures[stage.name], stage.steps * stage.batch
            epochs = f"{mixture.epoch:,} samples an epoch, {drawn / mixture.epoch:.2f} epochs"
            yield f"  data: {f'a stream, {drawn:,} samples of it' if mixture.streams else epochs}"
        sizes = forecast.sizes
        for what in ("tokens", "pictures") if sizes is not None else ():
            counts = getattr(sizes, what)
            if any(counts):
                mean = sum(counts) / len(counts)
                yield f"  {what} a sample: {mean:.0f}, {max(counts)} at most, in {len(counts)} samples"
        if sizes is not None and sizes.broken:
            yield f"  {sizes.broken} of the first {sizes.broken + len(sizes.tokens)} samples cannot be shown"
        if forecast.memory is None or forecast.operations is None:
            yield "  memory and time: not estimated"
            continue
        yield f"  memory: about {forecast.memory / GIB:.1f} GiB"
        lasts = forecast.operations / rate
        seconds += stage.steps * lasts
        step = f"{forecast.operations:.2g} operations and {lasts:.2g} s a step"
        yield f"  time: {clock(stage.steps * lasts)} at least; {step}"
    if len(recipe.stages) > 1:
        yield f"time of all stages: {clock(seconds)} at least"
    if not force:
        check_memory(recipe, found)


def _parts(recipe: Recipe, stage: Stage, model: Any, total: int) -> Iterator[str]:
    """What learns in a stage."""
    learning = 0
    for part in model.parts:
        count = sum(parameter.numel() for parameter in select_parts(model, [part]).values())
        learns = part in stage.train
        if learns and recipe.model.adapter is not None:
            count = adapter_size(model, part, recipe.model.adapter.rank)
        learning += count * learns
        what = "adapter of " if learns and recipe.model.adapter is not None else ""
        yield f"  {what}{part}: {count:,} parameters, {'learns' if learns else 'frozen'}"
    yield f"  {learning:,} of {total:,} parameters learn ({learning / total:.2%})"
    if small := in_four_bits(recipe, model):
        yield f"  {small:,} frozen ones are kept in 4 bits (NF4): {small * quantization.NF4_BYTES / GIB:.2f} GiB"


def _step(stage: Stage) -> str:
    if stage.objective in OF_USERS:
        return f"{stage.batch:,} samples"
    return f"about {stage.tokens:,} tokens" if stage.objective in ("words", "answers") else f"{stage.batch:,} pictures"


def adapter_size(model: Any, part: str, rank: int) -> int:
    """Parameters of an adapter: two thin matrices for each linear layer."""
    layers = [model.get_submodule(name) for name in adapters.linear_layers(model, [part])]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)
