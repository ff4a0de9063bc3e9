"""Accuracy on the synthetic world: held-out scenes, written to real files, asked about through the engine.

Two controls show whether a model uses the pictures: each of them replaced by a blank one, or by another scene of the
same kind. A model that does falls to what can be guessed.
"""

from __future__ import annotations

import math
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from longview.errors import LongviewError
from longview.messages import Message, Part, ask
from longview.world.questions import (
    PICTURE_KINDS,
    Question,
    ask_about_clip,
    ask_about_picture,
    ask_about_pictures,
)
from longview.world.render import write_clip, write_picture
from longview.world.scenes import EVENTS, Clip, Picture, Scene, draw_clip, draw_picture

PictureInput = Literal["shown", "blank", "swapped"]
"""Which pictures a model is given: the true ones, blank ones, or those of other scenes."""
GROUPS: dict[str, int] = {
    "one picture": 1,
    "two pictures": 2,
    "four pictures": 4,
    "eight pictures": 8,
    "clip": 0,
    "small print": 1,
}
SET_KINDS = ("which image", "how many images", *(f"{kind} of one" for kind in PICTURE_KINDS))
Z = 1.96  # standard deviations of a 95 % interval
MAX_FOLDERS = 256  # questions whose files exist at a time: more than are answered concurrently


@dataclass(frozen=True)
class Case:
    """A question about some scenes, and the seed that they are rendered with."""

    group: str
    question: Question
    media: tuple[Scene, ...]
    seed: int


@dataclass
class Score:
    """How many questions of a kind were answered right."""

    group: str
    kind: str
    right: int = 0
    total: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # the true ones

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def chance(self) -> float:
        """What always giving the most frequent true answer would score."""
        return max(self.answers.values()) / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        n, p = self.total, self.accuracy
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def as_dict(self) -> dict[str, Any]:
        row = {key: value for key, value in asdict(self).items() if key != "answers"}
        numbers = {"accuracy": self.accuracy, "low": self.interval[0], "high": self.interval[1], "chance": self.chance}
        return row | {name: round(value, 4) for name, value in numbers.items()}


def draw_cases(seed: int, per_kind: int, groups: Iterable[str] = tuple(GROUPS)) -> list[Case]:
    """`per_kind` questions of each kind in each group, about held-out scenes; of each event of clips four times that.

    A group counts once, however often it is named.
    """
    cases = []
    for group in dict.fromkeys(groups):
        rng = random.Random(f"cases {seed} {group}")
        for kind in _kinds(group):
            # a clip's event allows four kinds of questions, which share its number; small print is of one kind
            for _ in range(per_kind * 4 if group in ("clip", "small print") else per_kind):
                question, media = _draw(rng, group, kind)
                cases.append(Case(group, question, media, rng.randrange(1 << 30)))
    return cases


def _kinds(group: str) -> Sequence[str]:
    if group == "small print":
        return ("reading",)
    return EVENTS if group == "clip" else tuple(PICTURE_KINDS) if group == "one picture" else SET_KINDS


def _draw(rng: random.Random, group: str, kind: str) -> tuple[Question, tuple[Scene, ...]]:
    while True:
        try:
            if group == "clip":
                clip = draw_clip(rng, held_out=True, event=kind)  # type: ignore[arg-type]
                return ask_about_clip(rng, clip), (clip,)
            signs = 0.8 if kind.startswith("reading") else 0.25
            prints = 1.0 if group == "small print" else 0.0
            pictures = tuple(
                draw_picture(rng, True, sign_share=signs, print_share=prints) for _ in range(GROUPS[group])
            )
            if len(pictures) == 1:
                return ask_about_picture(rng, pictures[0], kind), pictures
            return ask_about_pictures(rng, pictures, kind), pictures
        except LookupError:  # these scenes do not allow such a question; draw others
            continue


