"""Retrieval on the synthetic world: which moments are found, and what answers make of the pieces before them.

python -m longview.eval.retrieval FILE.json [--models NAME,NAME] [--films N] [--searches N] [--questions N] [--seed N]

search    a text that fits one shot of several films of unrelated scenes; that shot among the first 1, 5, 20 found
film      a question that fits one shot of a film, answered with the moments that were found in that film
name      what the thing in a photo is called, which one of a base of passages tells; asked with
            right   that passage alone             wrong    another one alone
            none    no passage                     mixed    that one among three others
            found   the nearest four of the base

Of `mixed` and `wrong`, each piece is left out in turn, as `longview ask --knowledge` does: an answer's claim is true if
it rests on the piece that it names. Scenes are held out, and the same for all models; answers go to a journal beside
FILE.json as they come, so that a run that is killed goes on. `python docs/make.py` makes the page of the file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import longview
from longview.errors import LongviewError
from longview.eval.ask import fingerprint
from longview.eval.collect import Row, collect, finish
from longview.eval.retrieval_points import points
from longview.eval.world import normalise
from longview.evidence.deletion import CLEARLY
from longview.index.answer import KnowledgeAnswer, answer_with
from longview.index.index import Index, read_picture, update_index
from longview.index.moments import Found
from longview.index.settings import FindOptions
from longview.messages import Part
from longview.models.similarity import DEMO, Similarity
from longview.world.knowledge import KINDS as THINGS
from longview.world.knowledge import alone, ask_name, draw_alone, draw_names, passage_text
from longview.world.naming import draw_text, facts_held, facts_named
from longview.world.needle import KINDS, NeedleVideo, Shot
from longview.world.questions import Question, ask_about_picture
from longview.world.render import write_needle_video, write_picture
from longview.world.scenes import Picture, draw_picture

MODELS = ("demo-owl3",)
SHOTS, SHOT_SECONDS = 30, 3
BASE = 24
"""Passages of a base, about as many kinds of things."""
PIECES = 4
NAMED_KINDS = [kind for kind in THINGS if len(alone(kind, held_out=True)) > 1]
"""Kinds of things with held-out scenes for a passage's picture and another photo."""
CONDITIONS = ("right", "wrong", "none", "mixed", "found")
CHECKED = ("wrong", "mixed", "found")
"""Conditions in which each piece is left out in turn."""
MAX_TOKENS = 32
DEPTHS = (1, 5, 20)
_CLAIM = re.compile(r"(,? |^)based on knowledge.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Amount:
    """How much is asked."""

    films: int = 12
    searches: int = 200
    questions: int = 100
    """About names in each condition, and half as many about films; a multiple of `BASE` uses bases fully."""
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """What is looked for: a text that fits one shot of all films alone, or a question that fits one of its film."""

    text: str
    film: int
    begin: float
    end: float
    question: Question | None = None


class FilmSet:
    """Films of held-out scenes that have nothing to do with each other, in files, and their index."""

    def __init__(self, folder: Path, amount: Amount, similarity: Similarity) -> None:
        self._folder, self._amount, self._similarity = folder, amount, similarity
        rng = random.Random(f"films {amount.seed}")
        self.scenes = [[draw_picture(rng, True) for _ in range(SHOTS)] for _ in range(amount.films)]
        self._held = [[facts_held(picture) for picture in film] for film in self.scenes]

    @cached_property
    def index(self) -> Index:
        films = self._folder / "films"
        films.mkdir(parents=True)
        for number, film in enumerate(self.scenes):
            video = NeedleVideo(tuple(Shot(picture, SHOT_SECONDS) for picture in film), 0, Question("", "", ""))
            write_needle_video(video, films / f"film-{number}.mp4", 1000 * number)
        update_index(self._folder / "index", [films], self._similarity, DEMO)
        return Index(self._folder / "index", self._similarity)

    def searches(self, count: int) -> list[Target]:
        """So many different ones."""
        rng = random.Random(f"searches {self._amount.seed}")
        found: dict[str, Target] = {}
        while len(found) < count:
            target = self._target(rng, lambda picture: (draw_text(rng, picture), None))
            found.setdefault(target.text, target)
        return list(found.values())

    def questions(self, count: int) -> list[Target]:
        rng = random.Random(f"film questions {self._amount.seed}")

        def ask(picture: Picture) -> tuple[str, Question]:
            question = ask_about_picture(rng, picture, rng.choice(KINDS))
            return question.text, question

        return [self._target(rng, ask) for _ in range(count)]

    def _target(self, rng: random.Random, text_of: Callable[[Picture], tuple[str, Question | None]]) -> Target:
        while True:
            film, shot = rng.randrange(len(self.scenes)), rng.randrange(SHOTS)
            try:
                text, question = text_of(self.scenes[film][shot])
            except LookupError:  # this picture does not allow such a question
                continue
            named = facts_named(text)
            among = self._held if question is None else [self._held[film]]
            if named and sum(named <= held for every in among for held in every) == 1:
                return Target(text, film, shot * SHOT_SECONDS, (shot + 1) * SHOT_SECONDS, question)

    def find(self, target: Target, top: int) -> list[Found]:
        under = None if target.question is None else str(self._folder / "films" / f"film-{target.film}.mp4")
        return self.index.find(target.text, options=FindOptions(top=top, under=under), kinds=("frame",))[0]


def is_moment(found: Found, target: Target) -> bool:
    """Whether the middle of what was found lies in the shot."""
    middle = ((found.begin or 0.0) + (found.end or 0.0)) / 2
    return Path(found.path).stem == f"film-{target.film}" and target.begin <= middle < target.end


class Base:
    """A knowledge base in files, and questions about it, each with a photo."""

    def __init__(self, folder: Path, seed: int, number: int, similarity: Similarity) -> None:
        self._folder, self._similarity = folder, similarity
        self.rng = random.Random(f"base {seed} {number}")
        self.named = draw_names(self.rng, BASE, NAMED_KINDS)
        self._pictures = [draw_alone(self.rng, named.kind, True, 2) for named in self.named]

    @cached_property
    def texts(self) -> list[str]:
        self._folder.mkdir(parents=True)
        lines, texts = [], []
        for number, named in enumerate(self.named):
            write_picture(self._pictures[number][0], self._folder / f"{number}.jpg", self.rng.randrange(1 << 30))
            texts.append(passage_text(self.rng, named, shown=True))
            lines.append(json.dumps({"image": f"{number}.jpg", "text": texts[-1]}) + "\n")
        (self._folder / "knowledge.jsonl").write_text("".join(lines), encoding="utf-8")
        return texts

    @cached_property
    def index(self) -> Index:
        assert self.texts
        folder = self._folder / "index"
        update_index(folder, [self._folder / "knowledge.jsonl"], self._similarity, DEMO)
        return Index(folder, self._similarity)

    def photo(self, number: int) -> Path:
        """Another picture of the same kind of thing as a passage's."""
        assert self.texts
        return write_picture(self._pictures[number][1], self._folder / f"photo-{number}.jpg", seed=number)

    def passage(self, number: int) -> Found:
        path = str(self._folder / "knowledge.jsonl")
        return Found(path, "passage", 0.0, text=self.texts[number], place=number)


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(engines: Mapping[str, Any], amount: Amount, done: Sequence[Row]) -> Iterator[Row]:
    """All that is to be searched and asked and was not yet, done."""
    known = {key_of(row) for row in done}
    similarity = Similarity.open(DEMO)
    with tempfile.TemporaryDirectory(prefix="longview-retrieval-") as folder:
        films = FilmSet(Path(folder) / "films", amount, similarity)
        yield from _searches(films, amount, known)
        bases = -(-amount.questions // BASE)
        for number in range(bases):
            base = Base(Path(folder) / f"base-{number}", amount.seed, number, similarity)
            count = min(BASE, amount.questions - number * BASE)
            yield from _names(base, engines, number, count, known)
        for name, engine in engines.items():
            yield from _film_questions(films, name, engine, amount, known)


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("part", "model", "condition", "number"))


def _searches(films: FilmSet, amount: Amount, known: set[tuple[Any, ...]]) -> Iterator[Row]:
    for number, target in enumerate(films.searches(amount.searches)):
        row = {"part": "search", "model": DEMO, "condition": "", "number": number}
        if key_of(row) not in known:
            found = films.find(target, max(DEPTHS))
            rank = next((rank for rank, each in enumerate(found, 1) if is_moment(each, target)), None)
            yield row | {"text": target.text, "rank": rank}


def _names(
    base: Base, engines: Mapping[str, Any], number: int, count: int, known: set[tuple[Any, ...]]
) -> Iterator[Row]:
    rng = random.Random(f"names {number}")
    for told, named in enumerate(base.named[:count]):
        question = ask_name(rng, named, shown=True)
        others = rng.sample([other for other in range(BASE) if other != told], PIECES - 1)
        mixed = rng.sample([told, *others], PIECES)
        shown = {"right": [told], "wrong": others[:1], "none": [], "mixed": mixed}
        for model, engine in engines.items():
            for condition in CONDITIONS:
                row = {"part": "name", "model": model, "condition": condition, "number": BASE * number + told}
                if key_of(row) in known:
                    continue
                photo = base.photo(told)
                if condition == "found":
                    options = FindOptions(top=max(DEPTHS))
                    ranked, _ = base.index.find(question.text, read_picture(photo), options)
                    places = [each.place for each in ranked]
                    row["rank"] = places.index(told) + 1 if told in places else None
                    pieces, places = ranked[:PIECES], places[:PIECES]
                else:
                    places = shown[condition]
                    pieces = [base.passage(place) for place in places]
                answered = _answer(engine, pieces, question.text, [Part("image", source=photo)], condition in CHECKED)
                told_in = places.index(told) + 1 if told in places else 0
                others_named = [base.named[place].name for place in places if place != told]
                text = said(answered.answer.text)
                yield row | _row(answered, named.name, told_in) | {"fooled": text in others_named}


def _film_questions(
    films: FilmSet, model: str, engine: Any, amount: Amount, known: set[tuple[Any, ...]]
) -> Iterator[Row]:
    for number, target in enumerate(films.questions(amount.questions // 2)):
        row = {"part": "film", "model": model, "condition": "found", "number": number}
        if key_of(row) not in known and target.question is not None:
            found = films.find(target, PIECES)
            told_in = next((rank for rank, each in enumerate(found, 1) if is_moment(each, target)), 0)
            answered = _answer(engine, found, target.text, [], True)
            yield row | _row(answered, target.question.answer, told_in)


def _answer(engine: Any, pieces: Sequence[Found], question: str, parts: Sequence[Part], check: bool) -> KnowledgeAnswer:
    return answer_with(engine, pieces, question, parts, check=check, max_tokens=MAX_TOKENS, temperature=0.0)


def said(answer: str) -> str:
    """An answer without what it says that it is based on."""
    return normalise(_CLAIM.sub("", answer))


def _row(answered: KnowledgeAnswer, truth: str, told_in: int) -> Row:
    changes = {piece.number: piece.change for piece in answered.pieces if piece.change is not None}
    return {
        "truth": truth,
        "answer": answered.answer.text,
        "right": said(answered.answer.text) == normalise(truth),
        "told_in": told_in,
        "claimed": [piece.number for piece in answered.pieces if piece.claimed],
        "changes": {str(number): round(change, 3) for number, change in changes.items()},
    }


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(engines: Mapping[str, Any], amount: Amount, file: Path, progress: Callable[[Row], None]) -> dict[str, Any]:
    """Search and ask all, write the numbers to a file, and return them; see the module.

    Args:
        engines: By the name that the page gives them.
        progress: Told what was done last, every few seconds.

    Raises:
        LongviewError: a model cannot be asked, or the journal beside the file is of another job.
    """
    weights = {name: fingerprint(engine.model) for name, engine in engines.items() if hasattr(engine, "model")}
    job = {"retrieval": 1, "models": list(engines), "weights": weights, **asdict(amount)}
    found = collect(file, job, lambda done: rows(engines, amount, done), progress)
    numbers = {**job, "clearly": CLEARLY, "date": time.strftime("%Y-%m-%d"), "points": points(found)}
    finish(file, numbers)
    return numbers


def main(arguments: Sequence[str]) -> None:
    usual = Amount()
    parser = argparse.ArgumentParser(prog="python -m longview.eval.retrieval", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--models", default=",".join(MODELS), help="NAME or NAME=FOLDER, …; default: %(default)s")
    for name in ("films", "searches", "questions", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name), help="default: %(default)s")
    given = parser.parse_args(arguments)
    if min(given.films, given.searches, given.questions - 1) < 1:
        parser.error("films and searches are whole numbers from 1 up, questions from 2 up")
    amount = Amount(given.films, given.searches, given.questions, given.seed)
    try:
        named = [model.partition("=") for model in given.models.split(",")]
        engines = {name: longview.load(folder or name) for name, _, folder in named}
        measure(engines, amount, given.file, lambda row: print(*key_of(row), file=sys.stderr, flush=True))
    except LongviewError as error:
        raise SystemExit(f"longview: {error}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
