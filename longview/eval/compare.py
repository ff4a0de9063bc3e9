"""Two evaluations of the same questions, paired: is one model better, or was it chance?

pairs        units whose questions, options and truths are the same in both
difference   of the mean over units, with the 95 % interval of a paired bootstrap
McNemar      the exact test over the units that only one of them got right; none where units are worth fractions
changed      which these are
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Graded, Item, Verdict
from longview.eval.results import Result
from longview.eval.scoring import resampled_means
from longview.eval.tasks import Options, find_task

RESAMPLES = 10_000
DRAWN_BY = ("seed", "per_kind", "groups")
"""Options that decide which questions are drawn, where a task has no files."""


@dataclass(frozen=True)
class Comparison:
    """Of B with A."""

    names: tuple[str, str]
    task: str
    scores: tuple[float, float]
    """The main numbers, as the benchmark counts."""
    units: int
    """Questions that both were asked."""
    left_out: int
    """Questions that only one was asked."""
    differing: int
    """Questions of the same number that are not the same question."""
    means: tuple[float, float]
    """Per cent over the units of both."""
    difference: float
    low: float
    high: float
    only_first: tuple[str, ...]
    """Units that only A got right; where units are worth fractions, those in which A is better."""
    only_second: tuple[str, ...]
    p: float | None
    """Of McNemar's exact test, two-sided; None where units are worth fractions."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "models": list(self.names),
            "scores": list(self.scores),
            "questions": self.units,
            "left_out": self.left_out,
            "differing": self.differing,
            "means": [round(mean, 2) for mean in self.means],
            "difference": round(self.difference, 2),
            "low": round(self.low, 2),
            "high": round(self.high, 2),
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
            "p": self.p,
        }


def compare(first: Result, second: Result, seed: int = 0) -> Comparison:
    """
    Raises:
        RequestError: they are of different tasks or draws, or have no question in common.
    """
    _check(first, second)
    mine, theirs = _units(first), _units(second)
    asked, also = _questions(first), _questions(second)
    both = [unit for unit in mine if unit in theirs]
    common = [unit for unit in both if asked[unit] == also[unit]]
    if not common:
        others = f", though {len(both):,} of the same number" if both else ""
        raise RequestError(
            f"the two results have no question in common{others}; give two of the same task, files and options"
        )
    pairs = [(mine[unit], theirs[unit]) for unit in common]
    differences = [100 * (b - a) for a, b in pairs]
    drawn = sorted(resampled_means(differences, seed, RESAMPLES))
    only_first = tuple(unit for unit, (a, b) in zip(common, pairs, strict=True) if a > b)
    only_second = tuple(unit for unit, (a, b) in zip(common, pairs, strict=True) if b > a)
    right_or_wrong = all(worth in (0, 1) for pair in pairs for worth in pair)
    return Comparison(
        (first.numbers["model"], second.numbers["model"]),
        first.task,
        (first.numbers["score"], second.numbers["score"]),
        len(common),
        len(mine.keys() ^ theirs.keys()),
        len(both) - len(common),
        (100 * sum(a for a, _ in pairs) / len(pairs), 100 * sum(b for _, b in pairs) / len(pairs)),
        sum(differences) / len(differences),
        drawn[int(0.025 * (RESAMPLES - 1))],
        drawn[math.ceil(0.975 * (RESAMPLES - 1))],
        only_first,
        only_second,
        mcnemar(len(only_first), len(only_second)) if right_or_wrong else None,
    )


def _check(first: Result, second: Result) -> None:
    """
    Raises:
        RequestError: they are of different tasks; or their questions are drawn, and otherwise in each.
    """
    if first.task != second.task:
        raise RequestError(f"one result is of {first.task}, the other of {second.task}; give two of the same task")
    if find_task(first.task).make is None:
        return
    for name in DRAWN_BY:
        a, b = (_told(result.numbers["options"].get(name, vars(Options())[name])) for result in (first, second))
        if a != b:
            raise RequestError(
                f"the two results are of different draws of questions, {name} {a} and {name} {b}; give two of the same"
            )


def _told(value: Any) -> str:
    """The value of an option, for people."""
    if value is None or value == ():
        return "as usual"
    return str(value) if isinstance(value, int) else ", ".join(value)


def _questions(result: Result) -> dict[str, list[tuple[Any, ...]]]:
    """What each unit asks: its items' ids, questions, options and truths; and media, where these are drawn."""
    drawn = find_task(result.task).make is not None
    found: dict[str, list[tuple[Any, ...]]] = {}
    for sample in result.samples:
        media = sample["media"] if drawn else []
        asked = (sample["id"], sample["question"], sample.get("options", []), sample["truth"], media)
        found.setdefault(sample["unit"], []).append(asked)
    return {unit: sorted(asked, key=lambda each: str(each[0])) for unit, asked in found.items()}


def _units(result: Result) -> dict[str, float]:
    """What each unit is worth, by the task's own metric, from the samples alone."""
    graded = [graded_of(sample) for sample in result.samples]
    return find_task(result.task).metric.units(graded)


def graded_of(sample: dict[str, Any]) -> Graded:
    """A line of samples.jsonl as it was graded."""
    options = tuple(sample.get("options", ()))
    item = Item(
        sample["id"], sample["question"], sample["truth"], (), options, group=sample["unit"], labels=sample["labels"]
    )
    return Graded(item, Verdict(sample["parsed"], sample["understood"]), sample["score"])


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of the exact test: how likely so uneven a split is, were both equally good."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    if not total:
        return 1.0
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def changed(first: Result, second: Result, units: Sequence[str]) -> list[dict[str, Any]]:
    """The items of some units that were answered differently, with both answers."""
    theirs = {sample["id"]: sample for sample in second.samples}
    rows = []
    for sample in first.samples:
        other = theirs.get(sample["id"])
        if sample["unit"] in units and other is not None and other["score"] != sample["score"]:
            rows.append(
                {
                    "id": sample["id"],
                    "question": sample["question"],
                    "truth": sample["truth"],
                    "answers": [each.get("answer", each.get("error", "")) for each in (sample, other)],
                    "scores": [sample["score"], other["score"]],
                }
            )
    return rows
