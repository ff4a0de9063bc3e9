"""How often evidence is where the answer is, measured on the embedded models: by the map, and by leaving pictures out.

python -m longview.eval.evidence FILE.json [--models NAME,NAME] [--pictures N] [--places N] [--films N] [--seed N]

picture   a question about one of eight pictures       the picture with most attention; the one without which the
                                                       answer is least likely
place     a question about one thing in a picture      the cell of the picture with most attention, in the ninth of the
                                                       picture that holds the thing
moment    a question about a needle in a film, of      the frame, likewise
          which eight frames are shown, one of it

Scenes are held out, and the same for all models. Shares are of answers that were right; questions of yes or no and
of nothing are left out, as other pictures may answer them as well. `python docs/make.py` makes the page of the file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import longview
from longview.errors import LongviewError
from longview.eval.ask import fingerprint
from longview.eval.collect import Row, collect, finish
from longview.eval.world import Case, Score, case_messages, draw_cases, normalise
from longview.evidence.deletion import Deletion, check
from longview.messages import Answer, Message
from longview.world.needle import KINDS as NEEDLE_KINDS
from longview.world.needle import NeedleVideo, draw_needle_video
from longview.world.render import NEEDLE_FPS, write_needle_video

MODELS = ("demo-owl3", "demo-ovis2", "demo-mgm")
SHOWN = 8
"""Pictures, or frames of a film."""
PICTURE, PLACE, MOMENT = "picture", "place", "moment"
MAX_TOKENS = 24
DRAWS = 5
VAGUE = ("yes", "no", "nothing", "0")
"""Answers that pictures give by what they do not show."""
PLACE_KINDS = ("colour", "shape", "size", "position", "content")


@dataclass(frozen=True)
class Amount:
    """How many questions are asked."""

    pictures: int = 100
    places: int = 100
    films: int = 40
    seed: int = 0


def rows(engines: Mapping[str, Any], amount: Amount, done: Sequence[Row]) -> Iterator[Row]:
    """All that is to be asked and was not yet, answered and checked.

    Args:
        done: Rows of a run that was killed.
    """
    known = {_key(row) for row in done}
    with tempfile.TemporaryDirectory(prefix="longview-evidence-") as folder:
        for name, engine in engines.items():
            for task, questions in (
                (PICTURE, _picture_questions(amount, Path(folder))),
                (PLACE, _place_questions(amount, Path(folder))),
                (MOMENT, _moment_questions(amount, Path(folder))),
            ):
                for number, question in enumerate(questions):
                    row = {"task": task, "model": name, "number": number}
                    if _key(row) not in known:
                        yield row | _asked(engine, question, amount.seed)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "model", "number"))


@dataclass(frozen=True)
class _Question:
    messages: list[Message]
    answer: str
    picture: int = 0
    """Number of the picture, or frame, that holds the answer; 0: it is a place that is asked for."""
    cell: int = 0
    """Ninth of the picture that holds it, row after row."""
    media: Mapping[str, Any] | None = None


def _picture_questions(amount: Amount, folder: Path) -> Iterator[_Question]:
    for number, case in enumerate(_cases("eight pictures", amount.pictures, amount.seed)):
        messages = case_messages(case, "shown", folder / f"pictures-{number % 8}")
        yield _Question(messages, case.question.answer, case.question.about)


def _place_questions(amount: Amount, folder: Path) -> Iterator[_Question]:
    for number, case in enumerate(_cases("one picture", amount.places, amount.seed)):
        assert case.question.cells is not None
        (cell,) = case.question.cells
        yield _Question(case_messages(case, "shown", folder / f"place-{number % 8}"), case.question.answer, cell=cell)


def _moment_questions(amount: Amount, folder: Path) -> Iterator[_Question]:
    rng = random.Random(f"evidence {amount.seed}")
    for number in range(amount.films):
        video, paint = draw_needle_video(rng, NEEDLE_KINDS[number % len(NEEDLE_KINDS)]), rng.randrange(1 << 30)
        seconds, place = shown_seconds(rng, video)
        path = write_needle_video(video, folder / "film.mp4", paint)
        indices = tuple(second * NEEDLE_FPS for second in seconds)
        question = [longview.ask(video.question.text, longview.video(path))]
        yield _Question(question, video.question.answer, place + 1, media={"indices": indices})


def shown_seconds(rng: random.Random, video: NeedleVideo) -> tuple[list[int], int]:
    """Seconds of a film, one of which is in its needle, ascending; and which of them is."""
    length = sum(shot.seconds for shot in video.shots)
    others = [second for second in range(length) if not video.begin <= second < video.end]
    needle = video.begin + (video.end - video.begin) // 2
    seconds = sorted([needle, *rng.sample(others, SHOWN - 1)])
    return seconds, seconds.index(needle)


def _cases(group: str, count: int, seed: int) -> list[Case]:
    """So many questions of a group whose answer is found in one picture, or one place of it."""
    found: list[Case] = []
    for attempt in range(1, 20):
        drawn = draw_cases(seed, attempt * max(1, count // 4), [group])
        found = [case for case in drawn if _is_definite(case)]
        if len(found) >= count:
            break
    random.Random(f"evidence {group} {seed}").shuffle(found)
    return found[:count]


def _is_definite(case: Case) -> bool:
    question = case.question
    if question.answer in VAGUE:
        return False
    if len(case.media) == 1:
        return question.kind in PLACE_KINDS and question.cells is not None and len(question.cells) == 1
    return question.about > 0


def _asked(engine: Any, question: _Question, seed: int) -> Row:
    """One question answered, and its evidence checked."""
    settings: dict[str, Any] = {"max_tokens": MAX_TOKENS}
    settings |= {} if question.media is None else {"media": dict(question.media)}
    answer = engine.answer(question.messages, evidence=True, **settings)
    began = time.perf_counter()
    engine.answer(question.messages, **settings)  # again, for its time alone
    seconds = {"answer": time.perf_counter() - began, "evidence": answer.evidence.seconds}
    row: Row = {"truth": question.answer, "right": normalise(answer.text) == normalise(question.answer)}
    if question.picture:
        deletion = check(engine, question.messages, answer, seed=seed, draws=DRAWS)
        row |= picture_row(answer, deletion, question.picture)
        seconds["check"] = deletion.seconds
    else:
        row |= place_row(answer, question.cell)
    return row | {"seconds": {name: round(value, 4) for name, value in seconds.items()}}


def picture_row(answer: Answer, deletion: Deletion, truth: int) -> Row:
    """What map and check say of the pictures.

    Args:
        truth: Number of the one that holds the answer.
    """
    evidence = answer.evidence
    assert evidence is not None
    shares = [picture.share for picture in evidence.pictures]
    drops = [-change for change in deletion.alone]
    first = deletion.steps[0]
    return {
        "pictures": len(shares),
        "map": evidence.ranked[0] == truth,
        "left out": int(np.argmax(drops)) + 1 == truth,
        "correlation": round(rank_correlation(shares, drops), 4),
        "without": {
            "highest": round(first.highest, 4),
            "random": round(first.mean, 4),
            "lowest": round(first.lowest, 4),
        },
        "passes": deletion.passes,
    }


def place_row(answer: Answer, cell: int) -> Row:
    """Whether the highest cell of the map is in the right ninth of the picture, and that ninth's part of the map."""
    evidence = answer.evidence
    assert evidence is not None
    (picture,) = evidence.pictures
    left, upper, right, lower = picture.peak
    width, height = picture.frame.width, picture.frame.height
    column, row = int(3 * (left + right) / 2 / width), int(3 * (upper + lower) / 2 / height)
    return {"pictures": 9, "map": row * 3 + column == cell}


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; ties share their mean rank, and 0 where one has no order."""
    ranks = [_ranks(values) for values in (one, other)]
    if min(float(each.std()) for each in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values)
    return np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array], dtype=float)


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(engines: Mapping[str, Any], amount: Amount, file: Path, progress: Callable[[Row], None]) -> dict[str, Any]:
    """Ask all, write the numbers to a file, and return them; see the module.

    Raises:
        LongviewError: a model cannot be asked, or the journal beside the file is of another job.
    """
    weights = {name: fingerprint(engine.model) for name, engine in engines.items() if hasattr(engine, "model")}
    job = {"evidence": 1, "models": list(engines), "weights": weights, **json.loads(json.dumps(asdict(amount)))}
    found = collect(file, job, lambda done: rows(engines, amount, done), progress)
    numbers = {**job, "date": time.strftime("%Y-%m-%d"), "points": points(found)}
    finish(file, numbers)
    return numbers


def points(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Each task and model as one point."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row["task"], row["model"]), []).append(row)
    return [{"task": task, "model": model} | _point(group) for (task, model), group in groups.items()]


def _point(group: Sequence[Row]) -> dict[str, Any]:
    right = [row for row in group if row["right"]]
    point: dict[str, Any] = {"asked": len(group), "right": len(right), "chance": round(1 / group[0]["pictures"], 4)}
    point["seconds"] = {
        name: round(statistics.median(row["seconds"][name] for row in group), 4) for name in group[0]["seconds"]
    }
    if not right:
        return point
    point["map"] = _share(right, "map")
    if "left out" in right[0]:
        point["left out"] = _share(right, "left out")
        point["correlation"] = round(statistics.fmean(row["correlation"] for row in right), 4)
        point["without"] = {
            name: round(statistics.fmean(row["without"][name] for row in right), 4) for name in right[0]["without"]
        }
        point["passes"] = right[0]["passes"]
    return point


def _share(group: Sequence[Row], what: str) -> dict[str, float]:
    score = Score("", "", right=sum(row[what] for row in group), total=len(group))
    low, high = score.interval
    return {"share": round(score.accuracy, 4), "low": round(low, 4), "high": round(high, 4)}


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TITLES = {"demo-owl3": "mPLUG-Owl3", "demo-ovis2": "Ovis2", "demo-mgm": "MGM"}
TASKS = {PICTURE: "picture of eight", PLACE: "place of nine", MOMENT: "frame of eight"}
COLOURS = {"map": "#3c6e91", "left out": "#e4a72e"}


def page(numbers: Mapping[str, Any], folder: str) -> str:
    """Markdown: a figure and tables.

    Args:
        folder: Of the figure, as the page names it.
    """
    lines = [
        f"![How often evidence is where the answer is]({folder}/evidence.png)",
        "",
        "| what | model | answered right | by the map | by leaving out | chance | rank correlation |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for point in numbers["points"]:
        correlation = f"{point['correlation']:.2f}" if "correlation" in point else "–"
        lines.append(
            f"| {TASKS[point['task']]} | {TITLES.get(point['model'], point['model'])} | {point['right']} of "
            f"{point['asked']} | {_cell(point, 'map')} | {_cell(point, 'left out')} | {point['chance']:.0%} | "
            f"{correlation} |"
        )
    lines += [
        "",
        "Of answers that were right; 95 % Wilson intervals in brackets. The correlation is Spearman's, of a picture's "
        "share with what the answer loses without it, the mean over questions.",
        "",
        "| what | model | without the highest | one at random | the lowest | answer | evidence | check |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for point in numbers["points"]:
        if "without" in point:
            changes = " | ".join(f"{point['without'][name]:+.2f}" for name in ("highest", "random", "lowest"))
            times = " | ".join(f"{1000 * point['seconds'][name]:.0f} ms" for name in ("answer", "evidence", "check"))
            name = TITLES.get(point["model"], point["model"])
            lines.append(f"| {TASKS[point['task']]} | {name} | {changes} | {times} |")
    passes = next((point["passes"] for point in numbers["points"] if "passes" in point), 0)
    lines += [
        "",
        "Nats that the answer's log-probability changes, the mean. Medians of the time that a second question about "
        f"the same pictures takes, that its evidence takes behind it, and the deletion check ({passes} passes).",
    ]
    return "\n".join(lines) + "\n"


def _cell(point: Mapping[str, Any], what: str) -> str:
    if what not in point:
        return "–"
    return f"{point[what]['share']:.0%} ({point[what]['low']:.0%} – {point[what]['high']:.0%})"


def plot(numbers: Mapping[str, Any], folder: Path) -> None:
    """The figure of the page, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from longview.figures import new_figure

    figure = new_figure("evidence", 9.0, 3.6, layout="constrained")
    for place, (task, title) in enumerate(TASKS.items()):
        axes = figure.add_subplot(1, len(TASKS), place + 1)
        some = [point for point in numbers["points"] if point["task"] == task]
        for what, shift in (("map", -0.2), ("left out", 0.2)):
            known = [(number, point) for number, point in enumerate(some) if what in point]
            bars = [
                [100 * (point[what]["share"] - point[what]["low"]) for _, point in known],
                [100 * (point[what]["high"] - point[what]["share"]) for _, point in known],
            ]
            heights = [100 * point[what]["share"] for _, point in known]
            middles = [number + (shift if task != PLACE else 0.0) for number, _ in known]
            if known:
                axes.bar(middles, heights, 0.38, yerr=bars, capsize=3, color=COLOURS[what], label=LABELS[what])
        if some:
            axes.axhline(100 * some[0]["chance"], ls="--", lw=1, color="#777777", label="chance")
        axes.set_xticks(range(len(some)), [TITLES.get(point["model"], point["model"]) for point in some], fontsize=8)
        axes.set_ylim(0, 103)
        axes.set_title(f"the right {title}", fontsize=9)
        axes.grid(alpha=0.3, axis="y")
    figure.axes[0].set_ylabel("right answers, %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(folder / "evidence.png", dpi=110)


LABELS = {"map": "by the map", "left out": "by leaving out"}


def main(arguments: Sequence[str]) -> None:
    usual = Amount()
    parser = argparse.ArgumentParser(prog="python -m longview.eval.evidence", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    for name in ("pictures", "places", "films", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name), help="default: %(default)s")
    given = parser.parse_args(arguments)
    amount = Amount(given.pictures, given.places, given.films, given.seed)
    if min(amount.pictures, amount.places, amount.films) < 1:
        parser.error("pictures, places and films are whole numbers from 1 up")
    try:
        engines = {name: longview.load(name) for name in given.models.split(",")}
        measure(engines, amount, given.file, lambda row: print(*_key(row), file=sys.stderr, flush=True))
    except LongviewError as error:
        raise SystemExit(f"longview: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
