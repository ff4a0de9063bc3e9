"""Rows of a measurement, into a journal beside its file as they come: a run that is killed goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.files import write_file
from longview.journal import Journal

Row = dict[str, Any]
TELL_SECONDS = 5.0


def collect(
    file: Path,
    job: Mapping[str, Any],
    rows: Callable[[Sequence[Row]], Iterable[Row]],
    progress: Callable[[Row], None],
) -> list[Row]:
    """All rows of a job.

    Args:
        file: Of the numbers that are made of them; see `finish`.
        job: What is measured, as JSON. A journal of another job is refused.
        rows: Given those of a run that was killed, makes the others.
        progress: Told a row, every few seconds.

    Raises:
        LongviewError: the journal is of another job, or a row cannot be made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    told = time.monotonic()
    with Journal(_journal(file), dict(job)) as journal:
        found = [dict(line) for line in journal.lines]
        for row in rows(tuple(found)):
            journal.append(row)
            found.append(row)
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                progress(row)
    return found


def finish(file: Path, numbers: Mapping[str, Any]) -> None:
    """Write the numbers, and remove the journal."""
    write_file(file, (json.dumps(numbers, indent=1) + "\n").encode())
    _journal(file).unlink()


def _journal(file: Path) -> Path:
    return file.with_suffix(".journal.jsonl")
