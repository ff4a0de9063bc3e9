"""What is claimed of many pictures, frames and small print, measured on the embedded models: points with intervals.

python -m longview.eval.curves docs/results [--only NAME]   every job of docs/results.md, into NAME.json each
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
from dataclasses import asdict, dataclass, fields, replace
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
from longview.eval.world import Score, case_messages, draw_cases, normalise
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


JOBS = {
    "embedded": (MODELS, Amount(questions=50, shown=2_000, films=12, prints=40, repeats=3)),
    "many": (("demo-owl3-many",), Amount(questions=50, shown=16_000, films=12, prints=4, repeats=1)),
    "print": (
        ("demo-owl3-print", "demo-ovis2-print", "demo-mgm-print"),
        Amount(questions=5, shown=10, films=1, prints=200, repeats=1),
    ),
}
"""What is measured for docs/results.md: models, and how much each is asked."""


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


def main(arguments: Sequence[str]) -> None:
    usual = Amount()
    names = [field.name for field in fields(Amount) if field.type == "int"]
    parser = argparse.ArgumentParser(prog="python -m longview.eval.curves", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.json", help="or a folder: all of docs/results.md, there")
    parser.add_argument("--only", choices=JOBS, help="one job of docs/results.md, with a folder")
    parser.add_argument("--models", help=f"default: {','.join(MODELS)}; the first watches films")
    for name in names:
        parser.add_argument(f"--{name}", type=int, help=f"default: {getattr(usual, name)}")
    given = parser.parse_args(arguments)
    amounts = {name: value for name in names if (value := getattr(given, name)) is not None}
    if any(value < (name != "seed") for name, value in amounts.items()):
        parser.error("questions, shown, films, prints and repeats are whole numbers from 1 up")
    if not given.file.is_dir():
        if given.only:
            parser.error(f"--only goes with a folder, and {given.file} is none")
        models = given.models.split(",") if given.models else MODELS
        jobs = {given.file: (models, replace(usual, **amounts))}
    elif amounts or given.models:
        parser.error(f"{given.file} is a folder, whose jobs say what they ask and of which models; give FILE.json")
    else:
        jobs = {given.file / f"{name}.json": job for name, job in JOBS.items() if given.only in (None, name)}
    try:
        for file, (models, amount) in jobs.items():
            measure({name: longview.load(name) for name in models}, amount, file, _tell)
    except LongviewError as error:
        raise SystemExit(f"longview: {error}") from None


def _tell(row: Row) -> None:
    print(*(each for each in _key(row) if each is not None), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
