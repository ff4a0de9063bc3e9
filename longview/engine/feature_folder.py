"""Features of pictures in a folder, which several programs may share: `Budget(feature_folder=…)`, `--keep-features`.

One safetensors file per key, written under another name and renamed, so that a reader never sees half of one. Its
metadata has a digest over key, dtype, shape and bytes; what does not fit it is deleted, and is as if it had never been.
Files are copied into memory, not mapped: another program may cut one short at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from longview.errors import RequestError

UNFINISHED = ".unfinished-"
UNFINISHED_SECONDS = 3600
"""An unfinished file that was last written so long ago was left behind by a program that ended."""
_OURS = re.compile(r"[0-9a-f]{64}\.safetensors")


class FeatureFolder:
    """
    Args:
        max_bytes: Of all files together; the least recently used go first.

    Raises:
        RequestError: the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = Path(folder), max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._nbytes = sum(size for _, size, _ in self._files())
        except OSError as error:
            raise RequestError(
                f"features cannot be kept in {folder} ({error.strerror}); give a folder that can be written"
            ) from None

    def get(self, key: str) -> Tensor | None:
        """Features, or None where there are none or the file is damaged."""
        path = self._path(key)
        data = _read_regular(path)
        if data is None:
            return None
        found = _parse(data, key)
        if found is None:
            _delete(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def put(self, key: str, features: Tensor) -> None:
        """Write features; where the disk is full, they are not kept."""
        path = self._path(key)
        if path.exists():
            return
        data = _serialise(key, features.detach().cpu().contiguous())
        unfinished = self.folder / f"{UNFINISHED}{uuid.uuid4().hex}"
        try:
            with open(unfinished, "xb") as file:  # with the mode that the umask says
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError:
            _delete(unfinished)
            return
        self._nbytes += len(data)
        if self._nbytes > self.max_bytes:
            self._delete_oldest()

    def _path(self, key: str) -> Path:
        return self.folder / f"{digest_of(key)}.safetensors"

    def _delete_oldest(self) -> None:
        """Delete the least recently used files, until a tenth of the limit is free."""
        files = sorted(self._files())
        self._nbytes = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._nbytes <= 0.9 * self.max_bytes:
                break
            _delete(path)
            self._nbytes -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time, bytes and path of each file of ours; what ended programs left unfinished is deleted on the way."""
        for path in list(self.folder.iterdir()):
            unfinished = path.name.startswith(UNFINISHED)
            if not unfinished and not _OURS.fullmatch(path.name):
                continue  # somebody else's
            try:
                status = path.lstat()
            except OSError:  # another program has just deleted it
                continue
            if not stat.S_ISREG(status.st_mode) or (unfinished and time.time() - status.st_mtime > UNFINISHED_SECONDS):
                _delete(path)
            else:
                yield status.st_mtime, status.st_size, path


def digest_of(*fields: object) -> str:
    """SHA-256 in hex over fields, each with its type and length, so that different fields never make the same bytes."""
    digest = hashlib.sha256()
    for field in fields:
        value = field if isinstance(field, bytes) else repr(field).encode()
        digest.update(f"{type(field).__name__}:{len(value)}:".encode())
        digest.update(value)
    return digest.hexdigest()


def _serialise(key: str, features: Tensor) -> bytes:
    from safetensors.torch import save

    return save({"features": features}, metadata={"digest": _digest(key, features)})


def _parse(data: bytes, key: str) -> Tensor | None:
    """The features in a file's bytes, or None where they are not those that were written for this key."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        features = load(data)["features"]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        written = header["__metadata__"]["digest"]
    except (SafetensorError, KeyError, ValueError, TypeError):
        return None
    return features if written == _digest(key, features) else None


def _digest(key: str, features: Tensor) -> str:
    data = features.flatten().view(torch.uint8).numpy().tobytes()
    return digest_of(key, str(features.dtype), tuple(features.shape), data)


def _read_regular(path: Path) -> bytes | None:
    """The bytes of a file; None where there is none. What is no file (a pipe, on which `open` waits) is deleted."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            _delete(path)
            return None
        return path.read_bytes()
    except OSError:
        return None


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
