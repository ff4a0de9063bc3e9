"""The manifest of a checkpoint: each file with its size and SHA-256, written last.

A folder is a checkpoint if its manifest is true; a flipped bit is reported before anything is trained from it. Tensors
lie in `model.safetensors`, or, where several processes hold them, in one file of each:
`model-00001-of-00002.safetensors`. Each tensor is whole in one of them, so any number of processes can go on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from longview.errors import CheckpointError
from longview.train.saved.folder import REPAIR, reading

NAME = "manifest.json"


class FileDigest(NamedTuple):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


def name_of(stem: str, rank: int, count: int) -> str:
    """The file in which process `rank` of `count` writes its tensors."""
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{rank + 1:05d}-of-{count:05d}.safetensors"


def digest_of(path: Path) -> FileDigest:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return FileDigest(path.stat().st_size, digest.hexdigest())


def write_manifest(folder: Path, digests: Mapping[str, FileDigest]) -> Path:
    """Write the manifest of a checkpoint."""
    path = folder / NAME
    path.write_text(json.dumps({name: digests[name]._asdict() for name in sorted(digests)}, indent=2) + "\n")
    return path


def verify(folder: Path) -> None:
    """Make sure that a checkpoint is what was written.

    Raises:
        CheckpointError: names the first file that is missing or has changed.
    """
    for name, digest in _read(folder).items():
        path = folder / name
        with reading(path):
            found = digest_of(path)
        if found.bytes != digest.bytes:
            raise CheckpointError(f"{path} has {found.bytes} bytes, and {digest.bytes} were written; {REPAIR}")
        if found != digest:
            raise CheckpointError(f"{path} is not what was written: its SHA-256 is another; {REPAIR}")


def read_tensors(folder: Path, stem: str) -> tuple[str, dict[str, Tensor]]:
    """All tensors of a kind, and what to call the file or files they lie in."""
    names = [name for name in _read(folder) if re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.safetensors", name)]
    if not names:
        raise CheckpointError(f"{folder / NAME} names no {stem}.safetensors; {REPAIR}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        with reading(folder / name):
            tensors |= load_file(folder / name)
    return str(folder / (names[0] if len(names) == 1 else f"{stem}-*.safetensors")), tensors


def read_weights(folder: Path, stem: str, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with exactly the expected names, shapes and types.

    Raises:
        CheckpointError: names the file and the first tensor that does not fit.
    """
    path, found = read_tensors(folder, stem)
    for name in (*expected, *found):
        if name not in found or name not in expected:
            what = "lacks" if name not in found else "has an unknown"
            raise CheckpointError(f"{path} {what} tensor {name!r}; {REPAIR}")
        check_tensor(path, name, found[name], expected[name])
    return found


def read_moments(
    folder: Path, stem: str, parameters: Mapping[str, Tensor], keys: Mapping[str, set[str]]
) -> dict[str, Tensor]:
    """What optimizers remember of parameters, named `parameter|key`; of each all `keys`, or nothing.

    Of all of them nothing, where no step had samples yet.

    Raises:
        CheckpointError: names the file and the first tensor that does not fit.
    """
    path, found = read_tensors(folder, stem)
    held: dict[str, set[str]] = {}
    for name, tensor in found.items():
        parameter, _, key = name.rpartition("|")
        if parameter not in parameters or key not in keys[parameter]:
            raise CheckpointError(f"{path} has an unknown tensor {name!r}; {REPAIR}")
        if key != "step":
            check_tensor(path, name, tensor, parameters[parameter])
        elif tensor.numel() != 1:
            raise CheckpointError(f"{path}: {name!r} has shape {tuple(tensor.shape)}, expected one number; {REPAIR}")
        held.setdefault(parameter, set()).add(key)
    for parameter, some in held.items():
        if some != keys[parameter]:
            raise CheckpointError(f"{path} lacks tensor {f'{parameter}|{min(keys[parameter] - some)}'!r}; {REPAIR}")
    return found


def check_tensor(path: str, name: str, found: Tensor, expected: Tensor) -> None:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise CheckpointError(
            f"{path}: {name!r} is {_kind(found)}, expected {_kind(expected)}; {REPAIR}",
        )


def _read(folder: Path) -> dict[str, FileDigest]:
    path = folder / NAME
    with reading(path):
        tree = json.loads(path.read_text(encoding="utf-8"))
        try:
            return {str(name): FileDigest(int(entry["bytes"]), str(entry["sha256"])) for name, entry in tree.items()}
        except (AttributeError, TypeError, KeyError) as error:
            raise ValueError("no files with bytes and sha256") from error


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
