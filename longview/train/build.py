"""Make or open the model of a recipe: one that exists, or a new one.

recipe ── open_spec ── ModelSpec: class, config, processor ─┬─ bare_model    on the device `meta`, for estimates
                                                            └─ build_model   with weights
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import nn

from longview.errors import CheckpointError, LongviewError, RecipeError
from longview.models import adapters, checkpoint, processor_settings, quantization
from longview.models.families import Family, families, family_of
from longview.models.transformers_seams import UNDECLARED
from longview.train.init_from import check_parts, tokenizer_of
from longview.train.recipe import ModelSettings, Recipe, model_openers
from longview.train.saved.folder import REPAIR
from longview.train.settings import load, nearest
from longview.train.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer
from longview.world.questions import vocabulary


@dataclass(frozen=True)
class ModelSpec:
    """The model of a recipe before it has weights."""

    model_class: Any
    config: Any
    processor: Any
    source: Path | None = None
    """The folder of its weights; None: it is new."""
    initialise: Callable[[Any], None] = lambda model: None
    """What a new model gets beside its random weights."""


def open_spec(recipe: Recipe, folder: Path, kept: Path | None = None) -> ModelSpec:
    """The class, config and processor of a recipe's model; no weight is read.

    Args:
        folder: Where the processor's files are written, with a new model's config.
        kept: A folder whose tokenizer a new model takes: a resumed run keeps its own, even if it would be built
            otherwise today. None: it is built.

    Raises:
        RecipeError: the recipe's values do not make a model.
        CheckpointError: a folder that it names cannot be read.
    """
    settings = recipe.model
    folder.mkdir(parents=True, exist_ok=True)
    if settings.start is not None:
        return _open_existing(settings, folder)
    family, known, openers = str(settings.family), families(), model_openers(recipe)
    if family in known:
        return _open_new(recipe, known[family], folder, kept)
    if family not in openers:
        names = ", ".join([*known, *openers])
        raise RecipeError(f"model.family is {family!r}; expected one of {names}")
    with refusing_config(settings.config):
        return load(openers[family])(settings, folder, kept)


def bare_model(recipe: Recipe, spec: ModelSpec) -> Any:
    """The model on the device `meta`: its shapes, and nothing in memory.

    Raises:
        RecipeError, CheckpointError: it cannot be made.
    """
    if spec.source is not None:
        quantization_options(recipe.model, spec.model_class, spec.source)  # which may refuse
    with torch.device("meta"):
        return _instantiate(recipe.model, spec)


def build_model(recipe: Recipe, spec: ModelSpec) -> Any:
    """The model with its weights; those of a new one are random, drawn from torch's generator.

    Everything is in fp32, but for what no stage trains where the recipe has another dtype.

    Raises:
        RecipeError, CheckpointError: it cannot be made.
    """
    settings = recipe.model
    check_liger(settings)
    if spec.source is None:
        model = _instantiate(settings, spec)
        spec.initialise(model)
        return model
    options = quantization_options(settings, spec.model_class, spec.source)
    dtype = getattr(torch, settings.dtype)
    model = spec.model_class.from_pretrained(
        spec.source, dtype=dtype, attn_implementation=settings.attention, **options
    )
    learning = {name for stage in recipe.stages for name in stage.train} if settings.adapter is None else set()
    for name, parameter in model.named_parameters():
        if adapters.part_of(model, name) in learning:
            parameter.data = parameter.data.float()
    return model


def open_model(recipe: Recipe, folder: Path, kept: Path | None = None) -> tuple[Any, Any]:
    """The recipe's model and its processor; see `open_spec` and `build_model`."""
    check_liger(recipe.model)
    spec = open_spec(recipe, folder, kept)
    return build_model(recipe, spec), spec.processor


def check_liger(settings: ModelSettings) -> None:
    """
    Raises:
        RecipeError: Liger kernels are asked for, and cannot run here.
    """
    if settings.liger and not torch.cuda.is_available():
        raise RecipeError("model.liger: Liger kernels run on CUDA devices only, and there is none; leave it out")


def _instantiate(settings: ModelSettings, spec: ModelSpec) -> Any:
    """A model of random weights, or of none on the device `meta`."""
    with refusing_config(settings.config):
        model = spec.model_class._from_config(spec.config, attn_implementation=settings.attention, dtype=torch.float32)
    check_parts(model, settings.init_from)
    return model


