"""Which files an index holds: a journal of them, so that a killed run goes on, and unchanged files are not read again.

{"job": {"model": "demo-siglip", …}}       how the index is made; another model's vectors do not fit in
{"begun": "3f…"}                           items of the file with this digest may be in the store
{"file": {"path": …, "digest": "3f…", …}}  all of them are; several paths may share a digest
{"removed": "…"}                           a path is gone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.journal import Journal, read_journal

NAME = "files.jsonl"


@dataclass(frozen=True)
class FileRecord:
    """A file of an index."""

    path: str
    """Absolute."""
    digest: str
    """SHA-256 in hex; "" where it could not be read."""
    bytes: int
    mtime_ns: int
    kind: str = ""
    """picture, video or passages; "" where it could not be read."""
    items: int = 0
    duration: float | None = None
    """Seconds of a video."""
    error: str = ""
    """Why it could not be read; it is tried again when it has changed."""

    def is_unchanged(self, path: Path) -> bool:
        """Whether size and time of a file are still those of the record."""
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)


class Files:
    """The files of an index by path, as its journal says."""

    def __init__(self, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.by_path: dict[str, FileRecord] = {}
        self.unsure: set[str] = set()
        """Digests whose items may be in the store in part."""
        for line in lines:
            self.take(line)

    def take(self, line: Mapping[str, Any]) -> None:
        if "unsure" in line:
            self.unsure.add(line["unsure"])
        elif "cleared" in line:
            self.unsure.discard(line["cleared"])
        elif "file" in line:
            record = FileRecord(**line["file"])
            self.by_path[record.path] = record
            self.unsure.discard(record.digest)
        else:
            self.by_path.pop(line["removed"], None)

    def __iter__(self) -> Iterator[FileRecord]:
        return iter(self.by_path.values())

    @property
    def digests(self) -> set[str]:
        """Of files whose items are in the store, whole."""
        return {record.digest for record in self if record.digest}

    def with_digest(self, digest: str) -> list[FileRecord]:
        return [record for record in self if record.digest == digest]


def read_files(folder: Path) -> tuple[dict[str, Any], Files]:
    """How an index is made, and its files, for those who only search it.

    Raises:
        RequestError: there is no index in the folder.
    """
    if not (folder / NAME).is_file():
        raise RequestError(f"{folder} is no index; make one with: longview index FOLDER --output {folder}")
    job, lines = read_journal(folder / NAME)
    return job, Files(lines)


class Catalogue:
    """The files of an index, open for one writer.

    Raises:
        RequestError: another process writes it, or it was made otherwise; says what differs.
    """

    def __init__(self, folder: Path, job: Mapping[str, Any]) -> None:
        self._journal = Journal(folder / NAME, job)
        self.files = Files(self._journal.lines)

    def doubt(self, digests: Iterable[str]) -> None:
        """Items of these files are about to be written or removed."""
        self._write(*({"unsure": digest} for digest in digests))

    def end(self, records: Iterable[FileRecord]) -> None:
        """All items of these files are in the store."""
        self._write(*({"file": asdict(record)} for record in records))

    def clear(self, digests: Iterable[str]) -> None:
        """No item of these files is in the store."""
        self._write(*({"cleared": digest} for digest in digests))

    def remove(self, paths: Iterable[str]) -> None:
        self._write(*({"removed": path} for path in paths))

    def close(self) -> None:
        self._journal.close()

    def _write(self, *lines: Mapping[str, Any]) -> None:
        self._journal.append(*lines)
        for line in lines:
            self.files.take(line)
