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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longview.errors import RequestError


class Journal:
    """One journal, locked by the process that has it open. Any thread may append.

    Attributes:
        lines: Those that were there on opening, without the first.
    """

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        """
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
            with _using(path):
                self.lines = self._read()
            if not self.lines:
                self.append({"job": job})
            else:
                self._check(self.lines.pop(0), job)
        except BaseException:
            self.close()
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line; it is on the disk when this returns.

        Raises:
            RequestError: it could not be written; all lines before it are whole.
        """
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
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

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; a last one without its newline is cut off."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.ftruncate(self._file, len(whole))
        return [self._parse(number, line) for number, line in enumerate(whole.splitlines(), 1)]

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
        raise RequestError(
            f"{self.path}, line {number} is damaged; remove that line to do its row again, or choose another output"
        )

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
