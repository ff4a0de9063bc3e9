"""Writing files and folders: complete or not at all, with the permissions of the umask, and errors as one line."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from longview.errors import CheckpointError, LongviewError, RequestError

UNFINISHED = ".unfinished"
"""In names of what is being written; readers ignore it."""
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_WEIGHTS = ".safetensors"
COMPLETE = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
"""Files by which a folder holds a model or an adapter."""


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Write a file through a temporary one in its folder and a rename, so that nobody meets half of it.

    Raises:
        RequestError: it cannot be written; what stood there before still does.
    """
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The same for what is written piece by piece: the file is there, whole, when the block ends.

    Raises:
        RequestError: it cannot be written; what stood there before still does.
    """
    resolved = path.resolve()  # through a link, as `open` writes
    unfinished = resolved.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with open(unfinished, "xb") as file:  # with the mode that the umask says
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, resolved)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            raise RequestError(f"{path} cannot be written ({error.strerror}); choose another name") from None
        raise


def replace_text(path: Path, text: str) -> None:
    """Write a file that nobody else writes, so that what a killed attempt left is written over."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    unfinished.write_text(text, encoding="utf-8")
    fsync(unfinished)
    unfinished.replace(path)


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a new one; safetensors makes files that nobody else may read."""
    beside = path.with_name(f".{path.name}.mode")
    os.close(os.open(beside, os.O_CREAT | os.O_WRONLY, 0o666))
    try:
        path.chmod(beside.stat().st_mode & 0o777)
    finally:
        beside.unlink()


def write_failure(error: BaseException) -> str | None:
    """Why something could not be written, in a few words; None where the error is about something else.

    Libraries written in Rust (safetensors, tokenizers) name the system's error in their text alone.
    """
    from safetensors import SafetensorError

    if isinstance(error, LongviewError):  # says already what is wrong
        return None
    found = _OS_ERROR.search(str(error))
    if found:
        return os.strerror(int(found[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, (OSError, SafetensorError)):
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of writing a folder that is not a run's, such as a full disk, as one line.

    Raises:
        CheckpointError: names it, and says why.
    """
    try:
        yield
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        raise CheckpointError(
            f"{path} could not be written ({reason}); make room there, or choose another folder"
        ) from error


@contextlib.contextmanager
def new_folder(
    folder: Path, writing: Callable[[Path], contextlib.AbstractContextManager[None]] = writing
) -> Iterator[Path]:
    """A folder to write into; at the end it is renamed to `folder`, which does not exist or is empty.

    Nothing is left of it after an error. In a folder that exists (it may be a mount point) the files are moved into
    place one by one.

    Args:
        writing: Within which it is made and renamed.

    Raises:
        CheckpointError: it cannot be made.
    """
    exists = folder.exists()
    unfinished = folder / UNFINISHED if exists else folder.with_name(f".{folder.name}{UNFINISHED}")
    try:
        with writing(folder):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        yield unfinished
        with writing(folder):
            if exists:
                _move(unfinished, folder)
            else:
                _fsync_all(unfinished)
                unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder whose files are moved into `folder` at the end, each complete; nothing is left of it after an error."""
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        _move(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _move(unfinished: Path, folder: Path) -> None:
    """Move files; those by which the folder holds a model come last."""
    _fsync_all(unfinished)
    for path in sorted(unfinished.iterdir(), key=lambda path: (path.name in COMPLETE, path.name)):
        path.replace(folder / path.name)
    fsync(folder)


def _fsync_all(folder: Path) -> None:
    """Force a folder's files to the disk; its weights get the permissions of the umask."""
    for path in folder.iterdir():
        if path.suffix == _WEIGHTS:
            follow_umask(path)
        fsync(path)
    fsync(folder)
