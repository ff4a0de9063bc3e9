"""What the stages of a recipe will take: memory, and operations. No weight is read.

Sizes come from the first samples of the data, all else from a model without memory behind it (trial.py).
"""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.curriculum.contrastive import SiglipModel
from longview.curriculum.objectives import SEEING
from longview.curriculum.pool import draw_kind, draw_sample, paint_pool
from longview.engine.devices import matrix_rate, memory_of
from longview.errors import MediaError, RecipeError, RequestError
from longview.models import adapters, checkpoint, quantization
from longview.models.base import IGNORED, PROGRAM_BYTES
from longview.models.families import family_of
from longview.train.build import add_adapter, open_model, quantized
from longview.train.data.datasets import Mixture
from longview.train.distributed import processes, zero
from longview.train.objectives.supervised import longest, prepare
from longview.train.optimizers import select_parts
from longview.train.plan.cost import Cost, try_out
from longview.train.recipe import OF_USERS, Recipe, Stage

LOOKED_AT = 16
"""Samples that are opened to tell how large they are."""
PAINTED = 32
"""Pictures that are painted for that."""
GIB = 1 << 30
MARGIN = 1.1
"""A run is refused when it takes so much more than there is: the estimate is not exact."""


class Sizes(NamedTuple):
    """What the samples that were opened hold, one number a sample."""

    tokens: list[int]
    pictures: list[int]
    learned: list[int]
    """Words that are learned."""
    broken: int = 0


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a stage takes."""

    sizes: Sizes | None = None
    """None: unknown, as is the rest."""
    memory: float | None = None
    """Bytes at most, on the device that trains."""
    operations: float | None = None
    """Of a step."""


def in_four_bits(recipe: Recipe, model: Any) -> int:
    """Parameters that a run keeps in NF4: the weights of the language model's linear layers, where the recipe says so.

    Args:
        model: Not quantised itself, without adapters.
    """
    if recipe.model.quantize is None:
        return 0
    return sum(model.get_submodule(name).weight.numel() for name in adapters.linear_layers(model, ["language"]))


def device_of(recipe: Recipe) -> str:
    """Where a recipe is followed: the synthetic world is made for one CPU core."""
    users = all(stage.objective in OF_USERS for stage in recipe.stages)
    return "cuda" if users and torch.cuda.is_available() else "cpu"


def bare_model(recipe: Recipe) -> tuple[Any, Any]:
    """The recipe's model on the device `meta`, without weights, and its processor.

    Raises:
        RecipeError, CheckpointError: it cannot be made.
    """
    if recipe.model.start is None:
        with tempfile.TemporaryDirectory() as beside:
            model, processor = open_model(recipe, Path(beside))
            return model.to("meta"), processor
    folder = checkpoint.resolve(recipe.model.start)
    family = family_of(folder)
    config = checkpoint.open_config(family.Config, folder)
    family.Model.check(config, checkpoint.tensor_shapes(folder), folder)
    quantized(recipe.model, family.Model, folder)
    with torch.device("meta"):
        model = family.Model._from_config(config, attn_implementation=recipe.model.attention, dtype=torch.float32)
    return model, family.Processor.from_pretrained(folder, config=config)


def forecasts(recipe: Recipe, mixtures: Mapping[str, Mixture], model: Any, processor: Any) -> list[Forecast]:
    """What each stage takes. The model, from `bare_model`, gets the recipe's adapters and number formats."""
    small = in_four_bits(recipe, model)
    with torch.device("meta"):
        adapted = add_adapter(recipe, model) is not None
    count = processes.count()
    learns = set() if adapted else {part for stage in recipe.stages for part in stage.train}
    for name, parameter in model.named_parameters():
        exact = adapters.MARK in name or adapters.part_of(model, name) in learns
        parameter.data = parameter.data.to(torch.float32 if exact else getattr(torch, recipe.model.dtype))
    model.train()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    weights -= int(small * (getattr(torch, recipe.model.dtype).itemsize - quantization.NF4_BYTES))
    found = []
    for stage in recipe.stages:
        sizes = measure(recipe, stage, model, processor, mixtures.get(stage.name))
        if sizes is None or not sizes.tokens:
            found.append(Forecast(sizes))
            continue
        learning = sum(parameter.numel() for parameter in select_parts(model, stage.train).values())
        reference = 0 if adapted or stage.objective != "preference" else weights
        held = 4 * (2 if stage.optimizer == "muon" else 3) * learning  # gradients and what the optimizer remembers
        if recipe.parallel in zero.STAGES and count > 1:  # ZeRO's optimizer has weights of its own; see zero.py
            held = reference + weights / (count if recipe.parallel == "zero3" else 1) + (held + 4 * learning) / count
        else:
            held = (reference + weights + held) / (count if recipe.parallel == "fsdp2" else 1)
        found.append(_forecast(recipe, stage, model, sizes, held))
    return found


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(recipe: Recipe, stage: Stage, model: Any, processor: Any, mixture: Mixture | None) -> Sizes | None:
    """Open, or paint, the first samples of a stage; None where they are no conversations and pictures of a family."""
    if isinstance(model, SiglipModel):
        return None
    if stage.objective in ("contents", "places"):
        return Sizes([0], [1], [0])
    if stage.objective == "answers":
        return _painted(recipe, stage, model.config.picture_size, processor)
    if mixture is None:
        return None
    sizes = Sizes([], [], [])
    for position in range(min(LOOKED_AT, mixture.epoch)):
        data, number = mixture.at(position)
        draw = random.Random(f"{recipe.seed} {stage.name} crop {position}").random()
        try:
            sample = prepare(processor, data[number], stage, longest(model.config, stage), draw)
        except (MediaError, RequestError):
            sizes = sizes._replace(broken=sizes.broken + 1)
            continue
        told = [each for each in (sample.inputs, sample.rejected) if each is not None]
        sizes.tokens.append(max(each.length for each in told))
        sizes.pictures.append(sample.inputs.num_pictures)
        sizes.learned.append(max(_learned(each.text_inputs["labels"]) for each in told))
    return sizes


