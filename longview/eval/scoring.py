"""From graded items to the numbers of a result: a metric counts units, and says what the benchmark publishes.

    accuracy      the mean over items                      most
    circular      a question is right where all its rotations are: MMBench
    …             one class a benchmark that counts otherwise

A unit is what varies between samples of questions: an item, or a group of items. Intervals and paired tests are over
units.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longview.eval.items import Graded
from longview.eval.metrics import pope_scores

RESAMPLES = 1000
Z = 1.96


@dataclass(frozen=True)
class Metric:
    """How a benchmark counts.

    Attributes:
        name: What its main number is called.
        unit: What one unit is worth, from the graded items of it, from 0 to 1.
        total: The main number from all units, where that is not 100 times their mean.
        more: Further numbers, by name.
    """

    name: str
    unit: Callable[[Sequence[Graded]], float]
    total: Callable[[Sequence[Graded]], float] | None = None
    more: Callable[[Sequence[Graded]], Mapping[str, float]] | None = None
    scale: str = "%"

    def units(self, graded: Sequence[Graded]) -> dict[str, float]:
        """What each unit is worth."""
        return {name: self.unit(group) for name, group in grouped(graded).items()}

    def score(self, graded: Sequence[Graded]) -> float:
        """The main number."""
        if self.total is not None:
            return self.total(graded)
        worth = self.units(graded)
        return 100 * sum(worth.values()) / max(1, len(worth))


def grouped(graded: Sequence[Graded]) -> dict[str, list[Graded]]:
    """Graded items by unit, in order."""
    groups: dict[str, list[Graded]] = defaultdict(list)
    for each in graded:
        groups[each.item.unit].append(each)
    return dict(groups)


def mean(group: Sequence[Graded]) -> float:
    return sum(each.score for each in group) / len(group)


def all_right(group: Sequence[Graded]) -> float:
    return float(all(each.score == 1 for each in group))


def vanilla(graded: Sequence[Graded]) -> dict[str, float]:
    """What circular evaluation hides: the accuracy over all rotations."""
    return {"each rotation by itself": 100 * mean(graded)}


ACCURACY = Metric("accuracy", mean)
CIRCULAR = Metric("CircularEval accuracy", all_right, more=vanilla)


# ── yes and no ──

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_points(graded: Sequence[Graded]) -> float:
    """The sum over categories of accuracy and of accuracy+, a picture whose two questions are right: at most 2800."""
    return sum(
        100 * mean(group) + 100 * _mean_of([all_right(picture) for picture in grouped(group).values()])
        for group in by_label(graded, "category").values()
    )


def mme_parts(graded: Sequence[Graded]) -> dict[str, float]:
    """The points of perception and of cognition, as they are published."""
    parts = {}
    for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
        some = [each for each in graded if each.item.labels["category"] in categories]
        if some:
            parts[name] = mme_points(some)
    return parts


def pope_f1(graded: Sequence[Graded]) -> float:
    """100 times the mean over categories of the F1 of yes."""
    groups = by_label(graded, "category").values() or [graded]
    return 100 * _mean_of([_pope(group)["f1"] for group in groups])


def pope_more(graded: Sequence[Graded]) -> dict[str, float]:
    found = _pope(graded) | {"yes": _mean_of([each.verdict.value == "yes" for each in graded])}
    return {name: 100 * found[name] for name in ("accuracy", "precision", "recall", "yes")}


def _pope(graded: Sequence[Graded]) -> dict[str, float]:
    """The scores; a question without an answer counts as its wrong one."""
    wrong = {"yes": "no", "no": "yes"}
    said = [str(each.verdict.value or wrong[each.item.answer]) for each in graded]
    return pope_scores(said, [each.item.answer for each in graded])


def by_label(graded: Sequence[Graded], label: str) -> dict[str, list[Graded]]:
    """Graded items by the value of a label; those without it are left out."""
    some: dict[str, list[Graded]] = defaultdict(list)
    for each in graded:
        if label in each.item.labels:
            some[each.item.labels[label]].append(each)
    return dict(some)


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


MME = Metric("points", mean, mme_points, mme_parts, scale=" points")
POPE = Metric("F1", mean, pope_f1, pope_more)


def mean_of_tasks(graded: Sequence[Graded]) -> float:
    """100 times the mean over tasks of their accuracy: MLVU's M-Avg."""
    return 100 * _mean_of([mean(group) for group in by_label(graded, "task").values()])


