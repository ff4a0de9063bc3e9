"""A checkpoint folder in the form of the authors' releases, or in that of transformers' own model of a family.

Weights are saved under the official names anyway. What differs is around them: config.json, which that code opens with
transformers 4, the index of weights, and the files of the folder that a model was trained from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.families import family_of

Form = Literal["official", "transformers"]
INDEX = "model.safetensors.index.json"
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
_OURS = ("config.json", INDEX, "preprocessor_config.json", "evaluation.json", "adapter_config.json")


def make(form: Form, folder: Path, start: Path | None = None) -> None:
    """Rewrite a folder that was just written; see the functions of the forms."""
    if form == "official":
        make_official(folder, start)
    else:
        make_transformers(folder)


def make_transformers(folder: Path) -> None:
    """Rewrite a folder that was just written as one that transformers' own classes open, where they have the family.

    Raises:
        CheckpointError: transformers has no such model.
    """
    family = family_of(folder)
    port = getattr(family, "port", None)
    if port is None:
        name = family.__name__.rpartition(".")[2]
        raise CheckpointError(f"transformers has no model of family {name!r}; leave out --transformers")
    port.write(folder)


def make_official(folder: Path, start: Path | None = None) -> None:
    """Rewrite the files around the weights of a folder that was just written; it still opens here as before.

    Args:
        start: The folder of the model that it was trained from, whose tokenizer and code, if any, go along.

    Raises:
        CheckpointError: the authors' code builds no such model.
    """
    family = family_of(folder)
    written = family.official_config(checkpoint.open_config(family.Config, folder), folder)
    dtype = checkpoint.read_config(folder).get("dtype")
    released = {} if start is None else checkpoint.read_config(start)
    port = getattr(family, "port", None)
    if port is not None and port.is_port(released):  # its files are not the authors'
        start, released = None, {}
    if "auto_map" in released:
        written["auto_map"] = released["auto_map"]
    _write(folder / "config.json", written | {"torch_dtype": dtype})
    _write_index(folder)
    for path in [] if start is None else files_beside(start):
        if path.name not in _OURS:
            shutil.copy(path, folder)
    pixels = folder / "preprocessor_config.json"
    if start is not None and (start / pixels.name).exists():
        own = checkpoint.read_json(folder, pixels.name) if pixels.exists() else {}
        settings = {key: value for key, value in own.items() if key not in ("processor_class", "image_processor_type")}
        _write(pixels, checkpoint.read_json(start, pixels.name) | settings)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        settings = checkpoint.read_json(folder, tokenizer.name)
        if settings.get("tokenizer_class") == "TokenizersBackend":  # its name since transformers 5
            _write(tokenizer, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def files_beside(start: Path) -> list[Path]:
    """What lies beside a model's weights and goes along with what is made from it: tokenizer, templates, code.

    Raises:
        CheckpointError: one is a link out of the folder, so that a copy might publish what nobody meant to.
    """
    root = start.resolve()
    if root.parent.name == "snapshots":  # of the hub's cache, whose files are links into their repository's folder
        root = root.parents[1]
    found = sorted({path for kind in _BESIDE for path in start.glob(kind)})
    for path in found:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(f"{path} is a link out of its folder, and is not copied; put the file in its place")
    return [path for path in found if path.is_file()]


def _write_index(folder: Path) -> None:
    """An index of weights in one file, which some of the authors' code needs."""
    if (folder / INDEX).exists():
        return
    whole = folder / "model.safetensors"
    if not whole.exists():
        raise CheckpointError(f"{folder} holds no weights; export it again")
    names = checkpoint.tensor_shapes(folder)
    _write(
        folder / INDEX,
        {"metadata": {"total_size": whole.stat().st_size}, "weight_map": dict.fromkeys(names, whole.name)},
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
