"""A contact sheet: the frames chosen from a video, and the relevance of its candidates over time.

    question
    ╭───────────── relevance over time ─────────────╮
    │        ▂▁ ●            ●▅▂                     │     ● a chosen frame
    ╰───────────────────────────────────────────────╯
    ▦ 0:12.0   ▦ 0:48.5   ▦ 1:02.0   ▦ 1:40.5

Written as one self-contained HTML file, or as a PNG.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import RequestError
from longview.figures import new_figure
from longview.media import Frame, Medium

SIDE = 480  # pixels of a picture's longer side on a sheet
COLUMNS = 4
PAPER, INK, FAINT, RULE = "#faf9f6", "#22262a", "#7a7f86", "#e4e2dc"
ACCENT, CURVE = "#e4572e", "#3c6e91"


@dataclass(frozen=True)
class Sheet:
    """A video with its chosen frames and, where a question was given, the relevance of its candidates."""

    medium: Medium
    select: str
    question: str | None = None

    @property
    def summary(self) -> str:
        """The video and the selection in one line."""
        medium = self.medium
        parts = [medium.name, f"{medium.width}×{medium.height}"]
        if medium.duration is not None:
            parts.append(format_time(medium.duration))
        chosen = f"{len(medium.frames)} of {medium.num_frames:,} frames, chosen by {self.select}"
        if medium.relevance and self.select == "mdp3":
            chosen += f" among {len(medium.relevance.indices):,}"
        return " · ".join([*parts, chosen])

    @property
    def curve(self) -> tuple[list[float], list[float]] | None:
        """The position of each candidate (seconds, or its index where there are no times) and its relevance."""
        relevance = self.medium.relevance
        if relevance is None:
            return None
        positions = relevance.seconds or [float(index) for index in relevance.indices]
        return positions, relevance.values

    def position(self, frame: Frame) -> float:
        return float(frame.index) if frame.seconds is None else frame.seconds

    def label(self, frame: Frame) -> str:
        return f"picture {frame.index + 1}" if frame.seconds is None else format_time(frame.seconds)

    def relevance(self, frame: Frame) -> float | None:
        return self.medium.relevance.of(frame.index) if self.medium.relevance else None


def write(sheet: Sheet, path: Path) -> None:
    """Write a sheet in the format of the path's suffix.

    Raises:
        RequestError: another suffix, or a file that cannot be written.
        MissingExtraError: a PNG without matplotlib.
    """
    check_path(path)
    data = html(sheet).encode() if path.suffix.lower() == ".html" else png(sheet)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}); give another file") from None


def check_path(path: Path) -> None:
    """
    Raises:
        RequestError: a sheet cannot be written there, as far as can be checked beforehand.
    """
    if path.suffix.lower() not in (".html", ".png"):
        raise RequestError(f"a sheet is written as .html or .png, and the file is {path.name!r:.80}; change its suffix")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}; make it, or give another file")


def format_time(seconds: float) -> str:
    """Seconds as 1:02.5 or 1:00:02.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    lead = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{lead}:{rest // 10:02d}.{rest % 10}"


def ticks(length: float, max_ticks: int = 10) -> list[float]:
    """Round numbers from 0 to a length, at most so many."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    step = next((step for step in steps if length / step < max_ticks), 14400 * math.ceil(length / 14400 / max_ticks))
    return [number * step for number in range(int(length / step) + 1)]


def thumbnail(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return copy


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def html(sheet: Sheet) -> str:
    """A self-contained page: styles, pictures, and the curve as SVG."""
    title = escape(sheet.question or sheet.medium.name)
    cards = "\n".join(_card(sheet, number, frame) for number, frame in enumerate(sheet.medium.frames, 1))
    return _PAGE.format(
        title=title, about=escape(sheet.summary), curve=_svg(sheet), cards=cards, accent=ACCENT, curve_colour=CURVE
    )


def _card(sheet: Sheet, number: int, frame: Frame) -> str:
    data = io.BytesIO()
    thumbnail(frame.image).save(data, "JPEG", quality=88)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    value = sheet.relevance(frame)
    relevance = "" if value is None else f'<span class="near">{value:.2f}</span>'
    label = escape(sheet.label(frame))
    return (
        f'<figure id="frame-{number}"><img src="{source}" alt="frame {frame.index} at {label}">'
        f"<figcaption><b>{label}</b><span>frame {frame.index:,}</span>{relevance}</figcaption></figure>"
    )


def _svg(sheet: Sheet) -> str:
    """The curve, with the chosen frames as links to their pictures; nothing where there is no relevance."""
    if sheet.curve is None:
        return ""
    width, height, left, bottom, top = 1160.0, 220.0, 46.0, 28.0, 14.0
    positions, values = sheet.curve
    begin, end = _span(sheet)
    low, high = _range(values)

    def x(position: float) -> float:
        return left + (position - begin) / (end - begin) * (width - left - 12)

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    line = " ".join(f"{x(position):.1f},{y(value):.1f}" for position, value in zip(positions, values, strict=True))
    floor = height - bottom
    parts = [f'<polygon class="area" points="{x(positions[0]):.1f},{floor} {line} {x(positions[-1]):.1f},{floor}"/>']
    parts.append(f'<polyline class="line" points="{line}"/>')
    for value in (low, (low + high) / 2, high):
        parts.append(f'<text class="scale" x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        parts.append(f'<line class="rule" x1="{left}" x2="{width - 12}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
    for position, label in _marks(sheet):
        parts.append(f'<text class="scale" x="{x(position):.1f}" y="{height - 8}" text-anchor="middle">{label}</text>')
    for number, frame in enumerate(sheet.medium.frames, 1):
        relevance = sheet.relevance(frame)
        assert relevance is not None
        title = f"{escape(sheet.label(frame))}, relevance {relevance:.2f}"
        across, up = f"{x(sheet.position(frame)):.1f}", f"{y(relevance):.1f}"
        parts.append(
            f'<a href="#frame-{number}"><line class="pick" x1="{across}" x2="{across}" y1="{up}" y2="{floor}"/>'
            f'<circle class="pick" cx="{across}" cy="{up}" r="5"/><title>{title}</title></a>'
        )
    drawn = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="relevance over time">{drawn}</svg>'
        '<p class="legend">relevance of each candidate to the question, from 0 (far) to 5 (identical); '
        "<i></i> chosen frames</p>"
    )


def _span(sheet: Sheet) -> tuple[float, float]:
    """The range of the horizontal axis: the candidates and the chosen frames."""
    assert sheet.curve is not None
    positions = [*sheet.curve[0], *(sheet.position(frame) for frame in sheet.medium.frames)]
    begin, end = min(positions), max(positions)
    return (begin, end) if end > begin else (begin - 0.5, begin + 0.5)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.05
    return low - room, high + room


def _marks(sheet: Sheet) -> list[tuple[float, str]]:
    """Positions on the horizontal axis, and their labels."""
    begin, end = _span(sheet)
    timed = sheet.medium.duration is not None
    marks = [tick for tick in ticks(end) if tick >= begin and (timed or tick == int(tick))]
    return [(mark, format_time(mark).removesuffix(".0") if timed else f"{mark + 1:.0f}") for mark in marks]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --paper: #faf9f6; --card: #fff; --ink: #22262a; --faint: #7a7f86; --rule: #e4e2dc; --accent: {accent};
  --curve: {curve_colour}; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #16181b; --card: #1f2226; --ink: #eceae5; --faint: #969ba3;
  --rule: #33373d; --curve: #7fb3d5; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 1240px; padding: 40px 32px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
h1 {{ margin: 0; font-size: 28px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; }}
.about {{ margin: 6px 0 24px; color: var(--faint); }}
svg {{ display: block; width: 100%; height: auto; }}
.area {{ fill: var(--curve); opacity: 0.14; }}
.line {{ fill: none; stroke: var(--curve); stroke-width: 1.6; stroke-linejoin: round; }}
.rule {{ stroke: var(--rule); }}
.scale {{ fill: var(--faint); font-size: 11px; }}
line.pick {{ stroke: var(--accent); stroke-width: 1.2; opacity: 0.55; }}
circle.pick {{ fill: var(--accent); stroke: var(--paper); stroke-width: 2; }}
a:hover circle.pick {{ r: 7; }}
.legend {{ margin: 2px 0 28px 46px; font-size: 12px; color: var(--faint); }}
.legend i {{ display: inline-block; width: 9px; height: 9px; margin: 0 2px 0 6px; border-radius: 50%;
  background: var(--accent); }}
.sheet {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 18px; }}
figure {{ margin: 0; overflow: hidden; border: 1px solid var(--rule); border-radius: 10px; background: var(--card);
  scroll-margin: 24px; }}
figure:target {{ border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent); }}
img {{ display: block; width: 100%; }}
figcaption {{ display: flex; gap: 10px; align-items: baseline; padding: 9px 12px; font-variant-numeric: tabular-nums; }}
figcaption span {{ color: var(--faint); font-size: 12px; }}
figcaption .near {{ margin-left: auto; color: var(--accent); }}
</style></head><body>
<h1>{title}</h1>
<p class="about">{about}</p>
{curve}
<div class="sheet">
{cards}
</div>
</body></html>
"""


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def png(sheet: Sheet) -> bytes:
    """The sheet as a picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    frames = sheet.medium.frames
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    tallest = max(frame.image.height / frame.image.width for frame in frames)
    tall = min(11.5 / columns * tallest, 6.0) + 0.42  # inches of a picture and its label
    head, curve = 0.95, 2.1 if sheet.curve else 0.0
    figure = new_figure("a sheet as .png", 12.0, head + curve + rows * tall + 0.15, facecolor=PAPER, dpi=110)
    height = figure.get_figheight()
    figure.text(
        0.02,
        1 - 0.42 / height,
        _shortened(sheet.question or sheet.medium.name),
        size=17,
        weight="bold",
        color=INK,
    )
    figure.text(0.02, 1 - 0.72 / height, sheet.summary, size=10, color=FAINT)
    if sheet.curve:
        bottom = (rows * tall + 0.15 + 0.45) / height
        _draw_curve(figure.add_axes((0.045, bottom, 0.935, (curve - 0.55) / height)), sheet)
    for number, frame in enumerate(frames):
        left = 0.02 + (number % columns) * 0.97 / columns
        bottom = (0.1 + (rows - 1 - number // columns) * tall) / height
        axes = figure.add_axes((left, bottom + 0.3 / height, 0.97 / columns - 0.01, (tall - 0.42) / height))
        axes.imshow(thumbnail(frame.image), aspect="equal")
        axes.set(xticks=[], yticks=[], anchor="NW")
        for spine in axes.spines.values():
            spine.set_color(RULE)
        value = sheet.relevance(frame)
        axes.text(0, -0.03, sheet.label(frame), size=11, weight="bold", va="top", transform=axes.transAxes)
        if value is not None:
            axes.text(1, -0.03, f"{value:.2f}", size=10, va="top", ha="right", color=ACCENT, transform=axes.transAxes)
    data = io.BytesIO()
    figure.savefig(data, format="png", facecolor=figure.get_facecolor())
    return data.getvalue()


def _draw_curve(axes: Any, sheet: Sheet) -> None:
    assert sheet.curve is not None
    positions, values = sheet.curve
    low, high = _range(values)
    axes.fill_between(positions, values, low, color=CURVE, alpha=0.14, linewidth=0)
    axes.plot(positions, values, color=CURVE, linewidth=1.4)
    picks = [
        (sheet.position(frame), value) for frame in sheet.medium.frames if (value := sheet.relevance(frame)) is not None
    ]
    axes.vlines(
        [position for position, _ in picks], low, [value for _, value in picks], color=ACCENT, alpha=0.55, linewidth=1
    )
    axes.plot(*zip(*picks, strict=True), "o", color=ACCENT, markersize=7, markeredgecolor=PAPER, clip_on=False)
    axes.set(xlim=_span(sheet), ylim=(low, high), facecolor=PAPER)
    marks = _marks(sheet)
    axes.set_xticks([position for position, _ in marks], [label for _, label in marks])
    axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _shortened(text: str, max_length: int = 88) -> str:
    line = " ".join(text.split()).replace("$", r"\$")  # matplotlib would typeset what is between dollars
    return line if len(line) <= max_length else line[: max_length - 1].rstrip() + "…"
