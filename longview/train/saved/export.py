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
from longview.models.families import families, family_of
from longview.models.official import Form, files_beside, make
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
    """Write what was trained: the model, or the adapter that it was given, with the processor's settings."""
    if adapter is None:
        return export(model, processor, folder)
    adapters.save(adapter, folder, str(base), processor)
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


def export_model(name: str, folder: Path, form: Form | None) -> Path:
    """Write a model that exists, its weights as they are, in another form, or in ours.

    Raises:
        CheckpointError: it cannot be opened, it has no such form, or the folder cannot be written.
    """
    source = checkpoint.resolve(name)
    family = family_of(source)
    files_beside(source)  # which may refuse
    model = family.Model.from_pretrained(source, dtype="auto")
    processor = family.Processor.from_pretrained(source)
    with new_folder(folder) as unfinished, writing(folder):
        processor.save_pretrained(unfinished)
        export(model, processor, unfinished, model.dtype)
        if form is not None:
            make(form, unfinished, source)
    return folder


def export_checkpoint(output: str | Path, folder: str | Path, form: Form | None = None) -> Path:
    """Export the newest checkpoint of a run, which may still be going on; with validation, the best of its stage.

    Args:
        form: That of the authors' releases, or of transformers' own model; see `longview.models.official`.

    Raises:
        RecipeError: there is no checkpoint yet, or none of a model that has an official form.
        CheckpointError: something in the run's folder is damaged, or the other folder cannot be written.
    """
    output, folder = Path(output), Path(folder)
    recipe = read_recipe(output)
    of_a_family = recipe.model.start is not None or recipe.model.family in families()
    if form and (recipe.model.adapter is not None or not of_a_family):
        merging = f"longview merge {output / 'adapter'} FOLDER --{form} makes one"
        hint = merging if recipe.model.adapter else f"leave out --{form}"
        raise RecipeError(f"{output} trains no whole model of a family, which alone has another form; {hint}")
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
        if form is not None:
            make(form, unfinished, start)
    return folder
