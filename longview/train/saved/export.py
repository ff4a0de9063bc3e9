"""Export what a run has trained: a checkpoint folder, or an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from longview.errors import RecipeError
from longview.files import filling, new_folder, writing
from longview.models import adapters, checkpoint
from longview.models.families import families
from longview.models.official import files_beside, make_official
from longview.train.build import add_adapter, open_model, saved_parameters
from longview.train.recipe import Recipe
from longview.train.saved.evaluations import best_checkpoint
from longview.train.saved.folder import newest_checkpoint, read_recipe
from longview.train.saved.manifest import read_weights, verify


def export(model: PreTrainedModel, processor: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint folder that `longview.load` opens; the model itself keeps its precision.
    The processor's files are those that the folder holds already.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    with filling(folder) as unfinished:
        model.save_pretrained(unfinished, state_dict=tensors)
        config = json.loads((unfinished / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (unfinished / "generation_config.json").unlink(missing_ok=True)
    return folder


def export_trained(model: Any, processor: Any, adapter: Any, folder: Path, base: str | None) -> Path:
    """Write what was trained: the model, or the adapter that it was given."""
    if adapter is None:
        return export(model, processor, folder)
    adapters.save(adapter, folder, str(base))
    return folder


def restore(recipe: Recipe, state: Path, folder: Path, kept: Path) -> tuple[Any, Any, Any]:
    """The model of a checkpoint, its processor and adapter.

    Args:
        folder: Where the processor's files are written.
        kept: The folder of the run's tokenizer, which a new model takes.
    """
    verify(state)
    model, processor = open_model(recipe, folder, None if recipe.model.start is not None else kept)
    adapter = add_adapter(recipe, model)
    model.load_state_dict(read_weights(state, "model", saved_parameters(model)), strict=False)
    return model, processor, adapter


def export_checkpoint(output: str | Path, folder: str | Path, official: bool = False) -> Path:
    """Export the newest checkpoint of a run, which may still be going on; with validation, the best of its stage.

    Args:
        official: In the form of the authors' releases; see `longview.models.official`.

    Raises:
        RecipeError: there is no checkpoint yet, or none of a model that has an official form.
        CheckpointError: something in the run's folder is damaged, or the other folder cannot be written.
    """
    output, folder = Path(output), Path(folder)
    recipe = read_recipe(output)
    of_a_family = recipe.model.start is not None or recipe.model.family in families()
    if official and (recipe.model.adapter is not None or not of_a_family):
        merging = f"longview merge {output / 'adapter'} FOLDER --official makes one"
        hint = merging if recipe.model.adapter else "leave out --official"
        raise RecipeError(f"{output} trains no whole model of a family, which alone has an official form; {hint}")
    state = newest_checkpoint(output)
    if state is None:
        raise RecipeError(f"{output} holds no checkpoint yet; wait for the first one")
    start = None if recipe.model.start is None else checkpoint.resolve(recipe.model.start)
    if start is not None:
        files_beside(start)  # which may refuse
    state = best_checkpoint(state, recipe)
    with new_folder(folder) as unfinished, writing(folder):
        model, processor, adapter = restore(recipe, state, unfinished, output / "model")
        export_trained(model, processor, adapter, unfinished, recipe.model.start)
        if official:
            make_official(unfinished, start)
    return folder
