"""A curve over the time of a video, with the frames that were chosen: what contact sheets and the page draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 14.0, 28.0  # of a drawing, around the curve
EDGE = 0.025
"""The share of the horizontal axis that half of a label takes."""


def format_time(seconds: float) -> str:
    """Seconds as 1:02.5 or 1:00:02.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{lead}:{rest // 10:02d}.{rest % 10}"


def ticks(begin: float, end: float, max_ticks: int = 10) -> list[float]:
    """Round numbers from one to another, at most so many."""
    length = end - begin
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    step = next((step for step in steps if length / step < max_ticks - 1), 0) or 14400 * math.ceil(
        length / 14400 / (max_ticks - 1)
    )
    first, last = math.ceil(begin / step - 1e-9), math.floor(end / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Pick:
    """A chosen frame on a curve."""

    position: float
    value: float
    label: str
    link: str = ""
    """Where a click leads."""


@dataclass(frozen=True)
class Curve:
    """
    Args:
        positions: Ascending; seconds where `timed`, otherwise numbers of pictures, from 0.
        others: Further positions that the horizontal axis covers.
    """

    positions: Sequence[float]
    values: Sequence[float]
    picks: Sequence[Pick] = ()
    timed: bool = True
    others: Sequence[float] = field(default=(), repr=False)

    @property
    def span(self) -> tuple[float, float]:
        """The range of the horizontal axis."""
        positions = [*self.positions, *self.others, *(pick.position for pick in self.picks)]
        begin, end = min(positions), max(positions)
        return (begin, end) if end > begin else (begin - 0.5, begin + 0.5)

    @property
    def range(self) -> tuple[float, float]:
        """The range of the vertical axis."""
        low, high = min(self.values), max(self.values)
        room = 0.08 * (high - low) or 0.05
        return low - room, high + room

    def marks(self, max_marks: int = 10) -> list[tuple[float, str]]:
        """Positions on the horizontal axis, and their labels."""
        found = [tick for tick in ticks(*self.span, max_marks) if self.timed or tick == int(tick)]
        return [(mark, format_time(mark).removesuffix(".0") if self.timed else f"{mark + 1:.0f}") for mark in found]

    def anchor(self, position: float) -> str:
        """Which end of a mark's label stands at it: within the curve's width also at its ends."""
        begin, end = self.span
        share = (position - begin) / (end - begin)
        return "start" if share < EDGE else "end" if share > 1 - EDGE else "middle"

    def svg(self, width: float, height: float, max_marks: int = 10) -> str:
        """A drawing; the classes of its elements are `area`, `line`, `rule`, `scale` and `pick`."""
        begin, end = self.span
        low, high = self.range

        def x(position: float) -> float:
            return LEFT + (position - begin) / (end - begin) * (width - LEFT - RIGHT)

        def y(value: float) -> float:
            return TOP + (high - value) / (high - low) * (height - TOP - BOTTOM)

        points = [f"{x(each):.1f},{y(value):.1f}" for each, value in zip(self.positions, self.values, strict=True)]
        line, floor = " ".join(points), height - BOTTOM
        parts = []
        for value in (low, (low + high) / 2, high):
            up = f"{y(value):.1f}"
            parts.append(
                f'<text class="scale" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
            )
            parts.append(f'<line class="rule" x1="{LEFT}" x2="{width - RIGHT}" y1="{up}" y2="{up}"/>')
        first, last = f"{x(self.positions[0]):.1f}", f"{x(self.positions[-1]):.1f}"
        parts.append(f'<polygon class="area" points="{first},{floor} {line} {last},{floor}"/>')
        parts.append(f'<polyline class="line" points="{line}"/>')
        for position, label in self.marks(max_marks):
            anchor = self.anchor(position)
            parts.append(
                f'<text class="scale" x="{x(position):.1f}" y="{height - 8}" text-anchor="{anchor}">{label}</text>'
            )
        for pick in self.picks:
            across, up = f"{x(pick.position):.1f}", f"{y(pick.value):.1f}"
            drawn = (
                f'<line class="pick" x1="{across}" x2="{across}" y1="{up}" y2="{floor}"/>'
                f'<circle class="pick" cx="{across}" cy="{up}" r="5"/>'
                f"<title>{escape(pick.label)}, relevance {pick.value:.2f}</title>"
            )
            parts.append(f'<a href="{escape(pick.link)}">{drawn}</a>' if pick.link else f"<g>{drawn}</g>")
        box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
        return f'<svg {box} role="img" aria-label="relevance over time">{"".join(parts)}</svg>'
