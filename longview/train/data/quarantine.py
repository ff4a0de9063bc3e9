"""The report of samples that could not be opened; a run ends where they are too many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longview.errors import RecipeError
from longview.files import fsync, replace_text
from longview.train.data.sources import Place
from longview.train.saved.folder import writing

GRACE = 100
"""The share of broken samples is taken of so many at least, so that the first one does not end a run."""


class Quarantine:
    """Samples that could not be opened: each is written to a report, and too many of them end the run.

    Args:
        path: The report: JSON lines with stage, step, place of the row, and reason.
        share: The largest share of broken samples, of those drawn so far.
    """

    def __init__(self, path: Path, share: float, stage: str, number: int) -> None:
        self.path, self.share, self.stage = path, share, stage
        self.broken = sum(line["stage"] == number for line in read_quarantine(path))
        self._number = number

    def add(self, step: int, drawn: int, place: Place, reason: str) -> None:
        """Write a sample to the report.

        Args:
            drawn: Samples of the stage so far.

        Raises:
            RecipeError: more are broken than the recipe allows.
        """
        line = {"stage": self._number, "step": step, "file": str(place.path), place.unit: place.number}
        with writing(self.path, self.path.parent), self.path.open("a", encoding="utf-8") as report:
            report.write(json.dumps(line | {"reason": reason}, ensure_ascii=False) + "\n")
        self.broken += 1
        if self.broken > self.share * max(drawn, GRACE):
            fsync(self.path)
            raise RecipeError(
                f"{self.broken} of {drawn} samples are broken, more than stages.{self.stage}.data.quarantine="
                f"{self.share:g} allows; the last is {place}: {reason}; {self.path} lists them: mend the data, or "
                "allow more"
            )


def trim_report(path: Path, begin: tuple[int, int]) -> None:
    """Drop the lines of steps that will be repeated, and a last line that was cut short."""
    if path.exists():
        kept = [
            json.dumps(x, ensure_ascii=False) + "\n" for x in read_quarantine(path) if (x["stage"], x["step"]) < begin
        ]
        replace_text(path, "".join(kept))


def read_quarantine(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a report that are whole."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # cut short when the machine went down
            continue
        if isinstance(line, dict) and isinstance(line.get("stage"), int) and isinstance(line.get("step"), int):
            yield line