def _painted(recipe: Recipe, stage: Stage, side: int, processor: Any) -> Sizes:
    """Of conversations about the synthetic world."""
    few = dataclasses.replace(recipe.data, pictures=PAINTED, clips=min(2, recipe.data.clips))
    pool, rng = paint_pool(few, side, recipe.seed), random.Random(f"{recipe.seed} sizes")
    if not pool.simple:
        stage = dataclasses.replace(stage, simple=0.0)
    sizes = Sizes([], [], [])
    for _ in range(LOOKED_AT):
        sample = draw_sample(rng, pool, stage, draw_kind(rng, stage.mix))
        inputs = processor.prepare(sample.messages, sample.media, train=True)
        sizes.tokens.append(inputs.length)
        sizes.pictures.append(inputs.num_pictures)
        sizes.learned.append(_learned(inputs.text_inputs["labels"]))
    return sizes


def _learned(labels: Tensor) -> int:
    return int((labels[:, 1:] != IGNORED).sum())


# ── what they take ───────────────────────────────────────────────────────────────────────────────────────────────────


class Layout(NamedTuple):
    """Samples that pass the model together."""

    rows: int
    positions: int
    """Of each row; 0: pictures pass alone."""
    pictures: float
    learned: float
    """Words."""
    passes: float
    """Such passes a step."""


def layout(stage: Stage, tokens: float, pictures: float, learned: float) -> Layout:
    """How samples of so many tokens, pictures and learned words each are laid out."""
    if stage.objective not in ("answers", *OF_USERS):
        return Layout(stage.batch, 0, stage.batch * pictures, 0, 1)
    if stage.objective == "answers":
        together = stage.tokens / tokens
        return Layout(math.ceil(together), math.ceil(tokens), together * pictures, together * learned, 1)
    together = max(1.0, stage.pack / tokens) if stage.pack else min(stage.micro_batch, stage.batch)
    rows, positions = (1, stage.pack) if stage.pack else (int(together), math.ceil(tokens))
    return Layout(rows, positions, together * pictures, together * learned, stage.batch / together)


