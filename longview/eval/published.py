"""Scores that the models' authors published, by task and model, with where they stand.

`repository`: the tables in a model's repository (some read off its figures, ± 0.2); `paper`: arXiv.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OWL3 = "the tables of mPLUG-Owl3's repository (arXiv 2408.04840; releases 240728 and 241101)"
OWL3_SMALL = "a figure in mPLUG-Owl3's repository"
OVIS2 = "the tables of Ovis2's repository"
MGM = "the table of MGM's repository (arXiv 2403.18814)"


@dataclass(frozen=True)
class Published:
    """One score."""

    model: str
    score: float
    source: str


_OWL3_MODELS = ("mPLUG-Owl3-7B-240728", "mPLUG-Owl3-7B-241101")
_OWL3 = {
    "nextqa": (78.6, 82.3),
    "mvbench": (54.5, 59.5),
    "videomme": (53.5, 59.3),
    "longvideobench": (52.1, 59.7),
    "mlvu": (63.7, 70.0),
    "lvbench": (None, 43.5),
    "nlvr2": (90.8, 92.7),
    "mantis": (63.1, 67.3),
    "mathverse_mv": (65.0, 65.1),
    "sciverse_mv": (86.2, 82.7),
    "blink": (50.3, 53.8),
    "qbench2": (74.0, 77.7),
    "vqav2": (82.1, 83.2),
    "okvqa": (60.1, 61.4),
    "gqa": (65.0, 64.7),
    "vizwiz": (63.5, 62.9),
    "textvqa": (69.0, 71.4),
    "mmbench_en": (77.6, 80.4),
    "mmbench_cn": (74.3, 79.1),
    "mmvet": (40.1, 39.8),
    "pope": (88.2, 88.1),
    "ai2d": (73.8, 77.8),
}
_OWL3_SMALL_TASKS = (
    "nextqa",
    "mvbench",
    "videomme",
    "longvideobench",
    "mlvu",
    "nlvr2",
    "mantis",
    "blink",
    "qbench2",
)
_OWL3_SMALL = {
    "mPLUG-Owl3-1B-241014": (65.3, 47.1, 41.8, 42.8, 52.7, 75.8, 39.6, 40.6, 50.6),
    "mPLUG-Owl3-2B-241014": (74.5, 51.8, 48.4, 50.4, 59.8, 85.5, 54.4, 43.0, 65.8),
}
_OVIS2_MODELS = tuple(f"Ovis2-{size}" for size in ("1B", "2B", "4B", "8B", "16B", "34B"))
_OVIS2 = {
    "mmbench_v11": (68.5, 77.2, 81.4, 83.3, 85.2, 86.2),
    "mmstar": (52.0, 59.0, 61.7, 64.4, 66.9, 69.4),
    "mmmu": (36.0, 45.3, 48.0, 59.0, 59.6, 65.6),
    "mathvista": (59.5, 64.4, 69.1, 71.4, 74.9, 77.0),
    "hallusionbench": (44.5, 50.2, 54.0, 56.0, 55.9, 58.8),
    "ai2d": (76.8, 82.6, 85.5, 86.8, 86.1, 88.4),
    "ocrbench": (88.7, 87.5, 91.0, 89.3, 88.2, 89.8),
    "mmvet": (50.3, 58.6, 65.5, 68.5, 68.4, 75.5),
}
_MGM_TASKS = ("textvqa", "mmbench_en", "mme", "mmvet", "mmmu", "mmmu_test", "mathvista")
_MGM: dict[str, tuple[float | tuple[int, int] | None, ...]] = {
    "MGM-2B": (56.2, 59.8, (1341, 312), 31.1, 31.7, 29.1, 29.4),
    "MGM-7B": (65.2, 69.3, (1523, 316), 40.8, 36.1, 32.8, 31.4),
    "MGM-13B": (65.9, 68.5, (1565, 322), 46.0, 38.1, 33.5, 37.0),
    "MGM-8B": (67.6, 72.7, (1606, 341), 47.3, 38.2, 36.3, None),
    "MGM-8x7B": (69.2, 75.6, (1639, 379), 45.8, 41.8, 37.1, 41.8),
    "MGM-34B": (70.1, 79.6, (1666, 439), 53.0, 48.7, 43.6, 38.9),
    "MGM-7B-HD": (68.4, 65.8, (1546, 319), 41.3, 36.8, 32.9, 32.2),
    "MGM-13B-HD": (70.2, 68.6, (1597, 320), 50.5, 37.3, 35.1, 37.0),
    "MGM-8B-HD": (71.6, None, (1532, 357), None, 37.0, None, None),
    "MGM-8x7B-HD": (71.9, 74.7, (1633, 356), 53.5, 40.0, 37.0, 43.1),
    "MGM-34B-HD": (74.1, 80.6, (1659, 482), 59.3, 48.0, 44.9, 43.3),
}


def published(task: str) -> list[Published]:
    """All scores of a task."""
    found = [
        Published(model, score, OWL3)
        for model, score in zip(_OWL3_MODELS, _OWL3.get(task, ()), strict=False)
        if score is not None
    ]
    for model, small in _OWL3_SMALL.items():
        row = dict(zip(_OWL3_SMALL_TASKS, small, strict=True))
        found += [Published(model, row[task], OWL3_SMALL)] if task in row else []
    found += [Published(model, score, OVIS2) for model, score in zip(_OVIS2_MODELS, _OVIS2.get(task, ()), strict=False)]
    for model, scores in _MGM.items():
        mine = dict(zip(_MGM_TASKS, scores, strict=True)).get(task)
        if isinstance(mine, tuple):
            found.append(Published(model, sum(mine), f"{MGM}: perception {mine[0]}, cognition {mine[1]}"))
        elif mine is not None:
            found.append(Published(model, mine, MGM))
    return found


def published_of(task: str, model: str) -> Published | None:
    """The score of one model, named as its checkpoint is: mPLUG/mPLUG-Owl3-7B-241101, models/MGM-7B-HD."""
    return next((each for each in published(task) if _plain(each.model) == _plain(model)), None)


def _plain(model: str) -> str:
    return re.sub(r"[^a-z0-9]", "", model.rstrip("/").rpartition("/")[2].lower())
