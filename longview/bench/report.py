"""The result of a measurement, as a table, JSON, plot or page."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.files import write_file


@dataclass
class Result:
    """The result of one measurement."""

    measure: str
    about: str
    """A sentence or two about the numbers."""
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    """One a line of the table; all have the same keys."""
    findings: list[str] = field(default_factory=list)
    """Conclusions: ratios, and shares of the limits."""
    limits: dict[str, float] = field(default_factory=dict)
    x: str = ""
    """The column of the plot's horizontal axis, and the columns it shows; none: nothing to plot."""
    y: Sequence[str] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def table(self) -> str:
        """The rows as aligned text, and the findings."""
        columns = list(self.rows[0]) if self.rows else []
        cells = [columns, *([cell(row[column]) for column in columns] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join([f"{self.measure}: {self.about}", "", *lines, "", *self.findings])

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a saved result.

        Raises:
            RequestError: the file holds none.
        """
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RequestError(f"{path} is no saved measurement ({error}); give a file that --save wrote") from None

    def page(self) -> str:
        """The result as a section of a Markdown page."""
        columns = list(self.rows[0])
        lines = [f"## {self.measure}, {self.settings['dims']}", "", self.about, "", "| " + " | ".join(columns) + " |"]
        lines.append("|" + " ---: |" * len(columns))
        lines += ["| " + " | ".join(cell(row[column]) for column in columns) + " |" for row in self.rows]
        lines += ["", *(f"* {finding}" for finding in self.findings), ""]
        limits = ", ".join(f"{name} {cell(value)}" for name, value in self.limits.items())
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        lines += [f"Limits measured in the same run: {limits}.", ""] if limits else []
        return "\n".join([*lines, f"`{self.command}`", "", f"({machine})", ""])

    def plot(self, path: Path) -> None:
        """Draw the rows as a PNG, PDF or SVG, as the suffix says.

        Raises:
            MissingExtraError: matplotlib is not installed.
            RequestError: there is nothing to draw, another suffix, or the file cannot be written.
        """
        form = path.suffix.lower().removeprefix(".")
        if form not in ("png", "pdf", "svg"):
            raise RequestError(f"a plot is written as .png, .pdf or .svg, and the file is {path.name!r:.80}")
        drawn = io.BytesIO()
        self.figure().savefig(drawn, format=form, dpi=110)
        write_file(path, drawn.getvalue())

    def figure(self) -> Any:
        """The rows as a figure of matplotlib; see `plot`."""
        if not self.x:
            raise RequestError(f"{self.measure} is a table without a curve; leave out --plot")
        from longview.figures import new_figure

        figure = new_figure("a plot", 7.0, 4.5)
        axes = figure.add_subplot()
        for column in self.y:
            points = [(row[self.x], row[column]) for row in self.rows if row[column] is not None]
            axes.plot(*zip(*points, strict=True), marker="o", label=column)
        axes.set_xlabel(self.x)
        axes.set_yscale("log")
        axes.set_title(f"{self.measure}, {self.settings['dims']}")
        axes.grid(alpha=0.3)
        axes.legend()
        return figure


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
            return f"{value:.3g}"
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def machine() -> dict[str, Any]:
    """Hardware and versions of this run."""
    import torch
    import transformers

    from longview.engine.devices import processor

    found: dict[str, Any] = {"processor": processor(), "threads": torch.get_num_threads()}
    if hasattr(os, "getloadavg"):
        found["load before"] = round(os.getloadavg()[0], 1)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {**found, **versions}


def command() -> str:
    """The command that repeats it."""
    return " ".join(["longview", *sys.argv[1:]])


def pages(folder: Path) -> str:
    """All saved results of a folder, as sections of a page."""
    return "\n".join(Result.read(path).page() for path in sorted(folder.glob("*.json")))