def hallusion(graded: Sequence[Graded]) -> float:
    """The mean of the three accuracies, as OpenCompass's table has it."""
    return _mean_of(list(hallusion_parts(graded).values()))


def hallusion_parts(graded: Sequence[Graded]) -> dict[str, float]:
    """Of answers; of figures, all of whose questions are right; of questions, right about all their figures."""
    found = {"aAcc": 100 * mean(graded)}
    for name, key in (("fAcc", "figure"), ("qAcc", "question")):
        groups: dict[str, list[Graded]] = defaultdict(list)
        for each in graded:
            groups[each.item.facts[key]].append(each)
        found[name] = 100 * _mean_of([all_right(group) for group in groups.values()])
    return found


def capabilities(graded: Sequence[Graded]) -> dict[str, float]:
    """100 times the mean grade of the questions that need each capability; most need several."""
    groups: dict[str, list[Graded]] = defaultdict(list)
    for each in graded:
        needed = each.item.labels.get("capability") or each.item.labels.get("category", "")
        for name in filter(None, re.split("[+,]", needed)):
            groups[name.strip()].append(each)
    return {name: 100 * mean(group) for name, group in sorted(groups.items())}


ROUGE = Metric("Rouge-L", mean)
ANLS = Metric("ANLS", mean)
MMVET = Metric("grade by a judge", mean, more=capabilities)
MLVU = Metric("M-Avg", mean, mean_of_tasks)
HALLUSION = Metric("mean of aAcc, fAcc, qAcc", mean, hallusion, hallusion_parts)
VQA = Metric("VQA accuracy", mean)


# ── intervals ──


def interval(metric: Metric, graded: Sequence[Graded], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the main number: Wilson's for right and wrong, else by resampling units."""
    groups = list(grouped(graded).values())
    if metric.total is None:
        worth = [metric.unit(group) for group in groups]
        if all(value in (0, 1) for value in worth):
            low, high = wilson(sum(worth), len(worth))
            return 100 * low, 100 * high
        return _percentiles([100 * total for total in resampled_means(worth, seed)])
    rng, totals = random.Random(f"interval {seed}"), []
    for _ in range(RESAMPLES // 5):
        drawn = rng.choices(groups, k=len(groups))
        totals.append(metric.total([each for group in drawn for each in group]))
    return _percentiles(totals)


def wilson(right: float, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    if not total:
        return 0.0, 1.0
    share = right / total
    middle = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total)) / (1 + Z * Z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def resampled_means(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> list[float]:
    """The means of samples that are drawn from the values, with replacement."""
    import numpy as np

    rng, given = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    return [float(given[rng.integers(0, len(given), len(given))].mean()) for _ in range(resamples)]


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[int(0.025 * (len(ordered) - 1))], ordered[math.ceil(0.975 * (len(ordered) - 1))]


# ── the numbers of a result ──


def numbers(metric: Metric, graded: Sequence[Graded]) -> dict[str, Any]:
    """All numbers of some graded items: score, interval, unparsed share, and the score of each label."""
    low, high = interval(metric, graded)
    found: dict[str, Any] = {
        "metric": metric.name,
        "scale": metric.scale,
        "score": round(metric.score(graded), 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "questions": len(grouped(graded)),
        "answers": len(graded),
        "unparsed": round(100 * sum(not each.verdict.understood for each in graded) / max(1, len(graded)), 2),
    }
    if metric.more is not None:
        found["more"] = {name: round(value, 2) for name, value in metric.more(graded).items()}
    found["by"] = {label: _by(metric, graded, label) for label in labels_of(graded)}
    return found


def labels_of(graded: Sequence[Graded]) -> list[str]:
    return list(dict.fromkeys(label for each in graded for label in each.item.labels))


def _by(metric: Metric, graded: Sequence[Graded], label: str) -> dict[str, Any]:
    return {
        value: {"score": round(metric.score(group), 2), "questions": len(grouped(group))}
        for value, group in by_label(graded, label).items()
    }
