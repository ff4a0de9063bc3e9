"""The page of `longview.eval.retrieval`: rows as shares with intervals, tables and a figure of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.eval.world import Score, normalise
from longview.evidence.deletion import CLEARLY
from longview.models.similarity import DEMO
from longview.world.knowledge import UNKNOWN

THRESHOLDS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
"""Nats that are compared as `CLEARLY`."""
DEPTHS = (1, 5, 20)
Row = Mapping[str, Any]


def points(found: Iterable[Row]) -> list[dict[str, Any]]:
    """Shares of rows, each with its part, model, condition and what was counted."""
    every = list(found)
    made = _recalls(every, "search", "")
    models = list(dict.fromkeys(row["model"] for row in every if row["part"] != "search"))
    if models:
        made += _recalls([row for row in every if row["model"] == models[0]], "name", "found")
    for model in models:
        rows = [row for row in every if row["model"] == model]
        for part, condition in dict.fromkeys((row["part"], row["condition"]) for row in rows):
            group = [row for row in rows if (row["part"], row["condition"]) == (part, condition)]
            place = {"part": part, "model": model, "condition": condition}
            made.append(place | _share("right", group, lambda row: row["right"]))
            if part == "name":
                made.append(place | _share("not known", group, lambda row: normalise(row["answer"]) == UNKNOWN))
                made.append(place | _share("another's name", group, lambda row: row["fooled"]))
            made += [place | point for point in _claims(group)]
        made += [{"part": "name", "model": model, "condition": "mixed"} | point for point in _changed(rows)]
        made += [{"part": "name", "model": model, "condition": "mixed"} | point for point in _thresholds(rows)]
    return made


def rests_on(row: Row, clearly: float = CLEARLY) -> int:
    """The piece that an answer rests on, as `longview.index.answer` says it; 0: none."""
    changes = {int(number): change for number, change in row["changes"].items()}
    lowest = min(changes, key=lambda number: changes[number], default=0)
    return lowest if changes and changes[lowest] <= -clearly else 0


def _recalls(rows: Sequence[Row], part: str, condition: str) -> list[dict[str, Any]]:
    group = [row for row in rows if (row["part"], row["condition"]) == (part, condition)]
    place = {"part": part, "model": DEMO, "condition": condition}

    def among(depth: int) -> Callable[[Row], bool]:
        return lambda row: row["rank"] is not None and row["rank"] <= depth

    return [place | _share(f"recall@{depth}", group, among(depth)) for depth in DEPTHS if group]


def _claims(group: Sequence[Row]) -> list[dict[str, Any]]:
    """Of the answers that name one piece: whether they rest on it, and whether it is the one that tells."""
    checked = [row for row in group if row["changes"] and len(row["changes"]) > 1]
    named = [row for row in checked if len(row["claimed"]) == 1]
    if not checked:
        return []
    return [
        _share("names one piece", checked, lambda row: len(row["claimed"]) == 1),
        _share("claim is true", named, lambda row: rests_on(row) == row["claimed"][0]),
        _share("rests on the piece that tells", checked, lambda row: rests_on(row) == row["told_in"]),
    ]


def _changed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of the answers that are right with the right piece alone: which are wrong with others beside it."""
    alone = {row["number"]: row["right"] for row in rows if row["condition"] == "right"}
    mixed = [row for row in rows if row["condition"] == "mixed" and alone.get(row["number"])]
    return [_share("changed wrongly", mixed, lambda row: not row["right"])]


def _thresholds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each threshold: right answers among others that rest on the piece that tells, and on another one."""
    right = [row for row in rows if row["condition"] == "mixed" and row["right"]]
    unknown = [row for row in rows if row["condition"] == "wrong" and normalise(row["answer"]) == UNKNOWN]

    def at(nats: float) -> list[dict[str, Any]]:
        shares = (
            _share("rests on the piece that tells", right, lambda row: rests_on(row, nats) == row["told_in"]),
            _share("rests on a piece that does not", unknown, lambda row: rests_on(row, nats) != 0),
        )
        return [share | {"nats": nats} for share in shares]

    return [point for nats in THRESHOLDS for point in at(nats)]


def _share(what: str, group: Sequence[Row], holds: Callable[[Row], Any]) -> dict[str, Any]:
    point: dict[str, Any] = {"what": what, "count": sum(bool(holds(row)) for row in group), "total": len(group)}
    if not group:
        return point
    score = Score("", "", right=point["count"], total=point["total"])
    low, high = score.interval
    return point | {"share": round(score.accuracy, 4), "low": round(low, 4), "high": round(high, 4)}


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CONDITIONS = {
    "right": "the right passage", "mixed": "it among three others", "found": "the nearest four of 24",
    "wrong": "a wrong one", "none": "none",
}  # fmt: skip
COLOURS = ("#b8c7d3", "#3c6e91", "#e4572e")


def page(numbers: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Markdown of each table, by its name.

    Args:
        folder: Of the figure, as the page names it.
    """
    return {
        "recall": _recall_table(numbers),
        "answers": f"![Names answered right]({folder}/answers.png)\n\n{_answer_table(numbers)}",
        "claims": _claim_table(numbers),
        "thresholds": _threshold_table(numbers),
    }


