"""Writing a checkpoint of a run: complete, or not at all.

The files go into a folder that readers ignore, each is forced to the disk, and the folder is renamed; then the
checkpoint before it is removed. No pickle in any file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from longview.errors import LongviewError
from longview.files import UNFINISHED, follow_umask, fsync
from longview.train.distributed import processes
from longview.train.saved import manifest
from longview.train.saved.folder import checkpoints, steps_of, writing


def write_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    tensors: Mapping[str, dict[str, Tensor]],
    shared: Collection[str] = (),
    kept: Collection[Path] = (),
) -> Path:
    """Write a checkpoint in a run's folder, and remove those before; all processes take part.

    Args:
        state: What goes into state.json.
        tensors: This process's tensors, by the stem of their file.
        kept: Those before that stay.
        shared: Stems of which each process writes a file; of the others the first process writes all.

    Raises:
        CheckpointError: something cannot be written; the checkpoint before it stays.
    """
    output, unfinished = folder.parent, folder.parent / UNFINISHED
    try:
        with processes.fail_together(), writing(folder, output):
            if processes.is_first():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                (unfinished / "state.json").write_text(json.dumps(state))
        with processes.fail_together(), writing(folder, output):
            written = _write_tensors(tensors, shared, unfinished)
        digests = {name: digest for some in processes.gather(written) for name, digest in some.items()}
        with processes.fail_together(), writing(folder, output):
            if processes.is_first():
                digests["state.json"] = manifest.digest_of(unfinished / "state.json")
                for path in (unfinished / "state.json", manifest.write_manifest(unfinished, digests), unfinished):
                    fsync(path)
                unfinished.rename(folder)
                fsync(output)
    except LongviewError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if processes.is_first():
        remove_older(output, folder, kept)
    return folder


def remove_older(output: Path, newest: Path, kept: Collection[Path] = ()) -> None:
    """Remove what lies in a run's folder beside its newest checkpoint: older ones, and one that is unfinished."""
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    for old in checkpoints(output):
        if steps_of(old) < steps_of(newest) and old not in kept:
            shutil.rmtree(old, ignore_errors=True)


def _write_tensors(
    tensors: Mapping[str, dict[str, Tensor]], shared: Collection[str], folder: Path
) -> dict[str, manifest.FileDigest]:
    """Write this process's tensors; returns what the manifest says of the files."""
    digests = {}
    for stem, some in tensors.items():
        rank, count = (processes.rank(), processes.count()) if stem in shared else (0, 1)
        if stem not in shared and not processes.is_first():
            continue
        path = folder / manifest.name_of(stem, rank, count)
        save_file(some, path)
        follow_umask(path)
        fsync(path)
        digests[path.name] = manifest.digest_of(path)
    return digests
