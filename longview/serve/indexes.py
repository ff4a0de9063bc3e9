"""The indexes that the server searches (`--index NAME=FOLDER`), in a process that holds SigLIP in its place.

A client sees names of files below the folder that all files of an index have in common, and nothing above it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.errors import LongviewError, RequestError
from longview.index.catalogue import NAME as FILES
from longview.index.catalogue import FileRecord, read_files
from longview.index.settings import FindOptions

if TYPE_CHECKING:
    from longview.index.index import Index


@dataclass(frozen=True)
class Result:
    """Something that was found, by a file's name below the index's folder.

    Attributes:
        found: As `longview.index.index.as_dict` has it.
        thumbnail: JPEG, in base64; "" where there is none, or none was asked for.
    """

    name: str
    digest: str
    duration: float | None
    found: Mapping[str, Any]
    thumbnail: str = ""


class ServedIndex:
    """One index: what is told of it, without its database."""

    def __init__(self, name: str, folder: Path) -> None:
        """
        Raises:
            RequestError: there is no index in the folder.
        """
        self.name, self.folder = name, folder
        self._read_at = 0
        self._read()

    def _read(self) -> None:
        """What the journal says, again where it has changed."""
        at = (self.folder / FILES).stat().st_mtime_ns if (self.folder / FILES).is_file() else 0
        if at == 0 or at != self._read_at:
            self._job, self._files = read_files(self.folder)
            self._read_at = at

    def describe(self) -> dict[str, Any]:
        """As OpenAI's API describes a vector store.

        Raises:
            RequestError: the index is gone.
        """
        self._read()
        records = list(self._files)
        failed = sum(bool(record.error) for record in records)
        counts = {"in_progress": 0, "completed": len(records) - failed, "failed": failed, "cancelled": 0}
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return {
            "id": self.name,
            "object": "vector_store",
            "name": self.name,
            "created_at": int((self.folder / FILES).stat().st_ctime),
            "last_active_at": self._read_at // 10**9,
            "status": "completed",
            "usage_bytes": sum(file.stat().st_size for file in files),
            "file_counts": {**counts, "total": len(records)},
            "metadata": {"model": str(self._job["model"])},
            "expires_after": None,
            "expires_at": None,
        }

    def within(self, under: str) -> str:
        """The folder that a client names below that of the index.

        Raises:
            RequestError: it is outside.
        """
        self._read()
        root = root_of(self._files.by_path.values())
        found = Path(os.path.normpath(root / under))
        if not found.is_relative_to(root):
            raise RequestError(f"the folder {under!r:.80} is outside of the index; name one below its own")
        return str(found)


def root_of(records: Iterable[FileRecord]) -> Path:
    """The folder that all files of an index have in common."""
    folders = [os.path.dirname(record.path) for record in records]
    return Path(os.path.commonpath(folders)) if folders else Path("/")


class Indexes:
    """The indexes of a server, by the names that clients give.

    Args:
        given: NAME=FOLDER, each.

    Raises:
        RequestError: a name twice or none, or a folder without an index.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self.by_name: dict[str, ServedIndex] = {}
        for each in given:
            name, equals, folder = each.partition("=")
            if not (equals and name and folder) or "/" in name:
                raise RequestError(f"--index is {each!r:.80}; give NAME=FOLDER, the name being that for clients")
            if name in self.by_name:
                raise RequestError(f"two indexes are called {name!r:.80}; give one another name: --index NAME={folder}")
            self.by_name[name] = ServedIndex(name, Path(folder).expanduser().absolute())
        self._pool: ProcessPoolExecutor | None = None

    async def search(self, name: str, text: str, options: FindOptions, kinds: Sequence[str], pictures: bool) -> Any:
        """What is nearest to a text: results, and warnings.

        Args:
            kinds: Only items of these (frame, picture, passage).
            pictures: Whether thumbnails are made.

        Raises:
            LongviewError: the index cannot be read.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        arguments = (str(self.by_name[name].folder), text, options, tuple(kinds), pictures)
        try:
            return await asyncio.wrap_future(self._pool.submit(search, *arguments))
        except BrokenProcessPool:
            self._pool = None
            raise LongviewError("the process that searches was killed; search again") from None

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in list((self._pool._processes or {}).values()):
                process.kill()


# ── in the process that searches ─────────────────────────────────────────────────────────────────────────────────────

_opened: dict[str, tuple[int, Index]] = {}


def search(
    folder: str, text: str, options: FindOptions, kinds: Sequence[str], pictures: bool
) -> tuple[list[Result], list[str]]:
    """The results of one search, and warnings, without the path of the index's folder."""
    from longview.index.index import Index, as_dict
    from longview.index.sheet import cards

    changed = (Path(folder) / FILES).stat().st_mtime_ns
    if folder not in _opened or _opened[folder][0] != changed:
        before = _opened.get(folder)
        known = before[1].similarity if before is not None else None
        _opened[folder] = changed, Index(Path(folder), known, "cpu")
    index = _opened[folder][1]
    found, warnings = index.find(text, options=options, kinds=kinds)
    root = root_of(index.files.by_path.values())
    shown = {id(card.found): card.thumbnail for card in cards(found)} if pictures else {}
    results = []
    for each in found:
        record = index.files.by_path[each.path]
        unchanged = record.is_unchanged(Path(each.path))
        picture = _jpeg(shown.get(id(each))) if unchanged else ""
        name = str(Path(each.path).relative_to(root))
        results.append(Result(name, record.digest, record.duration, as_dict(replace(each, path=name)), picture))
    return results, [warning.replace(f"{root}{os.sep}", "") for warning in warnings]


def _jpeg(thumbnail: Any) -> str:
    if thumbnail is None:
        return ""
    buffer = io.BytesIO()
    thumbnail.convert("RGB").save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
