"""Two evaluations of the same questions, paired: is one model better, or was it chance?

difference   of the mean over units, with the 95 % interval of a paired bootstrap
McNemar      the exact test over the units that only one of them got right
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
from longview.eval.tasks import find_task

RESAMPLES = 10_000


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
    means: tuple[float, float]
    """Per cent over the units of both."""
    difference: float
    low: float
    high: float
    only_first: tuple[str, ...]
    """Units that only A got right."""
    only_second: tuple[str, ...]
    p: float
    """Of McNemar's exact test, two-sided."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "models": list(self.names),
            "scores": list(self.scores),
            "questions": self.units,
            "left_out": self.left_out,
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
        RequestError: they are of different tasks, or have no question in common.
    """
    if first.task != second.task:
        raise RequestError(f"one result is of {first.task}, the other of {second.task}; give two of the same task")
    mine, theirs = _units(first), _units(second)
    if not mine.keys() & theirs.keys():
        raise RequestError("the two results have no question in common; give two of the same task and files")
    common = [unit for unit in mine if unit in theirs]
    pairs = [(mine[unit], theirs[unit]) for unit in common]
    differences = [100 * (b - a) for a, b in pairs]
    drawn = sorted(resampled_means(differences, seed, RESAMPLES))
    only_first = tuple(unit for unit, (a, b) in zip(common, pairs, strict=True) if a > b)
    only_second = tuple(unit for unit, (a, b) in zip(common, pairs, strict=True) if b > a)
    return Comparison(
        (first.numbers["model"], second.numbers["model"]),
        first.task,
        (first.numbers["score"], second.numbers["score"]),
        len(common),
        len(mine.keys() ^ theirs.keys()),
        (100 * sum(a for a, _ in pairs) / len(pairs), 100 * sum(b for _, b in pairs) / len(pairs)),
        sum(differences) / len(differences),
        drawn[int(0.025 * (RESAMPLES - 1))],
        drawn[math.ceil(0.975 * (RESAMPLES - 1))],
        only_first,
        only_second,
        mcnemar(len(only_first), len(only_second)),
    )


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
