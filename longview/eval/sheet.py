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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from longview.curves import Curve, Pick, format_time
from longview.errors import RequestError
from longview.figures import new_figure
from longview.files import write_file
from longview.media import Frame, Medium

SIDE = 480  # pixels of a picture's longer side on a sheet
COLUMNS = 4
PAPER, INK, FAINT, RULE = "#faf9f6", "#22262a", "#7a7f86", "#e4e2dc"
ACCENT, CURVE = "#e4572e", "#3c6e91"
ALIGNMENTS = {"start": "left", "middle": "center", "end": "right"}
LEGEND = ("relevance of each candidate to the question, from 0 (far) to 5 (identical)", "chosen frames")
"""What the curve is, and what the marks on it are."""


@dataclass(frozen=True)
class Sheet:
    """A video with its chosen frames and, where a question was given, the relevance of its candidates."""

    medium: Medium
    select: str
    question: str | None = None

    @property
    def summary(self) -> str:
        """The video and the selection in one line."""
        return self.summary_as(self.medium.name)

    def summary_as(self, name: str) -> str:
        """The summary with another name for the video, which may be too long."""
        medium = self.medium
        parts = [name, f"{medium.width}×{medium.height}"]
        if medium.duration is not None:
            parts.append(format_time(medium.duration))
        chosen = f"{len(medium.frames)} of {medium.num_frames:,} frames, chosen by {self.select}"
        if medium.relevance and self.select == "mdp3":
            chosen += f" among {len(medium.relevance.indices):,}"
        return " · ".join([*parts, chosen])

    @property
    def curve(self) -> Curve | None:
        """The relevance of each candidate over time, or over its index where there are no times."""
        relevance = self.medium.relevance
        if relevance is None:
            return None
        positions = relevance.seconds or [float(index) for index in relevance.indices]
        picks = [
            Pick(self.position(frame), value, self.label(frame), f"#frame-{number}")
            for number, frame in enumerate(self.medium.frames, 1)
            if (value := self.relevance(frame)) is not None
        ]
        others = [self.position(frame) for frame in self.medium.frames]
        return Curve(positions, relevance.values, picks, self.medium.duration is not None, others)

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
    write_file(path, html(sheet).encode() if path.suffix.lower() == ".html" else png(sheet))


def check_path(path: Path) -> None:
    """
    Raises:
        RequestError: a sheet cannot be written there, as far as can be checked beforehand.
    """
    if path.suffix.lower() not in (".html", ".png"):
        raise RequestError(f"a sheet is written as .html or .png, and the file is {path.name!r:.80}; change its suffix")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}; make it, or give another file")


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
        title=title, about=escape(sheet.summary), curve=_curve(sheet), cards=cards, accent=ACCENT, curve_colour=CURVE
    )


def _card(sheet: Sheet, number: int, frame: Frame) -> str:
    data = io.BytesIO()
    thumbnail(frame.image).save(data, "JPEG", quality=88)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    value = sheet.relevance(frame)
    relevance = "" if value is None else f'<span class="near">relevance {value:.2f}</span>'
    label = escape(sheet.label(frame))
    return (
        f'<figure id="frame-{number}"><img src="{source}" alt="frame {frame.index} at {label}">'
        f"<figcaption><b>{label}</b><span>frame {frame.index:,}</span>{relevance}</figcaption></figure>"
    )


def _curve(sheet: Sheet) -> str:
    """The curve, with the chosen frames as links to their pictures; nothing where there is no relevance."""
    if sheet.curve is None:
        return ""
    return f'{sheet.curve.svg(1160, 220)}<p class="legend">{LEGEND[0]}; <i></i> {LEGEND[1]}</p>'


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
img {{ display: block; width: 100%; max-height: 420px; object-fit: contain; }}
figcaption {{ display: flex; flex-wrap: wrap; gap: 0 10px; align-items: baseline; padding: 9px 12px;
  font-variant-numeric: tabular-nums; }}
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


WIDTH, MARGIN, GAP, CAPTION = 12.0, 0.24, 0.12, 0.3  # inches


