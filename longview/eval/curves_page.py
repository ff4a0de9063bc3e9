"""The curves of the embedded models as a page: a figure and a table of each, Markdown and PNG; see `curves`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.eval.curves import OFF, ON
from longview.eval.world import GROUPS

COLOURS = {
    "demo-owl3": "#3c6e91", "demo-ovis2": "#e4572e", "demo-mgm": "#4a9c5d", "demo-owl3-many": "#8a4f9e",
    "uniform": "#999999", "fps": "#e4a72e", "mdp3": "#3c6e91", OFF: "#b8c7d3", ON: "#3c6e91",
}  # fmt: skip
TITLES = {
    "demo-owl3": "mPLUG-Owl3", "demo-ovis2": "Ovis2", "demo-mgm": "MGM", "demo-owl3-many": "mPLUG-Owl3, of many",
    "demo-owl3-print": "mPLUG-Owl3, on", "demo-ovis2-print": "Ovis2, on", "demo-mgm-print": "MGM, on",
    "mdp3": "MDP3", "fps": "1 a second",
}  # fmt: skip
CROPS, FINE = "crops", "high-resolution tower"
MECHANISMS = {
    "demo-owl3": CROPS, "demo-ovis2": CROPS, "demo-mgm": FINE,
    "demo-owl3-print": CROPS, "demo-ovis2-print": CROPS, "demo-mgm-print": FINE,
}  # fmt: skip


def page(numbers: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Markdown of each curve, by its name: a figure and a table.

    Args:
        folder: Of the figures, as the page names it.
    """
    figures = {
        "pictures": f"![Accuracy against the number of pictures]({folder}/pictures.png)",
        "frames": f"![A needle in a film, against frames]({folder}/frames.png)",
        "small print": f"![Small print with each family's mechanism on and off]({folder}/small-print.png)",
        "first token": f"![Seconds to the first token against pictures]({folder}/first-token.png)",
    }
    needles = f"The needle is among the frames:\n\n{_table(numbers, 'needle', 'frames')}"
    tables = {
        "pictures": _table(numbers, "pictures", "pictures"),
        "frames": f"{needles}\n\n{answered_films(numbers)}",
        "small print": _print_table(numbers),
        "first token": _table(numbers, "first token", "pictures"),
    }
    return {name: f"{figures[name]}\n\n{tables[name]}\n" for name in figures}


def answered_films(numbers: Mapping[str, Any]) -> str:
    """The table of films whose question is answered right, Markdown."""
    return f"The question is answered right:\n\n{_table(numbers, 'frames', 'frames')}"


def with_points_of(numbers: Mapping[str, Any], others: Mapping[str, Any], curve: str) -> dict[str, Any]:
    """Numbers, and those of one curve of other models, which were asked in a job of their own."""
    return {**numbers, "points": [*numbers["points"], *(p for p in others["points"] if p["curve"] == curve)]}


