"""Printed on stderr, beside the answer on stdout: a spinner, progress bars, the receipt, what hooks made."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from longview import status
from longview.messages import FrameUsed, Message, Piece, Receipt
from longview.wording import counted

if TYPE_CHECKING:
    from longview.engine import Engine
    from longview.media import Medium
    from longview.requests import SamplingParams

MAX_LISTED = 8
"""Frames of one video that are listed one by one, at most."""


def is_terminal() -> bool:
    return sys.stderr.isatty()


@contextlib.contextmanager
def spinner(label: str, show: bool) -> Iterator[None]:
    """A line for a step whose length nobody knows: what it is, and the seconds since it began. Not to be nested."""
    if not show:
        yield
        return
    ended, began = threading.Event(), time.monotonic()

    def count() -> None:
        while not ended.wait(1):
            status.show(f"{label}… {time.monotonic() - began:.0f} s")

    status.show(f"{label}…")
    counter = threading.Thread(target=count, name="longview-spinner", daemon=True)
    counter.start()
    try:
        yield
    finally:
        ended.set()
        counter.join()
        status.clear()


class Bars:
    """Progress bars: one for each label under way, drawn from the first step until `clear`. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawn: Any = None
        self._tasks: dict[str, Any] = {}

    def __call__(self, done: int, total: int, label: str, note: str = "") -> None:
        """A step; `note` stands behind the label, and may change."""
        with self._lock:
            if label not in self._tasks and done < total:
                self._drawn = self._drawn or _started()
                self._tasks[label] = self._drawn.add_task(label, total=total, completed=done)
            if label in self._tasks:
                shown = f"{label} {note}".strip()
                visible = done < total
                self._drawn.update(self._tasks[label], completed=done, total=total, visible=visible, description=shown)

    def clear(self) -> None:
        with self._lock:
            if self._drawn is not None:
                self._drawn.stop()
            self._drawn, self._tasks = None, {}


def _started() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    drawn = Progress(*columns, console=Console(stderr=True), transient=True)
    drawn.start()
    return drawn


@contextlib.contextmanager
def bars(show: bool) -> Iterator[Bars | None]:
    """A function that draws progress, and clears it at the end. None where nothing is to be drawn."""
    if not show:
        yield None
        return
    drawn = Bars()
    try:
        yield drawn
    finally:
        drawn.clear()


def stream(engine: Engine, messages: list[Message], show: bool, settings: Mapping[str, Any]) -> Iterator[Piece]:
    """`Engine.stream` with progress bars that are gone before text is printed."""
    with bars(show) as progress:
        for piece in engine.stream(messages, progress=progress, **settings):
            if progress is not None:
                progress.clear()
            yield piece


def made_lines(made: Mapping[str, Any]) -> list[str]:
    """What hooks made of an answer, for people."""
    lines = [f"{name:<10}{value}" for name, value in made.items() if name != "drawing"]
    if "drawing" not in made:
        return lines
    drawing = made["drawing"]
    if drawing is None:
        return [
            *lines,
            "warning: the answer describes no picture (no <h>…</h>), so none is painted; ask for one in words, or use "
            "a larger release (MGM-13B, MGM-34B), which describes more often",
        ]
    return [*lines, f"{'painted':<10}{drawing['file']}: {drawing['description']}"]


def warn_if_cut(finish_reason: str | None, params: SamplingParams) -> None:
    """Say on stderr that an answer was cut at the limit of its tokens, if it was."""
    if finish_reason != "length":
        return
    form = "JSON" if params.json_schema is not None else "match of --regex" if params.regex is not None else None
    whole = f" and is no whole {form}" if form else ""
    import typer

    limit = counted(params.max_tokens, "token")
    typer.echo(f"warning: the answer was cut at {limit}{whole}; raise --max-tokens", err=True)


def receipt_lines(receipt: Receipt, finish_reason: str | None = None) -> list[str]:
    """A receipt for people: frames, tokens, seconds, and why the answer ended."""
    lines = [f"warning: {warning}" for warning in receipt.warnings]
    select = receipt.settings.get("media", {}).get("select")
    chooser = f", chosen by {select}" if select else ""
    for number, (_, frames) in enumerate(groupby(receipt.frames, key=lambda frame: frame.medium)):
        lines.append(f"{'looked at' if number == 0 else '':<10}{_medium(list(frames), chooser)}")
    for found in receipt.read or ():
        texts = ", ".join(found.texts) or "no text"
        lines.append(f"{'found':<10}in {found.name}: {texts}")
    usage, timings = receipt.usage, receipt.timings
    visual = f" and {counted(usage.pictures, 'picture')} of {usage.visual_tokens:,} tokens" if usage.pictures else ""
    prompt, completion = counted(usage.prompt_tokens, "token"), counted(usage.completion_tokens, "token")
    ended = f" ({finish_reason})" if finish_reason else ""
    lines.append(f"{'prompt':<10}{prompt}{visual}, answer {completion}{ended}")
    steps = {"media": timings.media + timings.preprocess, "encode": timings.encode, "prefill": timings.prefill}
    spent = ", ".join(f"{name} {seconds:.2f}" for name, seconds in steps.items())
    took = f"{timings.first_token:.2f} s to the first token ({spent}), {timings.decode:.2f} s after it"
    lines.append(f"{'took':<10}{took}{f'; loading {timings.load:.1f} s' if timings.load else ''}")
    return lines


def medium_line(medium: Medium, chosen_later: str | None = None) -> str:
    """A medium before it is shown: its name, size, length, and how many of its frames are used."""
    line = f"{medium.name}, {medium.width}×{medium.height}"
    if medium.kind == "image":
        return line
    length = "" if medium.duration is None else f", {medium.duration:.1f} s"
    frames = f"frames by {chosen_later}" if chosen_later else counted(len(medium.frames), "frame")
    return f"{line}{length}, {frames}"


def _medium(frames: Sequence[FrameUsed], chooser: str) -> str:
    first = frames[0]
    crops = f", {first.crops} crops" if first.crops > 1 else ""
    if first.kind == "image":
        return f"{first.name}, {first.width}×{first.height}{crops}"
    seconds = [frame.seconds for frame in frames if frame.seconds is not None]
    head = f"{first.name}, {first.width}×{first.height}, {counted(len(frames), 'frame')}"
    if len(seconds) < len(frames):
        return f"{head}{chooser}"
    if len(frames) <= MAX_LISTED or chooser:
        return f"{head} at {', '.join(f'{second:.2f}' for second in seconds)} s{chooser}"
    gaps = [after - before for before, after in pairwise(seconds)]
    every = f", one every {gaps[0]:.2f} s" if max(gaps) - min(gaps) < 0.05 else ""
    return f"{head} from {seconds[0]:.2f} to {seconds[-1]:.2f} s{every}"


def print_table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """A table on stdout, all but its first column numbers. In a terminal that is too narrow, the first is cut."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    widths = [max(map(cell_len, column)) for column in zip(heading, *lines, strict=True)]
    for number, (name, width) in enumerate(zip(heading, widths, strict=True)):
        how: dict[str, Any] = {"justify": "right", "min_width": width} if number else {}
        table.add_column(name, no_wrap=True, **how)
    for line in lines:
        table.add_row(*line)
    whole = None if sys.stdout.isatty() else sum(widths) + 4 * len(widths)  # a pipe has no width
    Console(soft_wrap=True, width=whole, markup=False, emoji=False).print(table)
