"""A picture of one answer's evidence for papers, or of two side by side: the highest pictures with their heat maps.

Below them, the same pictures with what the family says besides: Ovis2's visual words, or the windows that MGM mined.
"""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from longview.evidence.sentences import CLEARLY, signed
from longview.evidence.view import CAUTION, Axis, PictureView, View, axes_of, ramp
from longview.figures import new_figure

WIDTH, MARGIN, GAP = 6.6, 0.25, 0.12  # inches, of one answer
COLUMNS, MOST_PICTURES, MOST_AXES = 4, 8, 2
AXIS, CAPTION, STEPS, LINE = 1.35, 0.42, 1.9, 0.185
DPI = 160
MOST_LETTERS = 90
"""In a line of 8 points."""
DETAILS = {
    "words": "visual words: patches of one colour have the same likeliest word, on every picture",
    "mined": "windows that the patches with most attention mined, and how they weighed the fine patches in them",
}
"""What a family says of patches, and what is written above it."""
INK, FAINT, RULE, ACCENT, CURVE, GOOD = "#22262a", "#6f757c", "#e4e2dc", "#e4572e", "#3c6e91", "#2f7d4f"


def png(views: Sequence[View]) -> bytes:
    """
    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    data = io.BytesIO()
    draw(views).savefig(data, format="png", facecolor="#ffffff")
    return data.getvalue()


def draw(views: Sequence[View]) -> Any:
    """A figure of matplotlib. The axes of a picture have its number as their label, "picture 1"."""
    heights = [_height(view) for view in views]
    figure = new_figure("evidence as .png", WIDTH * len(views), max(heights), dpi=DPI, facecolor="#ffffff")
    for number, (view, axes) in enumerate(zip(views, axes_of(views), strict=True)):
        highest = max((float(each.maps[0].max(initial=0)) for each in _shown(view)), default=0.0)
        _View(figure, view, axes, number * WIDTH, highest or 1.0).draw()
    return figure


def _shown(view: View) -> list[PictureView]:
    """Those with the highest shares, in their order."""
    return [picture for picture in view.pictures if picture.rank <= MOST_PICTURES]


def _detail(view: View) -> str:
    """Which of `DETAILS` the pictures have; none of them: empty."""
    return next((name for name in DETAILS if any(name in each.data for each in _shown(view))), "")


def _words(view: View) -> list[tuple[str, dict[str, Any]]]:
    """Lines at the top, and how they look."""
    found: list[tuple[str, dict[str, Any]]] = [
        (view.data["question"], {"size": 11, "weight": "bold"}),
        (view.data["text"] or "(nothing)", {"size": 11}),
        (view.label, {"color": FAINT}),
        *((sentence, {"weight": "bold"}) for sentence in view.sentences[:1]),
        *((sentence, {"color": ACCENT}) for sentence in view.sentences[1:]),
        (CAUTION, {"color": FAINT, "size": 7}),
    ]
    return [
        (line, {"size": 8, "color": INK, **look})
        for text, look in found
        for line in textwrap.wrap(" ".join(text.split()), int(MOST_LETTERS * 8 / look.get("size", 8)))
    ]


def _cell(view: View) -> tuple[float, float]:
    """Inches of a picture, without its caption."""
    shown = _shown(view)
    wide = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
    tallest = max((each.data["height"] / each.data["width"] for each in shown), default=1.0)
    return wide, min(wide * tallest, 2.4)


def _height(view: View) -> float:
    rows = -(-len(_shown(view)) // COLUMNS)
    steps = STEPS if view.deletion and view.deletion["steps"] else 0.0
    axes = AXIS * len(view.axes[:MOST_AXES])
    high = _cell(view)[1]
    details = rows * (high + GAP) + LINE + GAP if _detail(view) else 0.0
    return 2 * MARGIN + LINE * len(_words(view)) + axes + rows * (high + CAPTION) + details + steps + 0.1


class _View:
    """Draws one answer, from the top down.

    Args:
        left: Inches.
        scale: What the highest colour of the heat maps is.
    """

    def __init__(self, figure: Any, view: View, axes: Sequence[Axis], left: float, scale: float) -> None:
        self.figure, self.view, self.shown_axes, self.left, self.scale = figure, view, axes, left, scale
        self.width, self.height = figure.get_size_inches()
        self.below = MARGIN

    def axes(self, left: float, top: float, wide: float, high: float, label: str = "") -> Any:
        """Axes whose upper left corner is so many inches from the answer's left and the figure's top."""
        at = ((self.left + left) / self.width, 1 - (top + high) / self.height)
        return self.figure.add_axes((*at, wide / self.width, high / self.height), label=label)

    def text(self, left: float, top: float, text: str, **look: Any) -> None:
        plain = text.replace("$", r"\$")  # matplotlib would typeset what is between dollars
        self.figure.text((self.left + left) / self.width, 1 - top / self.height, plain, va="top", **look)

    def draw(self) -> None:
        for line, look in _words(self.view):
            self.text(MARGIN, self.below, line, **look)
            self.below += LINE
        for axis in self.shown_axes[:MOST_AXES]:
            self.draw_axis(axis)
            self.below += AXIS
        self.below += 0.1
        wide, high = _cell(self.view)
        for place, picture in enumerate(_shown(self.view)):
            row, column = divmod(place, COLUMNS)
            self.draw_picture(picture, MARGIN + column * (wide + GAP), self.below + row * (high + CAPTION), wide, high)
        self.below += -(-len(_shown(self.view)) // COLUMNS) * (high + CAPTION)
        self.draw_details(_detail(self.view))
        if self.view.deletion and self.view.deletion["steps"]:
            self.draw_steps(self.view.deletion["steps"])

    def draw_axis(self, axis: Axis) -> None:
        """Shares upwards, nats lost downwards, and the relevance on a scale of its own."""
        axes = self.axes(MARGIN + 0.35, self.below + 0.2, WIDTH - 2 * MARGIN - 0.7, AXIS - 0.5, axis.title)
        places = np.array(axis.places)
        shares = np.array([picture.data["share"] for picture in axis.pictures])
        lost = np.array([max(0.0, -(picture.change or 0.0)) for picture in axis.pictures])
        wide = min(0.02, 0.6 / len(places))
        axes.bar(places, shares / (shares.max() or 1), wide, color=ACCENT)
        axes.bar(places, -0.5 * lost / (lost.max() or 1), wide, color=GOOD)
        axes.axhline(0, color=FAINT, linewidth=0.6)
        title = f"share, at most {shares.max():.1%}"
        if any(picture.change is not None for picture in axis.pictures):
            title += f"; below: nats lost without it, at most {lost.max():.1f}"
        if axis.curve.values:
            low, high = axis.curve.range
            over = [axis.place(position) for position in axis.curve.positions]
            axes.plot(over, [(value - low) / (high - low) for value in axis.curve.values], color=CURVE, linewidth=1)
            picks = [(axis.place(pick.position), (pick.value - low) / (high - low)) for pick in axis.curve.picks]
            axes.plot(*zip(*picks, strict=True), "o", color=CURVE, markersize=3.5)
            title += "; line: relevance, ● chosen"
        axes.set_title(f"{axis.title}: {title}".replace("$", r"\$"), size=7, color=FAINT, loc="left", pad=3)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.55, 1.08), yticks=[])
        marks = axis.curve.marks()
        axes.set_xticks([axis.place(position) for position, _ in marks], [label for _, label in marks])
        axes.tick_params(length=0, labelsize=7, labelcolor=FAINT)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def draw_details(self, name: str) -> None:
        """The pictures once more, each with its words or its mined windows."""
        if not name:
            return
        wide, high = _cell(self.view)
        self.text(MARGIN, self.below, DETAILS[name], size=7, color=FAINT)
        self.below += LINE
        for place, picture in enumerate(_shown(self.view)):
            row, column = divmod(place, COLUMNS)
            left, top = MARGIN + column * (wide + GAP), self.below + row * (high + GAP)
            axes = self.draw_image(picture, left, top, wide, high, f"{name} of picture {picture.number}")
            {"words": _draw_words, "mined": _draw_mined}[name](axes, picture.data)
        self.below += -(-len(_shown(self.view)) // COLUMNS) * (high + GAP) + GAP

    def draw_image(self, picture: PictureView, left: float, top: float, wide: float, high: float, label: str) -> Any:
        axes = self.axes(left, top, wide, high, label)
        across, down = picture.data["width"], picture.data["height"]
        jpeg = self.view.jpegs.get(picture.number)
        if jpeg is not None:
            axes.imshow(Image.open(io.BytesIO(jpeg)), extent=(0, across, down, 0))
        axes.set(xticks=[], yticks=[], anchor="NW", xlim=(0, across), ylim=(down, 0), aspect="equal")
        for spine in axes.spines.values():
            spine.set_color(RULE)
        return axes

    def draw_picture(self, picture: PictureView, left: float, top: float, wide: float, high: float) -> None:
        axes = self.draw_image(picture, left, top, wide, high, f"picture {picture.number}")
        across, down = picture.data["width"], picture.data["height"]
        cells = (255 * np.clip(picture.maps[0] / self.scale, 0, 1)).round().astype(int)
        axes.imshow(ramp()[cells], extent=(0, across, down, 0), interpolation="nearest")
        below = top + min(high, wide * down / across) + 0.05
        label = textwrap.shorten(picture.label, 20, placeholder="…")
        self.text(left, below, f"{picture.number} · {label} · {picture.data['share']:.1%}", size=7, color=INK)
        if picture.change is not None:
            said = f"{signed(picture.change)} nats without it"
            self.text(left, below + 0.14, said, size=7, color=GOOD if picture.change <= -CLEARLY else FAINT)

    def draw_steps(self, steps: Sequence[Any]) -> None:
        axes = self.axes(MARGIN + 0.35, self.below + 0.25, 3.4, STEPS - 0.7, "steps")
        places = range(len(steps))
        mean, spread = ([each[name] for each in steps] for name in ("random_mean", "random_deviation"))
        axes.errorbar(places, mean, yerr=spread, color=FAINT, capsize=3, linewidth=1, label="at random")
        for name, colour in (("lowest", CURVE), ("highest", ACCENT)):
            axes.plot(
                places, [each[name] for each in steps], "o-", color=colour, markersize=3.5, label=f"{name} shares"
            )
        axes.axhline(0, color=RULE, linewidth=0.8, zorder=0)
        axes.set_xticks(places, [str(each["count"]) for each in steps])
        axes.set_title("nats without so many pictures", size=7, color=FAINT, loc="left", pad=3)
        axes.tick_params(length=2, labelsize=7, labelcolor=FAINT)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)


def _draw_words(axes: Any, data: Mapping[str, Any]) -> None:
    """Patches in the colour of their likeliest word, those of the finest crops on top."""
    first, found = 0, []
    for grid in data["grids"]:
        count = grid["rows"] * grid["columns"]
        found.append((grid, np.array(data["words"][first : first + count]).reshape(grid["rows"], grid["columns"])))
        first += count
    for grid, words in sorted(found, key=lambda each: -(each[0]["right"] - each[0]["left"]) / each[0]["columns"]):
        colours = np.array([[_colour(int(word)) for word in row] for row in words])
        extent = (grid["left"], grid["right"], grid["lower"], grid["upper"])
        image = axes.imshow(colours, extent=extent, interpolation="nearest", alpha=0.55)
        image.set_clip_path(_rectangle(axes, grid["shown"], "none"))
    axes.set(xlim=(0, data["width"]), ylim=(data["height"], 0))


def _draw_mined(axes: Any, data: Mapping[str, Any]) -> None:
    """Each window at its place, with the weights of its fine patches."""
    for window in data.get("mined", ()):
        left, upper, right, lower = window["box"]
        weights = np.array(window["weights"])
        cells = np.zeros((*weights.shape, 4))
        cells[..., :3], cells[..., 3] = (0.0, 0.78, 1.0), 0.7 * weights / (weights.max() or 1)
        axes.imshow(cells, extent=(left, right, lower, upper), interpolation="nearest")
        _rectangle(axes, window["box"], "#001e3c")
    axes.set(xlim=(0, data["width"]), ylim=(data["height"], 0))


def _rectangle(axes: Any, box: Sequence[float], colour: str) -> Any:
    left, upper, right, lower = box
    (drawn,) = axes.fill(
        [left, right, right, left], [upper, upper, lower, lower], fill=False, edgecolor=colour, linewidth=0.6
    )
    return drawn


def _colour(word: int) -> tuple[float, float, float]:
    """Of a visual word, the same wherever it stands: as the page has it."""
    return colorsys.hls_to_rgb((word * 137.508 % 360) / 360, (46 + word % 3 * 9) / 100, 0.75)