def groups_table(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """What each model answers right of one picture, several, and clips; from the numbers of its card, Markdown."""
    names = [group for group in GROUPS if group != "small print"]
    lines = [f"| model | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for model, numbers in evaluations.items():
        scores = [numbers["groups"]["shown"][group] for group in names]
        lines.append(f"| `{model}` | {' | '.join(map(_cell, scores))} |")
    return "\n".join([*lines, "", "95 % Wilson intervals in brackets; the models' cards have each kind of question."])


def _series(numbers: Mapping[str, Any], curve: str) -> dict[str, list[dict[str, Any]]]:
    """The points of a curve, by model or by setting."""
    found: dict[str, list[dict[str, Any]]] = {}
    for point in numbers["points"]:
        if point["curve"] == curve:
            found.setdefault(point["setting"] or point["model"], []).append(point)
    return found


def _table(numbers: Mapping[str, Any], curve: str, at: str) -> str:
    series = _series(numbers, curve)
    every = [point for some in series.values() for point in some]
    names = [TITLES.get(name, name) for name in series]
    lines = [f"| {at} | asked | {' | '.join(names)} |", f"|---:|---:|{'---:|' * len(names)}"]
    for place in sorted({point["at"] for point in every}):
        here = [next((p for p in some if p["at"] == place), {}) for some in series.values()]
        asked = max((point.get("total", 0) for point in here), default=0)
        lines.append(f"| {place} | {asked or '–'} | {' | '.join(map(_cell, here))} |")
    if curve == "first token":
        note = "Seconds: the median of so many, in brackets the fastest and the slowest."
    else:
        note = "95 % Wilson intervals in brackets."
    if curve in ("pictures", "frames"):
        note += f" Always giving the most frequent answer to each kind of question would score {_chance(every):.0%}."
    return "\n".join([*lines, "", note])


def _chance(every: Iterable[Mapping[str, Any]]) -> float:
    """What is guessed, where most was asked: of few questions, the most frequent answer is often right by luck."""
    return max((point for point in every if "chance" in point), key=lambda point: point["total"])["chance"]


def _cell(point: Mapping[str, Any]) -> str:
    if "seconds" in point:
        return f"{point['seconds']:.2f} ({point['low']:.2f} – {point['high']:.2f})"
    if "error" in point:
        return "does not fit"
    return f"{point['accuracy']:.0%} ({point['low']:.0%} – {point['high']:.0%})" if point else "–"


def _prints(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Points of small print by model, then by setting."""
    found: dict[str, dict[str, Any]] = {}
    for point in numbers["points"]:
        if point["curve"] == "small print":
            found.setdefault(point["model"], {})[point["setting"]] = point
    return found


def _print_table(numbers: Mapping[str, Any]) -> str:
    lines = ["| model | mechanism | off | on |", "|---|---|---:|---:|"]
    prints = _prints(numbers)
    for name, by_setting in prints.items():
        cells = [_cell(by_setting.get(setting, {})) for setting in (OFF, ON)]
        lines.append(f"| {TITLES.get(name, name)} | {MECHANISMS.get(name, '')} | {' | '.join(cells)} |")
    some = [by_setting[OFF] for by_setting in prints.values()]
    totals = " or ".join(str(total) for total in sorted({point["total"] for point in some}))
    chances = " or ".join(f"{chance:.0%}" for chance in sorted({point["chance"] for point in some}))
    guess = f"always giving the most frequent word would score {chances}"
    return "\n".join([*lines, "", f"{totals} pictures a cell, 95 % Wilson intervals in brackets; {guess}."])


def plot(numbers: Mapping[str, Any], folder: Path) -> None:
    """The figures of the page, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from longview.figures import new_figure

    figure = new_figure("the curves", 7.2, 4.0, layout="constrained")
    _shares(figure.add_subplot(), _series(numbers, "pictures"), "pictures in the prompt", "answered right, %", True)
    figure.axes[0].axvspan(0.8, 8, color="#eeeeee", zorder=0, label="seen in training, but of many")
    figure.axes[0].set_xlim(0.9, 450)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(folder / "pictures.png", dpi=110)

    figure = new_figure("the curves", 9.0, 3.8, layout="constrained")
    for number, (curve, what) in enumerate((("needle", "needle among the frames, %"), ("frames", "answered right, %"))):
        _shares(figure.add_subplot(1, 2, number + 1), _series(numbers, curve), "frames of the film", what, number == 1)
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    figure.savefig(folder / "frames.png", dpi=110)

    figure = new_figure("the curves", 8.6, 3.6, layout="constrained")
    axes, prints = figure.add_subplot(), _prints(numbers)
    for setting, shift in ((OFF, -0.2), (ON, 0.2)):
        some = [by_setting[setting] for by_setting in prints.values()]
        places = [number + shift for number in range(len(some))]
        heights = [100 * point["accuracy"] for point in some]
        axes.bar(places, heights, 0.38, yerr=_bars(some), capsize=3, color=COLOURS[setting], label=setting)
    labels = [f"{TITLES.get(name, name)}\n{MECHANISMS.get(name, '')}" for name in prints]
    axes.set_xticks(range(len(prints)), labels, fontsize=8)
    axes.set_ylim(0, 100)
    axes.set_ylabel("small print read, %")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(folder / "small-print.png", dpi=110)

    figure = new_figure("the curves", 7.2, 4.0, layout="constrained")
    axes = figure.add_subplot()
    for name, some in _series(numbers, "first token").items():
        middles = [point["seconds"] for point in some]
        bars = [[p["seconds"] - p["low"] for p in some], [p["high"] - p["seconds"] for p in some]]
        style = {"marker": "o", "ms": 4, "capsize": 3, "color": COLOURS.get(name), "label": TITLES.get(name, name)}
        axes.errorbar([point["at"] for point in some], middles, bars, **style)
    _log_axis(axes, sorted({p["at"] for some in _series(numbers, "first token").values() for p in some}))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("pictures in the prompt")
    axes.set_ylabel("seconds to the first token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(folder / "first-token.png", dpi=110)


def _shares(axes: Any, series: Mapping[str, list[dict[str, Any]]], xlabel: str, ylabel: str, guess: bool) -> None:
    """Shares with their intervals against numbers, which are on a logarithmic axis."""
    for number, (name, some) in enumerate(series.items()):
        known = [point for point in some if "error" not in point]
        places = [point["at"] * 1.05 ** (number - 1) for point in known]  # side by side, where they would overlap
        heights = [100 * point["accuracy"] for point in known]
        style = {"marker": "o", "ms": 4, "capsize": 3, "color": COLOURS.get(name), "label": TITLES.get(name, name)}
        axes.errorbar(places, heights, _bars(known), ls="--" if number == 1 else "-", lw=1.5, elinewidth=0.9, **style)
    every = [point for some in series.values() for point in some]
    if guess:
        axes.axhline(100 * _chance(every), ls="--", lw=1, color="#777777", label="most frequent answers")
    _log_axis(axes, sorted({point["at"] for point in every}))
    axes.set_ylim(-3, 103)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)


def _log_axis(axes: Any, places: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()


def _bars(some: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    below = [max(0.0, 100 * (point["accuracy"] - point["low"])) for point in some]
    return [below, [max(0.0, 100 * (point["high"] - point["accuracy"])) for point in some]]