# ── a model that exists ──────────────────────────────────────────────────────────────────────────────────────────────


def _open_existing(settings: ModelSettings, folder: Path) -> ModelSpec:
    source = checkpoint.resolve(str(settings.start))
    family = family_of(source)
    config = checkpoint.open_config(family.Config, source)
    family.Model.check(config, checkpoint.tensor_shapes(source), source)
    processor = family.Processor.from_pretrained(source, config=config)
    processor_settings.change(processor, settings.processor, "model.processor.", str(settings.start), RecipeError)
    processor.save_pretrained(folder)
    return ModelSpec(family.Model, config, processor, source)


def quantization_options(settings: ModelSettings, model_class: Any, source: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which the language model is kept in 4 bits, where the recipe wants that.

    Raises:
        RecipeError: it is quantised already.
        MissingExtraError: bitsandbytes is not installed.
    """
    if settings.quantize is None:
        return {}
    if checkpoint.read_config(source).get("quantization_config") is not None:
        raise RecipeError(f"model.start {settings.start} is quantised already; leave model.quantize out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, settings.dtype)
    config = quantization.bitsandbytes_config(model_class, False, True, device, dtype, "model.quantize")
    return {"quantization_config": config}


# ── a new model ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _open_new(recipe: Recipe, family: Family, folder: Path, kept: Path | None) -> ModelSpec:
    settings = recipe.model
    given = tokenizer_of(settings.init_from) if kept is None else kept / "tokenizer.json"
    small_print = recipe.pool is not None and recipe.pool.prints > 0
    tokenizer = build_tokenizer(vocabulary(small_print)) if given is None else _open_tokenizer(given)
    check_config_keys(family.Config, settings.config, "model.config")
    with refusing_config(settings.config):
        config = family.Config(**copy.deepcopy(settings.config))
        text_config = config.get_text_config()
        where, sizes = next(
            ((f".{key}", v) for key, v in settings.config.items() if getattr(config, key, None) is text_config),
            ("", settings.config),
        )
        if "vocab_size" in sizes:
            raise RecipeError(f"model.config{where}.vocab_size is decided by the tokenizer; leave it out")
        text_config.vocab_size = tokenizer.get_vocab_size()
        text_config.eos_token_id = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
        text_config.bos_token_id = None
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, config.max_position_embeddings)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings.processor, indent=2) + "\n")
    return ModelSpec(family.Model, config, family.Processor.from_pretrained(folder, config=config))


def _open_tokenizer(path: Path) -> FastTokenizer:
    """The tokenizer that a run began with, or that of the language model it begins from."""
    try:
        tokenizer = FastTokenizer.from_file(str(path))
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {REPAIR}") from error
    lacking = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if lacking:
        raise CheckpointError(f"{path} lacks the token {lacking[0]!r}; {REPAIR}")
    return tokenizer


def check_config_keys(config_class: Any, values: Mapping[str, Any], where: str) -> None:
    """Refuse what a family's config would take and never read.

    Raises:
        RecipeError: names the nearest known key.
    """
    known = set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"} | {"model_type"}
    known |= UNDECLARED.get(config_class, set())
    nested = getattr(config_class, "sub_configs", None)
    for key, value in values.items():
        if key not in known:
            near = nearest(key, sorted(known))
            raise RecipeError(f"unknown key {key!r} in {where}; the nearest known key is {near!r}")
        if isinstance(nested, dict) and key in nested and isinstance(value, Mapping):
            check_config_keys(nested[key], value, f"{where}.{key}")


@contextlib.contextmanager
def refusing_config(config: Mapping[str, Any]) -> Iterator[None]:
    """What configs and layers raise for values that make no model, as one line.

    Raises:
        RecipeError: names the values' keys.
    """
    try:
        yield
    except LongviewError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"model.config does not make a model ({reason}); it has {', '.join(config)}") from error


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_adapter(recipe: Recipe, model: Any) -> Any:
    """Adapters around the parts that any stage trains, where the recipe wants them; PEFT's wrapper, or None."""
    settings = recipe.model.adapter
    if settings is None:
        return None
    parts = list(dict.fromkeys(part for stage in recipe.stages for part in stage.train))
    return adapters.add(model, parts, settings.rank, settings.alpha, settings.dropout)


def saved_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a checkpoint holds: every weight; where there is an adapter, its own, as all others stay."""
    found = dict(model.named_parameters())
    return {name: found[name] for name in found if adapters.MARK in name} or found
