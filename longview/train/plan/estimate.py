"""What the stages of a recipe will take: memory, and operations. No weight is read.

Sizes come from the first samples of the data, all else from a model without memory behind it (cost.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from longview.engine.devices import matrix_rate, memory_of
from longview.errors import RecipeError
from longview.models import adapters, quantization
from longview.models.base import PROGRAM_BYTES
from longview.train.build import ModelSpec, add_adapter, bare_model
from longview.train.distributed import processes, zero
from longview.train.objectives.base import Objective, PassShape, SampleSizes
from longview.train.optimizers import select_parts
from longview.train.plan.cost import PassCost, cost_of
from longview.train.plan.plan import Plan
from longview.train.recipe import Recipe, Stage

GIB = 1 << 30
MARGIN = 1.1
"""A run is refused when it takes so much more than there is: the estimate is not exact."""


class PartSize(NamedTuple):
    """Parameters of a part of the model in a stage."""

    learning: int
    """Of the part, or of its adapter; 0: it is frozen."""
    frozen: int
    adapted: bool = False


class StageEstimate(NamedTuple):
    """What a stage takes."""

    parts: dict[str, PartSize]
    sizes: SampleSizes | None = None
    """None: unknown, as is the rest."""
    memory: float | None = None
    """Bytes at most, on the device that trains."""
    operations: float | None = None
    """Of a step."""


class Estimate(NamedTuple):
    """What a run takes."""

    stages: list[StageEstimate]
    parameters: int
    """Of the model, without adapters."""
    four_bit: int
    """Parameters that are kept in 4 bits."""
    device: str
    widths: tuple[int, int]
    """Of hidden states and of what is between them, of the language model: matrices are of this size."""

    def rate(self, recipe: Recipe) -> float:
        """Operations a second at which the device multiplies matrices of the model's widths; measured, in a second."""
        return matrix_rate(512, *self.widths, getattr(torch, recipe.model.dtype), torch.device(self.device))


def estimate(plan: Plan, spec: ModelSpec) -> Estimate:
    """What a plan takes, after a check that its model can do it.

    Raises:
        RecipeError: the model lacks what a stage asks for.
        CheckpointError: the model cannot be made.
    """
    recipe, objectives = plan
    model = bare_model(recipe, spec)
    for stage, objective in zip(recipe.stages, objectives, strict=True):
        select_parts(model, stage.train)
        objective.check_model(model, spec.processor)
    text = model.config.get_text_config()
    parts = [_part_sizes(recipe, stage, model) for stage in recipe.stages]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    four_bit = count_four_bit(recipe, model)
    weights = _prepare(recipe, model, four_bit)
    found = []
    for stage, objective, sizes_of_parts in zip(recipe.stages, objectives, parts, strict=True):
        sizes = objective.measure(model, spec.processor)
        if sizes is None or not sizes.tokens:
            found.append(StageEstimate(sizes_of_parts, sizes))
            continue
        held = _held(recipe, stage, objective, model, weights)
        memory, operations = _passes(recipe, objective, model, sizes)
        found.append(StageEstimate(sizes_of_parts, sizes, PROGRAM_BYTES + held + memory, operations))
    return Estimate(found, parameters, four_bit, device_of(), (text.hidden_size, text.intermediate_size))


def device_of() -> str:
    """Where recipes are followed."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def count_four_bit(recipe: Recipe, model: Any) -> int:
    """Parameters that a run keeps in NF4: the weights of the language model's linear layers, where the recipe says so.

    Args:
        model: Not quantised itself, without adapters.
    """
    if recipe.model.quantize is None:
        return 0
    return sum(model.get_submodule(name).weight.numel() for name in adapters.linear_layers(model, ["language"]))


def _part_sizes(recipe: Recipe, stage: Stage, model: Any) -> dict[str, PartSize]:
    """What learns in a stage."""
    found = {}
    for part in model.parts:
        count = sum(parameter.numel() for parameter in select_parts(model, [part]).values())
        if part not in stage.train:
            found[part] = PartSize(0, count)
        elif recipe.model.adapter is None:
            found[part] = PartSize(count, 0)
        else:
            found[part] = PartSize(adapter_size(model, part, recipe.model.adapter.rank), count, adapted=True)
    return found


def adapter_size(model: Any, part: str, rank: int) -> int:
    """Parameters of an adapter: two thin matrices for each linear layer."""
    layers = [model.get_submodule(name) for name in adapters.linear_layers(model, [part])]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prepare(recipe: Recipe, model: Any, four_bit: int) -> int:
    """Give a bare model the recipe's adapters and number formats; returns the bytes of its weights."""
    with torch.device("meta"):
        adapted = add_adapter(recipe, model) is not None
    learns = set() if adapted else {part for stage in recipe.stages for part in stage.train}
    dtype = getattr(torch, recipe.model.dtype)
    for name, parameter in model.named_parameters():
        exact = adapters.MARK in name or adapters.part_of(model, name) in learns
        parameter.data = parameter.data.to(torch.float32 if exact else dtype)
    model.train()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return weights - int(four_bit * (dtype.itemsize - quantization.NF4_BYTES))


