"""Which model a recipe trains: one that exists, or a new one, written down before it learns."""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import nn

from longview.curriculum import contrastive as pairs
from longview.errors import CheckpointError, LongviewError, RecipeError
from longview.models import adapters, quantization
from longview.models import checkpoint as folders
from longview.models.families import families, family_of
from longview.train.init_from import check_parts, words_of
from longview.train.recipe import ModelPart, Recipe
from longview.train.saved.folder import REPAIR
from longview.train.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer
from longview.world.questions import vocabulary

SETTINGS: dict[str, tuple[type, ...]] = {"cut_enable": (bool,), "max_partition": (int, type(None))}
"""What a recipe can set of the processor of a model that exists: how pictures are cut into crops."""


def open_model(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    """The recipe's model and its processor; those of a new model are written to `folder` first.

    Everything is in fp32, but for what no stage trains where the recipe has another dtype.
    """
    part = recipe.model
    if part.liger and not torch.cuda.is_available():
        raise RecipeError("model.liger: Liger kernels run on CUDA devices only, and there is none; leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    if part.start is not None:
        source = folders.resolve(part.start)
        family = family_of(source)
        dtype = getattr(torch, part.dtype)
        options = quantized(part, family.Model, source)
        model = family.Model.from_pretrained(source, dtype=dtype, attn_implementation=part.attention, **options)
        learning = {name for stage in recipe.stages for name in stage.train} if part.adapter is None else set()
        for name, parameter in model.named_parameters():
            if adapters.part_of(model, name) in learning:
                parameter.data = parameter.data.float()
        processor = family.Processor.from_pretrained(source, config=model.config)
        for key, value in part.processor.items():
            if key not in SETTINGS or not isinstance(getattr(processor, key, None), SETTINGS[key]):
                raise RecipeError(f"model.processor.{key} is no setting of {part.start}; leave it out")
            if not isinstance(value, SETTINGS[key]):
                raise RecipeError(f"model.processor.{key} is {value!r:.40}; expected {SETTINGS[key][0].__name__}")
            setattr(processor, key, value)
        processor.save_pretrained(folder)
        return model, processor
    if part.family == pairs.FAMILY:
        check_config_keys(pairs.SiglipConfig, part.config, "model.config")
        with _building(part.config):
            return pairs.open_towers(part, folder)
    known = families()
    if part.family not in known:
        names = ", ".join([*known, pairs.FAMILY])
        raise RecipeError(f"model.family is {part.family!r}; expected one of {names}")
    family = known[part.family]
    # A resumed run keeps its words, even if the world has learned new ones since.
    kept = folder / "tokenizer.json"
    given = kept if kept.exists() else words_of(part.parts)
    tokenizer = _open_words(given) if given is not None else build_tokenizer(vocabulary(recipe.data.prints > 0))
    check_config_keys(family.Config, part.config, "model.config")
    with _building(part.config):
        config = family.Config(**copy.deepcopy(part.config))
        words = config.get_text_config()
        where, sizes = next(
            ((f".{key}", value) for key, value in part.config.items() if getattr(config, key, None) is words),
            ("", part.config),
        )
        if "vocab_size" in sizes:
            raise RecipeError(f"model.config{where}.vocab_size is decided by the tokenizer; leave it out")
        words.vocab_size = tokenizer.get_vocab_size()
        words.eos_token_id = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
        words.bos_token_id = None
        model = family.Model._from_config(config, attn_implementation=part.attention, dtype=torch.float32)
    check_parts(model, part.parts)
    config.save_pretrained(folder)
    if not (kept.exists() and (folder / "tokenizer_config.json").exists()):
        save_tokenizer(tokenizer, folder, config.max_position_embeddings)
    (folder / "preprocessor_config.json").write_text(json.dumps(part.processor, indent=2) + "\n")
    return model, family.Processor.from_pretrained(folder, config=config)


def quantized(part: ModelPart, model_class: Any, source: Path) -> dict[str, Any]:
    """Arguments of `from_pretrained` by which the language model is kept in 4 bits, where the recipe wants that.

    Raises:
        RecipeError: it is quantised already.
        MissingExtraError: bitsandbytes is not installed.
    """
    if part.quantize is None:
        return {}
    if folders.read_config(source).get("quantization_config") is not None:
        raise RecipeError(f"model.start {part.start} is quantised already; leave model.quantize out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, part.dtype)
    config = quantization.bitsandbytes_config(model_class, False, True, device, dtype, "model.quantize")
    return {"quantization_config": config}


def _open_words(path: Path) -> FastTokenizer:
    """The tokenizer that a run began with."""
    try:
        tokenizer = FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more particular
        raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {REPAIR}") from error
    lacking = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if lacking:
        raise CheckpointError(f"{path} lacks the token {lacking[0]!r}; {REPAIR}")
    return tokenizer


def check_config_keys(config_class: Any, values: Mapping[str, Any], where: str) -> None:
    """Refuse what a family's config would silently take and never look at.

    Raises:
        RecipeError: names the nearest known key.
    """
    known = set(inspect.signature(config_class.__init__).parameters) - {"self", "kwargs"} | {"model_type"}
    nested = getattr(config_class, "sub_configs", None)
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0)[0]
            raise RecipeError(f"unknown key {key!r} in {where}; the nearest known key is {near!r}")
        if isinstance(nested, dict) and key in nested and isinstance(value, Mapping):
            check_config_keys(nested[key], value, f"{where}.{key}")


@contextlib.contextmanager
def _building(config: Mapping[str, Any]) -> Iterator[None]:
    """What a family says of a config that it cannot use, as one line."""
    try:
        yield
    except LongviewError:
        raise
    except Exception as error:  # configs and layers raise whatever their first wrong number leads to
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"model.config does not make a model ({reason}); it has {', '.join(config)}") from error


def add_adapter(recipe: Recipe, model: Any) -> Any:
    """Adapters around the parts that any stage trains, where the recipe wants them; PEFT's wrapper, or None."""
    settings = recipe.model.adapter
    if settings is None:
        return None
    parts = list(dict.fromkeys(part for stage in recipe.stages for part in stage.train))
    return adapters.add(model, parts, settings.rank, settings.alpha, settings.dropout)


def kept(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a checkpoint holds: every weight; where there is an adapter, its own, as all others stay."""
    found = dict(model.named_parameters())
    return {name: found[name] for name in found if adapters.MARK in name} or found
