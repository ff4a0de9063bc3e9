"""What is claimed of many pictures, frames and small print, measured on the embedded models: points with intervals.

python -m longview.eval.curves FILE.json [--models NAME,NAME] [--questions N] [--shown N] [--films N] …

pictures      share of questions about one of N numbered pictures answered right, as far as each model's context goes
frames        needle in a film shown, and its question answered, with so many frames by each sampler
small print   signs in small letters read, with the family's own mechanism for detail and without it
first token   seconds to the first token of an answer about N pictures, none of which was seen before

Scenes are held out, and the same for all models. Each answer goes to a journal beside FILE.json as it comes: a run that
is killed goes on. `python docs/make.py` makes the page and its figures of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import longview
from longview.errors import LongviewError
from longview.eval.ask import EngineAsker, fingerprint
from longview.eval.card import blanked
from longview.eval.collect import Row, collect, finish
from longview.eval.needle import shows_needle
from longview.eval.tasks import find_task
from longview.eval.tasks.distractors import KINDS, world_items
from longview.eval.world import GROUPS, Score, case_messages, draw_cases, normalise
from longview.messages import Message, Part, numbered
from longview.world.needle import KINDS as NEEDLE_KINDS
from longview.world.needle import draw_needle_video
from longview.world.render import render, write_needle_video
from longview.world.scenes import draw_picture

MODELS = ("demo-owl3", "demo-ovis2", "demo-mgm")
PICTURES = (1, 2, 5, 10, 20, 50, 100, 200, 400)
FRAMES = (4, 8, 16, 32, 64, 128)
SELECTS = ("uniform", "fps", "mdp3")
MAX_TOKENS = 24
OFF, ON = "off", "on"


@dataclass(frozen=True)
class Amount:
    """How much is asked."""

    questions: int = 60
    """For each number of pictures; a multiple of the five kinds."""
    shown: int = 3_000
    """Pictures in all of these, at most: of many pictures, fewer questions are asked."""
    films: int = 24
    prints: int = 60
    """A multiple of four."""
    repeats: int = 3
    """Of each time that is taken."""
    seed: int = 0
    pictures: tuple[int, ...] = PICTURES
    frames: tuple[int, ...] = FRAMES


def rows(engines: Mapping[str, Any], amount: Amount, done: Sequence[Row]) -> Iterator[Row]:
    """All that is to be asked and was not yet, answered.

    Args:
        engines: By name; the first one watches the films.
        done: Rows of a run that was killed.
    """
    known = {_key(row) for row in done}
    for name, engine in engines.items():
        yield from _among_pictures(name, engine, amount, known)
        yield from _small_print(name, engine, amount, known)
        yield from _first_tokens(name, engine, amount, known)
    for name, engine in list(engines.items())[:1]:
        yield from _films(name, engine, amount, known)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("curve", "model", "setting", "at", "number"))


def _among_pictures(name: str, engine: Any, amount: Amount, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Questions about one of N pictures, until they no longer fit into the model."""
    protocol = replace(find_task("distractor").protocols["owl3"], max_tokens=MAX_TOKENS)
    per_kind = max(1, amount.questions // len(KINDS))
    every = world_items(amount.pictures, amount.seed, per_kind)
    items = [item for item in every if item.id.endswith("/0")]  # other variants ask the same of other distractors
    for at in amount.pictures:
        of_kind = max(1, min(per_kind, amount.shown // at // len(KINDS)))
        asked = [item for item in items if item.labels["pictures"] == str(at)]
        asked = [item for number, item in enumerate(asked) if number % per_kind < of_kind]
        place = {"curve": "pictures", "model": name, "at": at}
        about = [place | {"number": item.id, "truth": item.answer} for item in asked]
        todo = [(item, row) for item, row in zip(asked, about, strict=True) if _key(row) not in known]
        unfit = place | {"number": "unfit"}
        if _key(unfit) in known:
            return
        answers = EngineAsker(engine).answers([item for item, _ in todo], protocol)
        for (item, row), reply in zip(todo, answers, strict=True):
            if isinstance(reply, LongviewError):
                yield unfit | {"error": str(reply)}
                return
            yield row | {"right": normalise(reply.text) == normalise(item.answer)}


def _small_print(name: str, engine: Any, amount: Amount, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Signs in small letters, with and without what the family has for detail."""
    cases = draw_cases(amount.seed, max(1, amount.prints // 4), ["small print"])
    for setting in (OFF, ON):
        with tempfile.TemporaryDirectory(prefix="longview-print-") as folder, mechanism(engine, setting == ON):
            for number, case in enumerate(cases):
                row = {"curve": "small print", "model": name, "setting": setting, "number": number}
                if _key(row) in known:
                    continue
                messages = case_messages(case, "shown", Path(folder) / "case")
                text = engine.answer(messages, max_tokens=MAX_TOKENS).text
                truth = case.question.answer
                yield row | {"truth": truth, "right": normalise(text) == normalise(truth)}


@contextlib.contextmanager
def mechanism(engine: Any, on: bool) -> Iterator[None]:
    """A family's own mechanism for detail in one picture, on or off: crops, or MGM's tower of high resolution, which
    is given grey pixels where it is off.
    """
    tower = getattr(getattr(engine, "model", None), "vision_tower_aux", None)
    if tower is not None:
        _forget(engine)
        try:
            with contextlib.nullcontext() if on else blanked(tower):
                yield
        finally:
            _forget(engine)
        return
    processor = engine.processor
    setting, values = ("cut_enable", (False, True)) if hasattr(processor, "cut_enable") else ("max_partition", (1, 9))
    usual = getattr(processor, setting)
    setattr(processor, setting, values[on])
    try:
        yield
    finally:
        setattr(processor, setting, usual)


def _forget(engine: Any) -> None:
    """Leave nothing in the caches of what has been computed of pictures."""
    engine.feature_cache.clear()
    engine.prefix_cache.clear()


def _first_tokens(name: str, engine: Any, amount: Amount, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Seconds to the first token, from JPEG files in memory."""
    engine.answer([_about_pictures(random.Random("warm"), 2)], max_tokens=1)
    for at in amount.pictures:
        for number in range(amount.repeats):
            row = {"curve": "first token", "model": name, "at": at, "number": number}
            if _key(row) in known:
                continue
            message = _about_pictures(random.Random(f"first {amount.seed} {at} {number}"), at)
            began = time.perf_counter()
            try:
                engine.answer([message], max_tokens=1)
            except LongviewError:  # the pictures do not fit into the model, see the curve of accuracy
                return
            yield row | {"seconds": round(time.perf_counter() - began, 4)}


def _about_pictures(rng: random.Random, count: int) -> Message:
    """So many numbered pictures, and a question about the last one."""
    pictures = []
    for _ in range(count):
        file = io.BytesIO()
        render(draw_picture(rng, held_out=True), rng.randrange(1 << 30)).save(file, "JPEG", quality=85)
        pictures.append(Part("image", source=file.getvalue(), detail="low"))
    return Message.of("user", *numbered(pictures, range(1, count + 1)), f"Describe image {count}.")


def _films(name: str, engine: Any, amount: Amount, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    """Questions about needles in films, with so many frames by each sampler."""
    rng = random.Random(f"films {amount.seed}")
    with tempfile.TemporaryDirectory(prefix="longview-films-") as folder:
        for number in range(amount.films):
            video, paint = draw_needle_video(rng, NEEDLE_KINDS[number % len(NEEDLE_KINDS)]), rng.randrange(1 << 30)
            about = [
                {"curve": "frames", "model": name, "setting": select, "at": at, "number": number}
                for select in SELECTS
                for at in amount.frames
            ]
            todo = [row for row in about if _key(row) not in known]
            if not todo:
                continue
            path = write_needle_video(video, Path(folder) / "film.mp4", paint)
            question = [longview.ask(video.question.text, longview.video(path))]
            for row in todo:
                media = {"select": row["setting"], "frames": row["at"]}
                answer = engine.answer(question, media=media, max_tokens=MAX_TOKENS)
                shown = shows_needle(video, [frame.seconds for frame in answer.receipt.frames])
                truth = video.question.answer
                right = normalise(answer.text) == normalise(truth)
                yield row | {"truth": truth, "right": right, "shown": shown}


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(engines: Mapping[str, Any], amount: Amount, file: Path, progress: Callable[[Row], None]) -> dict[str, Any]:
    """Ask all, write the numbers to a file, and return them; see the module.

    Args:
        progress: Told what was asked last, every few seconds.

    Raises:
        LongviewError: a model cannot be asked, or the journal beside the file is of another job.
    """
    weights = {name: fingerprint(engine.model) for name, engine in engines.items() if hasattr(engine, "model")}
    job = {"curves": 1, "models": list(engines), "weights": weights, **json.loads(json.dumps(asdict(amount)))}
    found = collect(file, job, lambda done: rows(engines, amount, done), progress)
    sizes = {
        name: sum(parameter.numel() for parameter in engine.model.parameters())
        for name, engine in engines.items()
        if hasattr(engine, "model")
    }
    about = {"parameters": sizes, "threads": _threads(), "date": time.strftime("%Y-%m-%d")}
    numbers = {**job, **about, "points": points(found)}
    finish(file, numbers)
    return numbers


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def points(found: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows of one curve, model, setting and place as one point: a share with its interval, or seconds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(_key(row)[:-1], []).append(row)
    made = []
    for key, group in groups.items():
        point = dict(zip(("curve", "model", "setting", "at"), key, strict=True))
        errors = [row["error"] for row in group if "error" in row]
        if errors:
            made.append(point | {"error": errors[0]})
        elif "seconds" in group[0]:
            seconds = [row["seconds"] for row in group]
            middle = round(statistics.median(seconds), 4)
            made.append(point | {"total": len(seconds), "seconds": middle, "low": min(seconds), "high": max(seconds)})
        else:
            made.append(point | _share(group, "right"))
            if "shown" in group[0]:
                made.append(point | {"curve": "needle"} | _share(group, "shown"))
    return made


def _share(group: Sequence[Row], what: str) -> dict[str, Any]:
    score = Score("", "", right=sum(row[what] for row in group), total=len(group))
    score.answers.update(row["truth"] for row in group)
    kinds: dict[str, list[str]] = {}
    for row in group:
        kinds.setdefault(_kind(row), []).append(row["truth"])
    chance = sum(max(map(truths.count, truths)) for truths in kinds.values()) / len(group)
    found = {name: value for name, value in score.as_dict().items() if name not in ("group", "kind")}
    return found | {"chance": round(chance, 4)}


def _kind(row: Mapping[str, Any]) -> str:
    """The kind of question, for each of which a guess is another."""
    if row["curve"] == "frames":
        return NEEDLE_KINDS[row["number"] % len(NEEDLE_KINDS)]
    return row["number"].split("/")[1].partition("-")[0] if row["curve"] == "pictures" else ""


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────

COLOURS = {
    "demo-owl3": "#3c6e91", "demo-ovis2": "#e4572e", "demo-mgm": "#4a9c5d", "demo-owl3-many": "#8a4f9e",
    "uniform": "#999999", "fps": "#e4a72e", "mdp3": "#3c6e91", OFF: "#b8c7d3", ON: "#3c6e91",
}  # fmt: skip
TITLES = {
    "demo-owl3": "mPLUG-Owl3", "demo-ovis2": "Ovis2", "demo-mgm": "MGM", "demo-owl3-many": "mPLUG-Owl3, of many",
    "demo-owl3-crops": "mPLUG-Owl3, on", "demo-ovis2-print": "Ovis2, on", "demo-mgm-print": "MGM, on",
    "mdp3": "MDP3", "fps": "1 a second",
}  # fmt: skip
CROPS, FINE = "crops", "high-resolution tower"
MECHANISMS = {
    "demo-owl3": CROPS, "demo-ovis2": CROPS, "demo-mgm": FINE,
    "demo-owl3-crops": CROPS, "demo-ovis2-print": CROPS, "demo-mgm-print": FINE,
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
    axes.legend(fontsize=8)
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


def main(arguments: Sequence[str]) -> None:
    usual = Amount()
    parser = argparse.ArgumentParser(prog="python -m longview.eval.curves", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s; the first watches films")
    for name in ("questions", "shown", "films", "prints", "repeats", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name), help="default: %(default)s")
    given = parser.parse_args(arguments)
    amount = Amount(given.questions, given.shown, given.films, given.prints, given.repeats, given.seed)
    if min(amount.questions, amount.shown, amount.films, amount.prints, amount.repeats) < 1:
        parser.error("questions, shown, films, prints and repeats are whole numbers from 1 up")
    try:
        engines = {name: longview.load(name) for name in given.models.split(",")}
        measure(engines, amount, given.file, _tell)
    except LongviewError as error:
        raise SystemExit(f"longview: {error}") from None


def _tell(row: Row) -> None:
    print(*(each for each in _key(row) if each is not None), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
