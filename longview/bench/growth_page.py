"""What growth says: tables, sentences, a figure and a section of a page, of the rows that `growth` measured.

What was not run stands in brackets in tables and is dashed in the figure: seconds as they are predicted, keys and
values as they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from longview.bench.report import cell
from longview.wording import counted

Row = Mapping[str, Any]
DECADE = 10


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The columns of the table of pictures."""
    return [
        {
            "way": row["way"],
            "pictures": row["pictures"],
            "positions": row["positions"],
            "Gflop": _rounded(row["operations"] / 1e9),
            "first token s": _or_bracketed(row["first token s"], row["predicted s"]),
            "ms a token": row["ms a token"],
            "MiB kept": _or_bracketed(row["MiB kept"], row["MiB needed"]),
        }
        for row in rows
    ]


def shown_films(films: Iterable[Row]) -> list[dict[str, Any]]:
    """The columns of the table of films."""
    return [
        {
            "film": length(row["film s"]),
            "frames in it": row["frames in it"],
            "open s": row["open s"],
            "read s": row["read s"],
            "exact frames": row["exact frames"],
            "decode through s": _or_bracketed(row["decode through s"], row["predicted s"]),
            "peak MiB": row["peak MiB"],
        }
        for row in films
    ]


def _or_bracketed(measured: float | None, otherwise: float | None) -> Any:
    return measured if measured is not None or otherwise is None else f"({cell(_rounded(otherwise))})"


def _rounded(value: float) -> float:
    """Three digits or more before the point are enough."""
    return round(value) if value >= 100 else value


def length(seconds: float) -> str:
    """10 s, 1 min, 4 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


# ── sentences ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Span(NamedTuple):
    """The last row of some, and one of at most a tenth of its x; or the first, if none is so small."""

    first: Row
    last: Row
    x: str

    def factor(self, column: str) -> float:
        return self.last[column] / self.first[column]

    def exponent(self, column: str) -> float:
        """p, where the column grows as x to the power p: the slope in a plot with two logarithmic axes."""
        return math.log(self.factor(column)) / math.log(self.factor(self.x))


def last_decade(rows: Iterable[Row], x: str, column: str) -> Span | None:
    """Of the rows, ascending in x, that have the column; None where there are not two."""
    measured = [row for row in rows if row[column] is not None]
    if len(measured) < 2:
        return None
    last = measured[-1]
    before = [row for row in measured if row[x] * DECADE <= last[x]]
    return Span(before[-1] if before else measured[0], last, x)


def findings(rows: Sequence[Row], limit: float) -> list[str]:
    """How each way grows, why it ends, and the ways beside the first one, as measured and as counted."""
    ways = _by_way(rows)
    said = []
    for name, of_way in ways.items():
        decade = last_decade(of_way, "pictures", "first token s")
        if decade is not None:
            said.append(
                f"{name}, from {decade.first['pictures']:,} to {counted(decade.last['pictures'], 'picture')}: first "
                f"token × {decade.factor('first token s'):.1f}, operations × {decade.factor('operations'):.1f} "
                f"(exponents {decade.exponent('first token s'):.2f} and {decade.exponent('operations'):.2f}); a token "
                f"× {decade.factor('ms a token'):.1f}, keys and values × {decade.factor('MiB kept'):.1f}."
            )
        ended = next((row for row in of_way if row["ended by"]), None)
        if ended is not None:
            said.append(f"{name} ends before {counted(ended['pictures'], 'picture')}: {_reason(ended, limit)}.")
    run = [{row["pictures"]: row for row in of_way if row["runs"]} for of_way in ways.values()]
    common = set.intersection(*map(set, run)) if run else set()
    if len(ways) > 1 and common:
        said.append(_beside([row[max(common)] for row in run], "first token s", "MiB kept", "measured"))
    if len(ways) > 1:
        said.append(_beside([of_way[-1] for of_way in ways.values()], None, "MiB needed", "counted"))
    return said


def _by_way(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [row for row in rows if row["way"] == name] for name in dict.fromkeys(row["way"] for row in rows)}


def _reason(row: Row, limit: float) -> str:
    if row["ended by"] == "positions":
        return f"{row['positions']:,} positions are more than it takes"
    if row["ended by"] == "memory":
        return f"{row['MiB needed']:,.0f} MiB of keys and values, up to three times, do not fit into memory"
    return f"its first token is predicted after {row['predicted s']:,.0f} s, and the limit is {limit:g}"


def _beside(rows: Sequence[Row], seconds: str | None, kept: str, how: str) -> str:
    """Each row of the same number of pictures beside the first one."""
    first, others = rows[0], rows[1:]
    parts = []
    for row in others:
        columns = {seconds: "time", "operations": "operations", kept: "keys and values"}
        factors = {name: row[at] / first[at] for at, name in columns.items() if at}
        times = [f"{factor:,.{0 if factor >= 100 else 1}f}× the {name}" for name, factor in factors.items()]
        parts.append(f"{row['way']} {', '.join(times)}")
    return f"At {counted(first['pictures'], 'picture')}, {how}, beside {first['way']}: {'; '.join(parts)}."


def film_findings(films: Sequence[Row], limit: float) -> list[str]:
    """How reading a film grows, beside decoding it through."""
    said = []
    decade = last_decade(films, "film s", "open s")
    if decade is not None:
        first, last = length(decade.first["film s"]), length(decade.last["film s"])
        said.append(
            f"From {first} to {last}, × {decade.factor('film s'):.0f}: opening × {decade.factor('open s'):.1f}, "
            f"reading × {decade.factor('read s'):.1f} (exponents {decade.exponent('open s'):.2f} and "
            f"{decade.exponent('read s'):.2f})."
        )
    through = [row for row in films if row["decode through s"] is not None]
    if through:
        share = (through[-1]["open s"] + through[-1]["read s"]) / through[-1]["decode through s"]
        said.append(f"{length(through[-1]['film s'])}: {share:.2f}× the time of decoding the film through.")
    skipped = next((row for row in films if row["predicted s"] is not None), None)
    if skipped is not None:
        said.append(
            f"From {length(skipped['film s'])} on, no film is decoded through: it is predicted to take "
            f"{skipped['predicted s']:,.0f} s, and the limit is {limit:g}."
        )
    return said


# ── the page and its figure ──────────────────────────────────────────────────────────────────────────────────────────

COLOURS = {
    "interleaved": "#999999", "owl3": "#3c6e91", "ovis2": "#e4572e", "mgm": "#4a9c5d",
    "decoding through": "#999999", "reading": "#3c6e91", "opening": "#e4a72e",
}  # fmt: skip
"""By what is in a name, the first one that is."""
INK = "#22262a"
GAP = 0.065
"""Between two labels, at least, as a share of the height."""


def page(result: Any, folder: str) -> dict[str, str]:
    """Markdown of the figure, and of each table with what it says, by name.

    Args:
        result: A `Growth`.
        folder: Of the figure, as the page names it.
    """
    figure = f"![Cost against the number of pictures, and the length of a film]({folder}/growth.png)\n"
    pictures = _section(shown(result.rows), result.findings)
    films = _section(shown_films(result.films), result.film_findings)
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    hardware = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    measured = f"`{result.command}`\n\n({settings}; {hardware})\n"
    return {"figure": figure, "pictures": f"{result.about}\n\n{pictures}", "films": films, "measured": measured}


def _section(rows: Sequence[Row], sentences: Iterable[str]) -> str:
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(cell(value) for value in row.values())} |" for row in rows]
    return "\n".join([*lines, "", *(f"* {sentence}" for sentence in sentences)]) + "\n"


def figure(rows: Sequence[Row], films: Sequence[Row]) -> Any:
    """Four panels with two logarithmic axes: first token, a token, keys and values; and films.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from longview.figures import new_figure

    drawn = new_figure("a plot", 10.0, 7.2, layout="constrained")
    panels = (
        ("first token, s", "first token s", "predicted s"),
        ("a further token, ms", "ms a token", None),
        ("keys and values, MiB", "MiB kept", "MiB needed"),
    )
    ways = _by_way(rows)
    for number, (title, column, otherwise) in enumerate(panels, 1):
        axes = drawn.add_subplot(2, 2, number)
        series = {name: _points(of_way, "pictures", column, otherwise) for name, of_way in ways.items()}
        _draw(axes, series, title, "pictures")
        counts = sorted({row["pictures"] for row in rows})
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes = drawn.add_subplot(2, 2, 4)
    columns = (
        ("decoding through", "decode through s", "predicted s"),
        ("reading", "read s", None),
        ("opening", "open s", None),
    )
    _draw(axes, {name: _points(films, "film s", *of) for name, *of in columns}, "64 frames of a film, s", "")
    axes.set_xticks([row["film s"] for row in films], [length(row["film s"]) for row in films])
    return drawn


