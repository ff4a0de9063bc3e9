"""An append-only journal: what a job over many rows has finished, so that a killed one goes on and does no row twice.

    {"job": {…}}        what the job is; another job does not go on here
    {…}                 then a line for each thing that is finished, in any order

A line counts once it is on the disk, newline included; what a killed process left of one is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from longview.errors import RequestError

Take = Callable[[int, dict[str, Any]], None]
"""Takes a line, and where in the file it begins."""


class Journal:
    """One journal, locked by the process that has it open. Any thread may append.

    Attributes:
        lines: Those that were there on opening, without the first; none where `take` took them.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], take: Take | None = None) -> None:
        """
        Args:
            take: Gets the lines that are there, one by one, where they may be too many for memory.

        Raises:
            RequestError: another process has it open, it is damaged, it cannot be used, or it is another job's; says
                what differs.
        """
        self.path = path
        self._lock = threading.Lock()
        job = json.loads(json.dumps(job))  # as it is read
        with _using(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock_file()
            self.lines: list[dict[str, Any]] = []
            with _using(path):
                is_new = not self._read(job, take or (lambda _, line: self.lines.append(line)))
            if is_new:
                self.append({"job": job})
        except BaseException:
            self.close()
            raise

    def append(self, *lines: Mapping[str, Any]) -> list[int]:
        """Write lines; they are on the disk when this returns.

        Returns:
            Where in the file each of them begins.

        Raises:
            RequestError: they could not be written; all lines before them are whole.
        """
        if not lines:
            return []
        encoded = [json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n" for line in lines]
        data = b"".join(encoded)
        with self._lock, _using(self.path):
            size = os.fstat(self._file).st_size
            try:
                written = 0
                while written < len(data):
                    written += os.write(self._file, data[written:])
                os.fsync(self._file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size)
                raise
        return [size + ahead for ahead in accumulate(map(len, encoded[:-1]), initial=0)]

    def lines_at(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The lines that begin at these places of the file."""
        with _using(self.path), self.path.open("rb") as file:
            for place in places:
                file.seek(place)
                yield json.loads(file.readline())

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"another process is writing {self.path}; wait until it ends, or choose another output"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self, job: Mapping[str, Any], take: Take) -> bool:
        """Hand over the whole lines; a last one without its newline is cut off. Returns whether there are any."""
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, place)
                    break
                found = _parse(self.path, number, line)
                if number == 1:
                    self._check(found, job)
                else:
                    take(place, found)
                place += len(line)
        return place > 0

    def _check(self, first: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        begun = first.get("job")
        if not isinstance(begun, dict):
            raise RequestError(f"{self.path} is no journal of this job; choose another output")
        for key in dict.fromkeys([*begun, *job]):
            if begun.get(key) != job.get(key):
                raise RequestError(
                    f"{self.path} was begun with {key} {begun.get(key)!r:.80}, not {job.get(key)!r:.80}; go on with "
                    "the same, or choose another output"
                )


def read_journal(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job of a journal that another process may be writing, and its lines so far.

    Raises:
        RequestError: it cannot be read, or is damaged.
    """
    with _using(path), path.open("rb") as file:
        whole = [line for line in file if line.endswith(b"\n")]
    lines = [_parse(path, number, line) for number, line in enumerate(whole, 1)]
    job = lines[0].get("job") if lines else None
    if not isinstance(job, dict):
        raise RequestError(f"{path} is no journal, or was begun a moment ago; name another, or try again")
    return job, lines[1:]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    raise RequestError(
        f"{path}, line {number} is damaged; remove that line to do its row again, or choose another output"
    )


@contextlib.contextmanager
def _using(path: Path) -> Iterator[None]:
    """Errors of reading and writing as one line."""
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"{path} cannot be used ({error.strerror or error}); what was finished is kept: make room or choose "
            "another output, and give the same command again"
        ) from error
