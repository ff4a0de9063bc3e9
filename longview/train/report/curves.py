"""Curves for the report: small SVG charts that need no script and take their colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 380.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 24.0
MOST_POINTS = 240
"""Of a curve; more lie closer than a line is wide."""
SMOOTH = 0.08
"""Share of a curve's points over which its smooth line looks back."""


def chart(title: str, steps: Sequence[float], values: Sequence[float], smooth: bool = False) -> str:
    """A curve over steps, with its last value beside the title.

    Args:
        smooth: Draw the values faintly, and their moving mean.
    """
    pairs = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    if not pairs:
        return ""
    points = thinned(pairs)
    low, high = _span([value for _, value in points])
    marks = ticks(low, high)
    begin, end = _span([step for step, _ in points], room=0.0)

    def x(step: float) -> float:
        return LEFT + (step - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(some: Sequence[tuple[float, float]], style: str) -> str:
        if len(some) == 1:
            return f'<circle class="dot" cx="{x(some[0][0]):.1f}" cy="{y(some[0][1]):.1f}" r="2.5"/>'
        drawn = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in some)
        return f'<polyline class="{style}" points="{drawn}"/>'

    parts = []
    for mark in marks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(mark) + 3.5:.1f}" text-anchor="end">{number(mark)}</text>')
    for step, anchor in ((points[0][0], "start"), (points[-1][0], "end"))[: len(points)]:
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{step:,.0f}</text>')
    if smooth and len(points) > 8:
        parts += [line(points, "raw"), line(smoothed(points), "line")]
    else:
        parts.append(line(points, "line"))
    about = f"{title}, from {number(pairs[0][1])} to {number(pairs[-1][1])} in {pairs[-1][0]:,.0f} steps"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<b>{number(pairs[-1][1])}</b></figcaption>'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(about)}">{"".join(parts)}</svg>'
        "</figure>"
    )


def thinned(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`, each the mean of its neighbours; the first and last step stay."""
    size = -(-len(pairs) // MOST_POINTS)
    groups = [pairs[begin : begin + size] for begin in range(0, len(pairs), size)]
    found = [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
    return [(pairs[0][0], found[0][1]), *found[1:]] if len(found) > 1 else found


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each point's mean with those just before it."""
    window = max(2, round(SMOOTH * len(points)))
    found = []
    for index, (step, _) in enumerate(points):
        near = [value for _, value in points[max(0, index - window + 1) : index + 1]]
        found.append((step, sum(near) / len(near)))
    return found


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers between two, at most so many."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [count * step for count in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number for people, short."""
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _span(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        wide = abs(low) * 0.1 or 0.5
        return low - wide, high + wide
    return low - room * (high - low), high + room * (high - low)
