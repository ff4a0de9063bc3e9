"""What a recipe is going to do, told before it does it: what learns, what samples hold, how much memory it takes.

No weight is read: the model is built without memory behind it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from longview.errors import MediaError, RequestError
from longview.models import adapters, checkpoint, quantization
from longview.models.base import PROGRAM_BYTES
from longview.models.families import family_of
from longview.train.layouts import check_cutting
from longview.train.opening import open_model, quantized
from longview.train.optimizers import select_parts
from longview.train.recipe import OF_USERS, Recipe, Stage
from longview.train.run import check_stages, open_datasets, settle
from longview.train.supervised import longest, prepare

LOOKED_AT = 16
"""Samples that are opened to tell how large they are."""
GIB = 1 << 30


class Sizes(NamedTuple):
    """What the samples that were opened hold."""

    tokens: list[int]
    pictures: list[int]
    broken: int


def outlook(recipe: Recipe) -> Iterator[str]:
    """One line a fact.

    Raises:
        RecipeError, CheckpointError: what following the recipe would raise before its first step.
    """
    mixtures = open_datasets(recipe)
    recipe = settle(recipe, mixtures)
    model, processor, config = _open(recipe)
    check_stages(recipe, model)
    check_cutting(recipe, processor, mixtures)
    total = sum(parameter.numel() for parameter in model.parameters())
    for number, stage in enumerate(recipe.stages):
        yield f"stage {number + 1}, {stage.name}: {stage.objective}, {stage.steps:,} steps of {_step(stage)}"
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
        if stage.objective not in OF_USERS:
            continue
        mixture = mixtures[stage.name]
        sizes = measure(processor, mixture, stage, longest(config, stage))
        epochs = f"{mixture.epoch:,} samples an epoch, {stage.steps * stage.batch / mixture.epoch:.2f} epochs"
        yield f"  data: {f'a stream, {stage.steps * stage.batch:,} samples of it' if mixture.streams else epochs}"
        for what, counts in (("tokens", sizes.tokens), ("pictures", sizes.pictures)):
            if counts:
                mean = sum(counts) / len(counts)
                yield f"  {what} a sample: {mean:.0f}, {max(counts)} at most, in {len(counts)} samples"
        if sizes.broken:
            yield f"  {sizes.broken} of the first {sizes.broken + len(sizes.tokens)} samples cannot be shown"
        if sizes.tokens:
            yield f"  memory: about {memory(recipe, stage, model, config, learning, sizes) / GIB:.1f} GiB"


def _open(recipe: Recipe) -> tuple[Any, Any, Any]:
    """The recipe's model without weights, its processor and its config."""
    if recipe.model.start is None:
        with tempfile.TemporaryDirectory() as beside:
            model, processor = open_model(recipe, Path(beside))
            return model, processor, model.config
    folder = checkpoint.resolve(recipe.model.start)
    family = family_of(folder)
    config = checkpoint.open_config(family.Config, folder)
    family.Model.check(config, checkpoint.tensor_shapes(folder), folder)
    quantized(recipe.model, family.Model, folder)
    with torch.device("meta"):
        model = family.Model(config)
    return model, family.Processor.from_pretrained(folder, config=config), config


def _step(stage: Stage) -> str:
    if stage.objective in OF_USERS:
        return f"{stage.batch:,} samples"
    return f"about {stage.tokens:,} tokens" if stage.objective == "answers" else f"{stage.batch:,} pictures"


def adapter_size(model: Any, part: str, rank: int) -> int:
    """Parameters of an adapter: two thin matrices for each linear layer."""
    layers = [model.get_submodule(name) for name in adapters.linear_layers(model, [part])]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


def in_four_bits(recipe: Recipe, model: Any) -> int:
    """Parameters that a run keeps in NF4: the weights of the language model's linear layers, where the recipe says so.

    Args:
        model: Not quantised itself.
    """
    if recipe.model.quantize is None:
        return 0
    return sum(model.get_submodule(name).weight.numel() for name in adapters.linear_layers(model, ["language"]))


def measure(processor: Any, mixture: Any, stage: Stage, limit: int) -> Sizes:
    """Open the first samples of a stage."""
    sizes = Sizes([], [], 0)
    for position in range(min(LOOKED_AT, mixture.epoch)):
        data, number = mixture.at(position)
        try:
            inputs = prepare(processor, data[number], stage, limit).inputs
        except (MediaError, RequestError):
            sizes = sizes._replace(broken=sizes.broken + 1)
            continue
        sizes.tokens.append(inputs.length)
        sizes.pictures.append(inputs.num_pictures)
    return sizes


def memory(recipe: Recipe, stage: Stage, model: Any, config: Any, learning: int, sizes: Sizes) -> int:
    """Bytes that a stage takes at most, about.

    Weights; for each parameter that learns, a gradient and two moments in fp32; the reference of preferences; and what
    the blocks keep for the way back, 34 bytes a position and feature in half precision (arXiv 2205.05198), or two and
    one block's where blocks are computed again.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    text, size = config.get_text_config(), 2 if recipe.model.dtype == "bfloat16" else 4
    adapted = recipe.model.adapter is not None
    weights = (total if adapted else total - learning) * size + learning * 4
    weights -= int(in_four_bits(recipe, model) * (size - quantization.NF4_BYTES))
    reference = total * size if stage.objective == "preference" and not adapted else 0
    rows = stage.pack or max(sizes.tokens) * stage.micro_batch * (2 if stage.objective == "preference" else 1)
    blocks, full = text.num_hidden_layers, 34 * size // 2
    kept = full + 2 * size * blocks if stage.gradient_checkpointing else full * blocks
    logits = 3 * 4 * rows * text.vocab_size
    seen = type(model).footprint(config, getattr(torch, recipe.model.dtype))
    samples = max(1, rows // max(sizes.tokens))
    pictures = max(sizes.pictures) * samples * (seen.passing_bytes + seen.picture_bytes) + seen.working_bytes
    return PROGRAM_BYTES + weights + 12 * learning + reference + rows * text.hidden_size * kept + logits + pictures
