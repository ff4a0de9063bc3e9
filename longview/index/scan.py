"""Which files of some folders an index has still to read, and which of its own are gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longview.errors import RequestError
from longview.index.catalogue import FileRecord, Files
from longview.index.passages import SUFFIX

SUFFIXES = frozenset(
    [".avi", ".bmp", ".gif", ".jpeg", ".jpg", ".m4v", ".mkv", ".mov", ".mp4", ".png", ".tif", ".tiff", ".webm", ".webp"]
)
"""Of pictures and videos; what a file is, its content says."""


@dataclass
class Scan:
    """What has changed."""

    new: list[Path] = field(default_factory=list)
    """New or changed files, by path."""
    unchanged: int = 0
    gone: list[FileRecord] = field(default_factory=list)


def scan(given: Sequence[Path], files: Files, leave_out: Path) -> Scan:
    """Compare folders, or single files, with what an index holds of them.

    Args:
        leave_out: The index's own folder, which may lie in one of them.

    Raises:
        RequestError: one does not exist, or holds nothing that can be indexed.
    """
    found = Scan()
    roots = [path.expanduser().absolute() for path in given]
    present = set()
    for root in roots:
        paths = [path for path in _files_of(root) if not path.is_relative_to(leave_out.absolute())]
        if not paths and not any(_is_under(record.path, root) for record in files):
            raise RequestError(f"{root} holds no picture, video or passages ({SUFFIX}); name a folder that does")
        for path in paths:
            if str(path) in present:
                continue
            present.add(str(path))
            known = files.by_path.get(str(path))
            if known is not None and known.is_unchanged(path):
                found.unchanged += 1
            else:
                found.new.append(path)
    found.gone = [
        record for record in files if record.path not in present and any(_is_under(record.path, root) for root in roots)
    ]
    return found


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _files_of(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
        return
    if not root.is_dir():
        raise RequestError(f"{root} does not exist; name a folder, or a file")
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.suffix.lower() in (*SUFFIXES, SUFFIX) and path.is_file():
                yield path


def _is_under(path: str, root: Path) -> bool:
    return path == str(root) or Path(path).is_relative_to(root)