def evaluate(
    engine: Any,
    seed: int = 0,
    per_kind: int = 50,
    pictures: PictureInput = "shown",
    groups: Iterable[str] = tuple(GROUPS),
    progress: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """Ask an engine about held-out scenes in real JPEG and MP4 files.

    Args:
        engine: Anything with a `batch` of conversations that gives an object with `text` for each, in order.
        per_kind: Questions of each kind in each group; four times as many of each event of clips.
        pictures: "blank" replaces every picture by an empty one, "swapped" by another scene of the same kind.

    Returns:
        A score for each group and kind.
    """
    cases = draw_cases(seed, per_kind, groups)
    scores: dict[tuple[str, str], Score] = {}
    with tempfile.TemporaryDirectory(prefix="longview-world-") as folder:
        conversations = (
            case_messages(case, pictures, Path(folder) / str(number % MAX_FOLDERS)) for number, case in enumerate(cases)
        )
        for number, (case, answer) in enumerate(zip(cases, engine.batch(conversations), strict=True)):
            if isinstance(answer, LongviewError):
                raise answer
            key = (case.group, case.question.kind)
            score = scores.setdefault(key, Score(*key))
            score.total += 1
            score.right += normalise(answer.text) == normalise(case.question.answer)
            score.answers[case.question.answer] += 1
            if progress:
                progress(number + 1, len(cases))
    return list(scores.values())


def case_messages(case: Case, pictures: PictureInput, folder: Path, reuse: bool = False) -> list[Message]:
    """A case as messages, with its media written to a folder of their own.

    Args:
        reuse: Take the files that are in the folder, if there are any.
    """
    files = sorted(folder.iterdir()) if reuse and folder.exists() else []
    if files:
        kind: Literal["video", "image"] = "video" if isinstance(case.media[0], Clip) else "image"
        return [ask(case.question.text, *(Part(kind, source=file) for file in files))]
    media = case_media(case, pictures)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    write_media(media, unfinished, case.seed)
    unfinished.rename(folder)
    return case_messages(case, pictures, folder, reuse=True)


def case_media(case: Case, pictures: PictureInput) -> tuple[Scene, ...]:
    """The scenes that a case shows: its own, blank ones, or others of the same kinds."""
    if pictures == "blank":
        return tuple(blank(scene) for scene in case.media)
    if pictures == "swapped":
        rng = random.Random(f"swap {case.seed}")
        return tuple(_replacement(rng, scene) for scene in case.media)
    return case.media


def normalise(answer: str) -> str:
    """An answer without what does not count: case, surrounding spaces, a final full stop."""
    return answer.strip().rstrip(".").lower()


def write_media(scenes: Sequence[Scene], folder: Path, seed: int) -> list[Part]:
    """Write scenes as files: pictures as JPEG of any quality or PNG, clips as MP4."""
    rng = random.Random(f"files {seed}")
    parts = []
    for number, scene in enumerate(scenes):
        if isinstance(scene, Clip):
            parts.append(Part("video", source=write_clip(scene, folder / f"{number}.mp4", seed)))
            continue
        path = folder / f"{number}.{'png' if rng.random() < 0.2 else 'jpg'}"
        parts.append(Part("image", source=write_picture(scene, path, seed + number, quality=rng.randint(60, 95))))
    return parts


def blank(scene: Scene) -> Scene:
    """A scene of the same kind with nothing in it."""
    if isinstance(scene, Clip):
        return replace(scene, frames=tuple(Picture(()) for _ in scene.frames))
    return Picture(())


def _replacement(rng: random.Random, scene: Scene) -> Scene:
    if isinstance(scene, Clip):
        return draw_clip(rng, held_out=True, event=scene.event)
    small = scene.sign is not None and scene.sign.cell is not None
    return draw_picture(rng, held_out=True, sign_share=0.8 if scene.sign else 0.0, print_share=float(small))


def summarise(scores: Sequence[Score]) -> dict[str, Score]:
    """One score a group: those of its kinds, added up."""
    totals: dict[str, Score] = {}
    for score in scores:
        total = totals.setdefault(score.group, Score(score.group, "all"))
        total.right += score.right
        total.total += score.total
        total.answers += score.answers
    return totals