def _held(recipe: Recipe, stage: Stage, objective: Objective, model: Any, weights: int) -> float:
    """Bytes of weights, gradients, the reference and what the optimizer remembers."""
    count = processes.count()
    learning = sum(parameter.numel() for parameter in select_parts(model, stage.train).values())
    reference = weights if objective.compares and recipe.model.adapter is None else 0
    held = 4 * (2 if stage.optimizer == "muon" else 3) * learning  # gradients and what the optimizer remembers
    if recipe.parallel in zero.STAGES and count > 1:  # ZeRO's optimizer has weights of its own; see zero.py
        return reference + weights / (count if recipe.parallel == "zero3" else 1) + (held + 4 * learning) / count
    return (reference + weights + held) / (count if recipe.parallel == "fsdp2" else 1)


def _passes(recipe: Recipe, objective: Objective, model: Any, sizes: SampleSizes) -> tuple[float, float]:
    """Bytes of the largest samples on their way through the model, and operations of a step of those in the middle."""
    passes, config = _Passes(recipe, objective, model), model.config
    counts = (sizes.tokens, sizes.pictures, sizes.learned)
    typical = objective.pass_shape(*(sum(some) / len(some) for some in counts))
    largest = objective.pass_shape(*(max(some) for some in counts))
    if objective.stage.data is not None and objective.stage.data.pack:  # many small samples fit into a row, too
        largest = largest._replace(
            pictures=max(typical.pictures, largest.pictures), learned=max(typical.learned, largest.learned)
        )
    kept = passes.cost(largest).bytes(objective.stage.gradient_checkpointing)
    logits = 2 * 4 * largest.learned * config.get_text_config().vocab_size  # their gradients
    footprint = type(model).footprint(config, getattr(torch, recipe.model.dtype))
    features = largest.pictures * (footprint.transient_bytes + footprint.picture_bytes)
    working = footprint.working_bytes * min(1.0, largest.pictures / config.vision_batch_size)
    return kept + logits + features + working, passes.operations(typical)


class _Passes:
    """What passes through one model cost, with what learns in it now."""

    def __init__(self, recipe: Recipe, objective: Objective, model: Any) -> None:
        self._model, self._objective = model, objective
        self._half = recipe.model.dtype == "bfloat16"

    def cost(self, shape: PassShape) -> PassCost:
        """Of one pass: of as many conversations as a sample has, about the same pictures."""
        text = self._of_text(shape) if shape.positions else PassCost.nothing()
        text = text.times(self._objective.conversations)
        if not self._objective.encodes or not shape.pictures:
            return text
        one, two = (self._of_pictures(number) for number in (1, 2))  # what is cast but once is no further cost
        return text + one + (two - one).times(shape.pictures - 1)

    def operations(self, shape: PassShape) -> float:
        """Of a whole step; a reference computes the forward pass, too."""
        cost = self.cost(shape)
        reference = cost.forward if self._objective.compares else 0.0
        return shape.passes * (cost.operations(self._objective.stage.gradient_checkpointing) + reference)

    def _of_pictures(self, number: int) -> PassCost:
        side = self._model.config.picture_size
        return cost_of(
            self._model, lambda: self._model.encode(torch.empty(number, 3, side, side, device="meta")), self._half
        )

    def _of_text(self, shape: PassShape) -> PassCost:
        table = self._model.get_input_embeddings().weight
        learns = table.requires_grad or bool({"vision", "connector"} & set(self._objective.stage.train))
        size = (shape.rows, shape.positions, table.shape[1])

        def forward() -> torch.Tensor:
            mask = torch.ones(shape.rows, 1, shape.positions, shape.positions, dtype=torch.bool, device="meta")
            logits = self._model.language_model(
                inputs_embeds=torch.empty(size, dtype=table.dtype, device="meta", requires_grad=learns),
                attention_mask=mask,
                position_ids=torch.arange(shape.positions, device="meta").expand(shape.rows, -1),
                use_cache=False,
                logits_to_keep=min(shape.positions, math.ceil(shape.learned / shape.rows)) or 1,
            ).logits.flatten(0, 1)
            return functional.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long, device="meta"))

        return cost_of(self._model, forward, self._half)


# ── refusing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_memory(recipe: Recipe, found: Sequence[StageEstimate]) -> None:
    """
    Raises:
        RecipeError: a stage takes clearly more memory than there is.
    """
    device = device_of()
    there = memory_of(device)
    for stage, taken in zip(recipe.stages, found, strict=True):
        if taken.memory is None or taken.memory <= MARGIN * there:
            continue
        raise RecipeError(
            f"stages.{stage.name} takes about {taken.memory / GIB:.1f} GiB of memory, and {device} has "
            f"{there / GIB:.1f} GiB; {_remedy(recipe, stage)}, or go on all the same with --force"
        )


def _remedy(recipe: Recipe, stage: Stage) -> str:
    """What would take less, of what the recipe does not do yet."""
    if stage.data is None:
        return "give it fewer tokens or a smaller batch"
    ways = {
        f"a smaller data.pack than {stage.data.pack}": stage.data.pack > 0,
        f"a smaller data.micro_batch than {stage.data.micro_batch}": stage.data.micro_batch > 1,
        "gradient_checkpointing: true": not stage.gradient_checkpointing,
        "fewer frames or a smaller data.max_length": True,
        "model.adapter": recipe.model.adapter is None and recipe.model.start is not None,
        "model.quantize: nf4": recipe.model.adapter is not None and recipe.model.quantize is None,
        "model.dtype: bfloat16": recipe.model.dtype == "float32",
    }
    return "try " + ", ".join(way for way, fits in ways.items() if fits)
