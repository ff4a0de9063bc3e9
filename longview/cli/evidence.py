"""`longview ask --evidence FILE`: the deletion check of an answer, what it says, and the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from longview.cli.terminal import spinner
from longview.errors import RequestError
from longview.evidence import report
from longview.messages import Answer, Message
from longview.requests import Limits

if TYPE_CHECKING:
    from longview.engine import Engine


def checked_file(path: Path, of_several: bool) -> Path:
    """The path, before anything is opened.

    Args:
        of_several: The answer is not that to one question about the files that are given.

    Raises:
        RequestError: nothing can be written there.
    """
    if of_several:
        raise RequestError("--evidence is of one answer about files; leave --questions, --index and --knowledge out")
    path = path.expanduser()
    report.check_name(path)
    return path


def write_evidence(
    path: Path,
    engine: Engine,
    messages: Sequence[Message],
    answer: Answer,
    limits: Limits,
    ocr: bool,
    show: bool,
    quiet: bool,
) -> None:
    """Check the evidence of an answer, say what that says on stderr, and write the file."""
    from longview.evidence.deletion import check

    with spinner("leaving pictures out", show):
        deletion = check(engine, messages, answer, limits=limits, ocr=ocr)
    report.write(path, report.Report(tuple(messages), answer, deletion))
    if not quiet:
        for sentence in deletion.sentences:
            typer.echo(f"{'evidence':<10}{sentence}", err=True)
        typer.echo(f"{'':<10}{deletion.passes} passes, {deletion.seconds:.1f} s; written to {path}", err=True)