def _find(numbers: Mapping[str, Any], **wanted: Any) -> dict[str, Any]:
    fitting = (p for p in numbers["points"] if all(p.get(name) == value for name, value in wanted.items()))
    return next((point for point in fitting if "nats" in wanted or "nats" not in point), {})


def _cell(point: Mapping[str, Any]) -> str:
    return f"{point['share']:.0%} ({point['low']:.0%} – {point['high']:.0%})" if "share" in point else "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _recall_table(numbers: Mapping[str, Any]) -> str:
    rows = []
    for part, condition, title in (
        ("search", "", "moments of films, by a text"),
        ("name", "found", "passages, by question and photo"),
    ):
        found = [_find(numbers, part=part, model=DEMO, condition=condition, what=f"recall@{n}") for n in DEPTHS]
        rows.append([title, str(found[0].get("total", 0)), *map(_cell, found)])
    return _table(["what is looked for", "times", *(f"among the first {n}" for n in DEPTHS)], rows)


def _answer_table(numbers: Mapping[str, Any]) -> str:
    rows = []
    for model in numbers["models"]:
        for condition, title in CONDITIONS.items():
            shares = [
                _find(numbers, part="name", model=model, condition=condition, what=what)
                for what in ("right", "another's name", "not known")
            ]
            rows.append([model, title, *map(_cell, shares)])
        film = _find(numbers, part="film", model=model, condition="found", what="right")
        rows.append([model, "films: the nearest four moments", _cell(film), "–", "–"])
    return _table(["model", "shown", "right", "another passage's name", "“not known”"], rows)


def _claim_table(numbers: Mapping[str, Any]) -> str:
    whats = ("names one piece", "claim is true", "rests on the piece that tells")
    rows = []
    for model in numbers["models"]:
        for part, condition in (("name", "mixed"), ("name", "found"), ("film", "found")):
            shares = [_find(numbers, part=part, model=model, condition=condition, what=what) for what in whats]
            title = "films: the nearest four moments" if part == "film" else CONDITIONS[condition]
            rows.append([model, title, *map(_cell, shares)])
        changed = _find(numbers, part="name", model=model, condition="mixed", what="changed wrongly")
        rows.append([model, "changes its mind wrongly", _cell(changed), "", ""])
    return _table(["model", "shown", *whats], rows)


def _threshold_table(numbers: Mapping[str, Any]) -> str:
    model = numbers["models"][-1]
    whats = ("rests on the piece that tells", "rests on a piece that does not")
    rows = [
        [f"{nats:g}", *(_cell(_find(numbers, model=model, nats=nats, what=what)) for what in whats)]
        for nats in THRESHOLDS
    ]
    return _table(["nats", "right, among four: rests on the right one", "“not known”: rests on a wrong one"], rows)


def plot(numbers: Mapping[str, Any], folder: Path) -> None:
    """The figure of the page, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from longview.figures import new_figure

    figure = new_figure("retrieval", 7.6, 3.8, layout="constrained")
    axes = figure.add_subplot()
    models = numbers["models"]
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        found = [_find(numbers, part="name", model=model, condition=each, what="right") for each in CONDITIONS]
        places = [place + (number - (len(models) - 1) / 2) * width for place in range(len(found))]
        heights = [100 * point["share"] for point in found]
        below = [max(0.0, 100 * (point["share"] - point["low"])) for point in found]
        above = [max(0.0, 100 * (point["high"] - point["share"])) for point in found]
        axes.bar(places, heights, 0.95 * width, yerr=[below, above], capsize=3, color=COLOURS[number], label=model)
    axes.axhline(100 / 24, ls="--", lw=1, color="#777777", label="a name at random")
    axes.set_xticks(range(len(CONDITIONS)), list(CONDITIONS.values()), fontsize=8)
    axes.set_ylim(0, 103)
    axes.set_ylabel("names answered right, %")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8)
    figure.savefig(folder / "answers.png", dpi=110)