class _Passes:
    """What passes through one model cost, with what learns in it now."""

    def __init__(self, recipe: Recipe, stage: Stage, model: Any) -> None:
        self._model, self._stage = model, stage
        self._lowered = recipe.model.dtype == "bfloat16"
        self._seeing = stage.objective in OF_USERS or bool(SEEING & set(stage.train))
        self._pairs = 2 if stage.objective == "preference" else 1

    def cost(self, shape: Layout) -> Cost:
        """Of one pass; preferences compare two answers about the same pictures."""
        words = self._of_words(shape) if shape.positions else Cost.nothing()
        if not self._seeing or not shape.pictures:
            return words.times(self._pairs)
        one, two = (self._of_pictures(number) for number in (1, 2))  # what is cast but once is no further cost
        return words.times(self._pairs) + one + (two - one).times(shape.pictures - 1)

    def operations(self, shape: Layout) -> float:
        """Of a whole step; the reference of preferences reads the same, too."""
        cost = self.cost(shape)
        reference = cost.forward if self._pairs == 2 else 0.0
        return shape.passes * (cost.operations(self._stage.gradient_checkpointing) + reference)

    def _of_pictures(self, number: int) -> Cost:
        side = self._model.config.picture_size
        return try_out(
            self._model, lambda: self._model.encode(torch.empty(number, 3, side, side, device="meta")), self._lowered
        )

    def _of_words(self, shape: Layout) -> Cost:
        table = self._model.get_input_embeddings().weight
        learns = table.requires_grad or bool(SEEING & set(self._stage.train))
        size = (shape.rows, shape.positions, table.shape[1])

        def read() -> Tensor:
            mask = torch.ones(shape.rows, 1, shape.positions, shape.positions, dtype=torch.bool, device="meta")
            logits = self._model.language_model(
                inputs_embeds=torch.empty(size, dtype=table.dtype, device="meta", requires_grad=learns),
                attention_mask=mask,
                position_ids=torch.arange(shape.positions, device="meta").expand(shape.rows, -1),
                use_cache=False,
                logits_to_keep=min(shape.positions, math.ceil(shape.learned / shape.rows)) or 1,
            ).logits.flatten(0, 1)
            return functional.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long, device="meta"))

        return try_out(self._model, read, self._lowered)


def _forecast(recipe: Recipe, stage: Stage, model: Any, sizes: Sizes, held: float) -> Forecast:
    """Memory by the largest samples, operations by those in the middle.

    Args:
        held: Bytes of weights, gradients and the like.
    """
    passes, config = _Passes(recipe, stage, model), model.config
    counts = (sizes.tokens, sizes.pictures, sizes.learned)
    typical = layout(stage, *(sum(some) / len(some) for some in counts))
    largest = layout(stage, *(max(some) for some in counts))
    if stage.pack:  # many small samples fit into a row, too
        largest = largest._replace(
            pictures=max(typical.pictures, largest.pictures), learned=max(typical.learned, largest.learned)
        )
    kept = passes.cost(largest).bytes(stage.gradient_checkpointing)
    logits = 2 * 4 * largest.learned * config.get_text_config().vocab_size  # their gradients
    seen = type(model).footprint(config, getattr(torch, recipe.model.dtype))
    features = largest.pictures * (seen.passing_bytes + seen.picture_bytes)
    working = seen.working_bytes * min(1.0, largest.pictures / config.vision_batch_size)
    return Forecast(sizes, PROGRAM_BYTES + held + kept + logits + features + working, passes.operations(typical))


def rate_of(recipe: Recipe, model: Any, device: str) -> float:
    """Operations a second at which a device multiplies matrices of the model's widths; measured, in about a second."""
    text = model.config.get_text_config()
    dtype = getattr(torch, recipe.model.dtype)
    return matrix_rate(512, text.hidden_size, text.intermediate_size, dtype, torch.device(device))


def check_memory(recipe: Recipe, found: Sequence[Forecast]) -> None:
    """
    Raises:
        RecipeError: a stage takes clearly more memory than there is.
    """
    device = device_of(recipe)
    there = memory_of(device)
    for stage, forecast in zip(recipe.stages, found, strict=True):
        if forecast.memory is None or forecast.memory <= MARGIN * there:
            continue
        raise RecipeError(
            f"stages.{stage.name} takes about {forecast.memory / GIB:.1f} GiB of memory, and {device} has "
            f"{there / GIB:.1f} GiB; {_remedy(recipe, stage)}, or go on all the same with --force"
        )


def _remedy(recipe: Recipe, stage: Stage) -> str:
    """What would take less, of what the recipe does not do yet."""
    quantizes = recipe.model.adapter is not None and recipe.model.quantize is None
    ways = {
        f"a smaller pack than {stage.pack}": stage.pack > 0,
        f"a smaller micro_batch than {stage.micro_batch}": stage.micro_batch > 1,
        "gradient_checkpointing: true": not stage.gradient_checkpointing,
        "fewer frames or a smaller max_length": True,
        "model.adapter": recipe.model.adapter is None and recipe.model.start is not None,
        "model.quantize: nf4": quantizes,
        "model.dtype: bfloat16": recipe.model.dtype == "float32",
    }
    if stage.objective not in OF_USERS:
        return "give it fewer tokens or a smaller batch"
    return "try " + ", ".join(way for way, fits in ways.items() if fits)
