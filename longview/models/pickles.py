"""Folders whose weights are published as PyTorch's `.bin` only, rewritten as safetensors without trusting them.

Each file is read by a process of its own, with `weights_only=True`: nothing but tensors is made of it, and what breaks
that reader breaks the process. What it wrote is held against the index and against the model that config.json describes
before it gets its name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from longview.errors import CheckpointError
from longview.files import filling, writing
from longview.hubs import line
from longview.models import checkpoint
from longview.models.families import families, family_of
from longview.models.sources import read_json

WHOLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_TO = "model.safetensors"
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from longview.models.unpickle import main; main()"
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""In names of environment variables that the process does not get."""


def convert(folder: Path) -> list[Path]:
    """Rewrite a folder's pickled weights as safetensors, beside them; all files appear at the end, or none.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: there are none, or safetensors already; a file is missing or holds more than tensors; or the
            tensors are not those of the model that config.json describes.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; name the one that holds {WHOLE}, or its parts and {INDEX}")
    there = sorted(path.name for path in folder.glob("model*.safetensors*"))
    if there:
        raise CheckpointError(f"{folder} holds safetensors already ({there[0]}); it opens as it is")
    placed, sources = _sources(folder)
    number = len(sources)
    names = [_TO] if number == 1 else [f"model-{n + 1:05}-of-{number:05}.safetensors" for n in range(number)]
    with writing(folder), filling(folder) as unfinished:
        shapes: dict[str, tuple[int, ...]] = {}
        weight_map: dict[str, str] = {}
        for source, name in zip(sources, names, strict=True):
            _convert_file(source, unfinished / name)
            found = _shapes(unfinished / name)
            lost = [key for key, file in (placed or {}).items() if file == source.name and key not in found]
            if lost:
                raise CheckpointError(f"{source} lacks {lost[0]}, which {INDEX} places there; fetch both again")
            shapes |= found
            weight_map |= dict.fromkeys(found, name)
        _check(folder, shapes)
        if number > 1:
            size = sum((unfinished / name).stat().st_size for name in names)
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (unfinished / f"{_TO}.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            names.append(f"{_TO}.index.json")
    return [folder / name for name in names]


def _sources(folder: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """Where the index places each tensor, if there is one, and the files."""
    if (folder / WHOLE).is_file():
        return None, [folder / WHOLE]
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder} holds no {WHOLE} and no {INDEX}; there is nothing to convert")
    placed = read_json(folder, INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise CheckpointError(f"{folder / INDEX} is no index of weights (weight_map); fetch it again")
    files = sorted(set(placed.values()))
    missing = [file for file in files if Path(file).name != file or not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files: {missing[0]}; fetch it again"
        )
    return placed, [folder / file for file in files]


def _convert_file(source: Path, target: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not any(s in name.upper() for s in _SECRETS)}
    command = [sys.executable, "-c", _START, json.dumps(sys.path), str(source), str(target)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return
    told = done.stdout.strip() or (done.stderr.strip().splitlines() or [f"the reader ended with {done.returncode}"])[-1]
    raise CheckpointError(
        f"{source} cannot be read as tensors and nothing else ({told[:300]}); nothing was converted: fetch it "
        "again, or take another copy"
    )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def _check(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Hold what was read against the model that config.json describes: a family's, or a language model."""
    written = checkpoint.read_config(folder)
    if any(family.recognises(written) for family in families().values()):
        family: Any = family_of(folder)
        family.Model.check(checkpoint.open_config(family.Config, folder), shapes, folder)
        return
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever transformers raises for a config of no model that it knows
        raise CheckpointError(
            f"{folder / 'config.json'} describes no model that the weights could be held against ({line(error)}); "
            "fetch it again"
        ) from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if ".experts." not in name}
    optional = ["lm_head."] if config.tie_word_embeddings else []
    checkpoint.check_shapes(expected, shapes, folder, optional=optional)
