"""Initialise parts of a new model from others' weights: towers and language models that exist.

A part is taken from any folder that holds it: a language model's own folder, or a whole model of any family. Its
tensors are matched by the ends of their names.

    wanted   llm.model.layers.0.mlp.up_proj.weight
    found              model.layers.0.mlp.up_proj.weight   in a language model's own folder
    found    language_model.model.layers.0.mlp.up_proj.weight              in an MGM
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longview.errors import CheckpointError, RecipeError
from longview.models import adapters, checkpoint
from longview.models.families import family_of


def check_parts(model: Any, sources: Mapping[str, str]) -> None:
    """Make sure that the model has the parts that are to be initialised.

    Raises:
        RecipeError: it has no such part.
    """
    for part in sources:
        if part not in model.parts:
            raise RecipeError(f"model.init_from names {part!r}; the model's parts are {', '.join(model.parts)}")


@torch.no_grad()
def init_from(model: Any, sources: Mapping[str, str]) -> dict[str, str]:
    """Give parts of a new model the weights of others; returns the SHA-256 of each file that was read.

    Args:
        sources: Part → folder or hub id.

    Raises:
        RecipeError: a folder does not hold such a part, or one of another size.
        CheckpointError: a folder cannot be read.
    """
    check_parts(model, sources)
    digests: dict[str, str] = {}
    for part, name in sources.items():
        folder = checkpoint.resolve(name)
        found = _tensors(folder)
        wanted = {n: p for n, p in model.named_parameters() if adapters.part_of(model, n) == part}
        places = match(list(wanted), list(found), model.parts[part])
        # A Qwen2 from a Llama has biases that the Llama lacks; they become 0.
        lacking = [n for n in wanted if n not in places and not n.endswith(".bias")]
        if lacking:
            raise RecipeError(
                f"model.init_from.{part}: {name} has nothing for {lacking[0]!r}; name a folder that holds this part"
            )
        for own, other in places.items():
            if found[other].shape != wanted[own].shape:
                raise RecipeError(
                    f"model.init_from.{part}: {other!r} in {name} is {tuple(found[other].shape)}, and {own!r} of the "
                    f"new model is {tuple(wanted[own].shape)}; give model.config the sizes of the part"
                )
        digests |= {
            f"{name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.glob("*.safetensors"))
        }
        for own, parameter in wanted.items():
            if own in places:
                parameter.copy_(found[places[own]])
            else:
                parameter.zero_()
    return digests


def _tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder: of a family's model under our names, of any other under its own."""
    checkpoint.tensor_shapes(folder)
    try:
        family = family_of(folder)
    except CheckpointError:
        files = sorted(folder.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in checkpoint.read_tensors(file).items()}
    return dict(family.Model.from_pretrained(folder).named_parameters())


def match(wanted: list[str], found: list[str], marks: tuple[str, ...]) -> dict[str, str]:
    """Which found tensor each wanted one takes: under each mark of the part, the prefix that fits most of them."""
    places: dict[str, str] = {}
    known = set(found)
    prefixes = {name[: at + 1] for name in found for at in range(-1, len(name)) if at < 0 or name[at] == "."}
    for mark in marks:
        root = mark if mark.endswith(".") else f"{mark}."
        ends = [name.removeprefix(root) for name in wanted if name.startswith(root)]
        fits = {prefix: sum(prefix + end in known for end in ends) for prefix in sorted(prefixes, key=len)}
        best = max(fits, key=lambda prefix: fits[prefix], default="")
        places |= {root + end: best + end for end in ends if best + end in known}
    # a part that lies inside others, as the connector does in mPLUG-Owl3's blocks, has the same names there
    return {name: name for name in wanted if name in known} | places


def tokenizer_of(sources: Mapping[str, str]) -> Path | None:
    """The tokenizer that belongs to the language model which a recipe initialises from."""
    return checkpoint.resolve(sources["language"]) / "tokenizer.json" if "language" in sources else None