def png(sheet: Sheet) -> bytes:
    """The sheet as a picture.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    data = io.BytesIO()
    draw(sheet).savefig(data, format="png", facecolor=PAPER)
    return data.getvalue()


def draw(sheet: Sheet) -> Any:
    """The sheet as a figure of matplotlib."""
    frames = sheet.medium.frames
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    wide = 0.97 * WIDTH / columns  # inches of a picture, with the gap to the next
    tallest = max(frame.image.height / frame.image.width for frame in frames)
    tall = min((wide - GAP) * tallest, 6.0) + CAPTION + GAP
    head, curve = 0.95, 2.3 if sheet.curve else 0.0
    height = head + curve + rows * tall + 0.15
    figure = new_figure("a sheet as .png", WIDTH, height, facecolor=PAPER, dpi=110)
    title = sheet.question or sheet.medium.name
    _write_line(figure, 0.42, lambda text: text, title, size=17, weight="bold", color=INK)
    _write_line(figure, 0.72, sheet.summary_as, sheet.medium.name, size=10, color=FAINT)
    if sheet.curve:
        bottom = rows * tall + 0.15
        _draw_curve(figure.add_axes((0.045, (bottom + 0.65) / height, 0.935, (curve - 0.75) / height)), sheet)
        _draw_legend(figure, (bottom + 0.22) / height)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        bottom = 0.1 + (rows - 1 - row) * tall
        corner = (MARGIN + column * wide, bottom + CAPTION)
        _draw_frame(figure, sheet, frame, corner, (wide - GAP, tall - CAPTION - GAP))
    return figure


def _write_line(figure: Any, below: float, compose: Callable[[str], str], text: str, **style: Any) -> None:
    """A line so many inches below the top, with a text that is shortened until the line fits."""
    room = (WIDTH - 2 * MARGIN) * figure.dpi
    text = " ".join(text.split()).replace("$", r"\$")  # matplotlib would typeset what is between dollars
    line = figure.text(MARGIN / WIDTH, 1 - below / figure.get_figheight(), compose(text), **style)
    longest = len(text)
    while line.get_window_extent().width > room and longest > 8:
        longest = min(longest - 1, int(longest * room / line.get_window_extent().width))
        line.set_text(compose(f"{text[:longest].rstrip(chr(92))}…"))


def _draw_frame(figure: Any, sheet: Sheet, frame: Frame, corner: Sequence[float], size: Sequence[float]) -> None:
    """A picture in its cell, whose corner is at the lower left, and its caption; in inches."""
    height = figure.get_figheight()
    axes = figure.add_axes((corner[0] / WIDTH, corner[1] / height, size[0] / WIDTH, size[1] / height))
    axes.imshow(thumbnail(frame.image), aspect="equal")
    axes.set(xticks=[], yticks=[], anchor="SW")
    for spine in axes.spines.values():
        spine.set_color(RULE)
    shown = min(size[0], size[1] * frame.image.width / frame.image.height)
    right = corner[0] + min(size[0], max(shown, 2.3))  # below a narrow picture the caption is wider than it
    up = (corner[1] - 0.07) / height
    figure.text(corner[0] / WIDTH, up, sheet.label(frame), size=11, weight="bold", va="top", color=INK)
    value = sheet.relevance(frame)
    if value is not None:
        figure.text(right / WIDTH, up, f"relevance {value:.2f}", size=10, va="top", ha="right", color=ACCENT)


def _draw_legend(figure: Any, up: float) -> None:
    line = figure.text(0.045, up, f"{LEGEND[0]};   ", size=9, color=FAINT)
    right = line.get_window_extent().x1 / figure.dpi / WIDTH
    figure.text(right, up, "●", size=9, color=ACCENT)
    figure.text(right + 0.012, up, LEGEND[1], size=9, color=FAINT)


def _draw_curve(axes: Any, sheet: Sheet) -> None:
    curve = sheet.curve
    assert curve is not None
    positions, values = curve.positions, curve.values
    low, high = curve.range
    axes.fill_between(positions, values, low, color=CURVE, alpha=0.14, linewidth=0)
    axes.plot(positions, values, color=CURVE, linewidth=1.4)
    picks = [(pick.position, pick.value) for pick in curve.picks]
    axes.vlines(
        [position for position, _ in picks], low, [value for _, value in picks], color=ACCENT, alpha=0.55, linewidth=1
    )
    axes.plot(*zip(*picks, strict=True), "o", color=ACCENT, markersize=7, markeredgecolor=PAPER, clip_on=False)
    axes.set(xlim=curve.span, ylim=(low, high), facecolor=PAPER)
    marks = curve.marks()
    axes.set_xticks([position for position, _ in marks], [label for _, label in marks])
    for (position, _), label in zip(marks, axes.get_xticklabels(), strict=True):
        label.set_horizontalalignment(ALIGNMENTS[curve.anchor(position)])
    axes.tick_params(length=0, labelsize=9, labelcolor=FAINT)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
