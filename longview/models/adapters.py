"""Low-rank adapters (LoRA, arXiv 2106.09685): made, opened, merged, and saved as the folders that PEFT reads.

PEFT puts its layers into a model in place, so the model keeps its class, and `embed_pictures`, `forward` and `generate`
work as before. These functions return PEFT's wrapper, which saves and merges.
"""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longview.errors import CheckpointError, MissingExtraError, RecipeError
from longview.files import filling
from longview.models import checkpoint, processor_settings
from longview.models.base import Model
from longview.models.sources import ADAPTER_CONFIG, adapter_folder, base_of

WEIGHTS = "adapter_model.safetensors"
MARK = ".lora_"
"""Occurs in the name of each parameter of an adapter."""


def part_of(model: Model, name: str) -> str | None:
    """The part that a parameter or module belongs to."""
    return next((part for part, marks in model.parts.items() if any(mark in name for mark in marks)), None)


def linear_layers(model: Model, parts: Sequence[str]) -> list[str]:
    """The linear layers of some parts; not the head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != "lm_head" and part_of(model, name) in parts
    ]


def add(model: Model, parts: Sequence[str], rank: int, alpha: float, dropout: float) -> Any:
    """Put fresh adapters, which change nothing yet, around the linear layers of some parts; returns PEFT's wrapper.

    Raises:
        RecipeError: the parts have no linear layers.
    """
    peft = _library()
    layers = linear_layers(model, parts)
    if not layers:
        raise RecipeError(f"{', '.join(parts)} of this model has no linear layers for an adapter; name other parts")
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)
    with _quiet():
        return peft.get_peft_model(model, config)


def attach(model: Model, folder: str | Path) -> Any:
    """Put a saved adapter into a model; returns PEFT's wrapper.

    Raises:
        CheckpointError: the folder holds no LoRA adapter in safetensors, or one of another model.
    """
    peft, folder = _library(), adapter_folder(folder)
    shapes = _shapes(folder)
    config = folder / ADAPTER_CONFIG
    if checkpoint.read_json(folder, config.name).get("megatron_config") is not None:  # PEFT imports a module it names
        raise CheckpointError(f"{config} has a megatron_config, which longview does not open; take it out")
    modules = dict(model.named_modules())
    for name, shape in shapes.items():
        layer = name.removeprefix("base_model.model.").partition(MARK)[0]
        weight = getattr(modules.get(layer), "weight", None)
        fits = weight is not None and (
            shape[-1] == modules[layer].in_features if "lora_A" in name else shape[0] == modules[layer].out_features
        )
        if not fits:
            raise CheckpointError(
                f"{folder} holds {name} of shape {list(shape)}, for which this model has no layer; it was trained on "
                f"{base_of(folder)}: name that with --model"
            )
    with _fitting(folder), _quiet():
        return peft.PeftModel.from_pretrained(model, str(folder))


@contextlib.contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Whatever PEFT and torch raise for a bad config, which they do not check, as one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"the adapter {folder} is damaged or does not fit this model: {reason}") from error


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an adapter's tensors."""
    kind = checkpoint.read_json(folder, ADAPTER_CONFIG).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} has peft_type {kind!r:.40}; longview opens LORA")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; longview opens adapters in safetensors only")
    return {name: tuple(tensor.shape) for name, tensor in checkpoint.read_tensors(folder / WEIGHTS).items()}


def open_into(model: Model, folder: str | Path, merge: bool = True) -> None:
    """Apply a saved adapter: merged into the weights, with no trace left, or attached to them.

    Raises:
        CheckpointError: as `attach`.
    """
    wrapper = attach(model, folder)
    if merge:
        with _fitting(Path(folder)):
            wrapper.merge_and_unload()


def beside(model: Model, folder: str | Path) -> Model:
    """A model with a saved adapter, which shares all other weights with the one that is given, and leaves it as it is.

    Raises:
        CheckpointError: as `attach`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    attach(twin, folder)
    return twin.eval()


def save(wrapper: Any, folder: Path, base: str, processor: Any = None) -> None:
    """Write a folder that PEFT and `longview.load(adapter=)` open.

    Args:
        processor: The one that it was trained with, whose settings are kept beside it.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = wrapper.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    tensors = get_peft_model_state_dict(wrapper)
    with filling(folder) as unfinished:
        (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, default=str, sort_keys=True) + "\n")
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, unfinished / WEIGHTS)
        if processor is not None:
            processor_settings.save(processor, unfinished)


@contextlib.contextmanager
def disabled(model: Model) -> Iterator[None]:
    """A context in which the model computes without its adapters, and without gradients."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    requires_grad = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, learned in requires_grad.items():
            parameter.requires_grad_(learned)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warning that PEFT reads `is_gradient_checkpointing` by its older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _library() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("an adapter", "peft") from error
    return peft