Points = list[tuple[float, float]]


def _points(rows: Iterable[Row], x: str, column: str, otherwise: str | None) -> tuple[Points, Points]:
    """What was measured, and what was counted or predicted from there on."""
    solid: Points = []
    dashed: Points = []
    for row in rows:
        if row[column] is not None:
            solid.append((row[x], row[column]))
        elif otherwise is not None and row[otherwise] is not None:
            dashed.append((row[x], row[otherwise]))
    return solid, dashed


def _draw(axes: Any, series: Mapping[str, tuple[Points, Points]], title: str, x: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    ends: list[tuple[float, float, str, str]] = []
    for number, (name, (solid, dashed)) in enumerate(series.items()):
        colour = next((colour for key, colour in COLOURS.items() if key in name), f"C{number}")
        if solid:
            axes.plot(*zip(*solid, strict=True), marker="o", ms=3.5, lw=1.6, color=colour)
        if dashed:
            axes.plot(*zip(*(*solid[-1:], *dashed), strict=True), ls=(0, (4, 3)), lw=1.1, color=colour)
        if solid or dashed:
            ends.append((*[*solid, *dashed][-1], name, colour))
    low, high = axes.get_ylim()
    if (missing := DECADE * low / high) > 1:  # a factor of two should not look like a cliff
        low, high = low / math.sqrt(missing), high * math.sqrt(missing)
        axes.set_ylim(low, high)
    axes.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0,))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_minor_formatter("")
    _label(axes, ends)


def _label(axes: Any, ends: Iterable[tuple[float, float, str, str]]) -> None:
    """Names at the ends of lines, moved apart where they would overlap."""
    low, high = (math.log(edge) for edge in axes.get_ylim())
    upwards = sorted(ends, key=lambda end: end[1])
    heights = [(math.log(y) - low) / (high - low) for _, y, _, _ in upwards]
    for (x, _, name, colour), height in zip(upwards, apart(heights, GAP), strict=True):
        style = {"color": colour, "fontsize": 8, "va": "center", "annotation_clip": False}
        style["bbox"] = {"facecolor": "white", "alpha": 0.8, "pad": 0.6, "linewidth": 0}
        axes.annotate(name, (x, math.exp(low + height * (high - low))), (6, 0), textcoords="offset points", **style)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved as little as makes each pair of neighbours that far apart, or nearly so little."""
    up, down = list(heights), list(heights)
    for number in range(1, len(heights)):
        up[number] = max(up[number], up[number - 1] + gap)
        down[-1 - number] = min(down[-1 - number], down[-number] - gap)
    return [(high + low) / 2 for high, low in zip(up, down, strict=True)]
