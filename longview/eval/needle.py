"""Needle in a haystack: how often frames chosen by MDP3 show the needle of a video, and how many answers that saves.

python -m longview.eval.needle measure FOLDER [RUN]   evaluate a SigLIP checkpoint, keep the numbers beside it
python -m longview.eval.needle write FOLDER           make README.md from those numbers
python -m longview.eval.needle queries FOLDER         how often the published relevance query chooses other frames

Each video is an MP4 file of 40 held-out scenes; what the question names is visible for 2 of its 242 seconds. The demo
model is asked about it twice, with the same number of frames chosen by MDP3 and uniformly.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longview
from longview.eval.card import training_facts
from longview.eval.world import Score, normalise
from longview.media import Candidates, RelevanceQuery, open_medium
from longview.media.medium import Frame, FrameTransform
from longview.models.similarity import Similarity
from longview.requests import CANDIDATES, MediaOptions
from longview.world.naming import facts_held, facts_named
from longview.world.needle import KINDS, NeedleVideo, draw_needle_video
from longview.world.questions import ask_about_picture
from longview.world.render import render, write_needle_video
from longview.world.scenes import Picture, draw_picture

NUMBERS = "evaluation.json"
COMMAND = "longview train recipes/demo/siglip.yaml"
SELECTS = ("mdp3", "uniform")
FRAMES = 8
PICTURES = 40  # of which a question fits one


@dataclass(frozen=True)
class Result:
    """The answer to a video's question, with frames chosen by one sampler."""

    select: str
    kind: str
    needle_shown: bool  # by a chosen frame
    right: bool
    truth: str


def evaluate_needles(
    engine: Any, seed: int, count: int, frames: int = FRAMES, progress: Callable[[int, int], None] | None = None
) -> list[Result]:
    """Ask an engine about `count` videos, with frames chosen by each of `SELECTS`."""
    rng = random.Random(f"needles {seed}")
    results = []
    with tempfile.TemporaryDirectory(prefix="longview-needle-") as folder:
        for number in range(count):
            video = draw_needle_video(rng, KINDS[number % len(KINDS)])
            path = write_needle_video(video, Path(folder) / "film.mp4", rng.randrange(1 << 30))
            for select in SELECTS:
                answer = engine.answer(
                    [longview.ask(video.question.text, longview.video(path))],
                    media={"select": select, "frames": frames},
                    max_tokens=24,
                )
                right = normalise(answer.text) == normalise(video.question.answer)
                shown = shows_needle(video, [frame.seconds for frame in answer.receipt.frames])
                results.append(Result(select, video.question.kind, shown, right, video.question.answer))
            if progress:
                progress(number + 1, count)
    return results


def compare_queries(
    similarity: Similarity, seed: int, count: int, candidates: int = CANDIDATES, frames: int = FRAMES
) -> dict[str, float]:
    """Frames chosen among candidates by the question and by the published relevance query, of `count` videos.

    Returns the share of videos with another choice, the frames in common, and the share with the needle among them.
    """
    rng = random.Random(f"needles {seed}")
    found = {"other choice": 0.0, "frames in common": 0.0, "needle by question": 0.0, "needle by published": 0.0}
    with tempfile.TemporaryDirectory(prefix="longview-needle-") as folder:
        for number in range(count):
            video = draw_needle_video(rng, KINDS[number % len(KINDS)])
            part = longview.video(write_needle_video(video, Path(folder) / "film.mp4", rng.randrange(1 << 30)))
            chosen = []
            for published in (False, True):
                query = RelevanceQuery(video.question.text, similarity, published)
                options = MediaOptions(select="mdp3", frames=frames, candidates=candidates)
                medium = open_medium(part, options, relevance_query=query)
                chosen.append({frame.index for frame in medium.frames})
                shown = shows_needle(video, [frame.seconds for frame in medium.frames])
                found[f"needle by {'published' if published else 'question'}"] += shown
            found["other choice"] += chosen[0] != chosen[1]
            found["frames in common"] += len(chosen[0] & chosen[1]) / frames
            _report(number + 1, count)
    return {name: value / count for name, value in found.items()}


def shows_needle(video: NeedleVideo, seconds: Sequence[float | None]) -> bool:
    """Whether one of these times lies in the needle."""
    return any(moment is not None and video.begin <= moment < video.end for moment in seconds)


def evaluate_retrieval(similarity: Similarity, seed: int, count: int) -> Score:
    """Retrieval at 1: how often the picture most similar to a question is the one of `PICTURES` that it fits."""
    rng = random.Random(f"pictures {seed}")
    score = Score("pictures", "nearest")
    for number in range(count):
        pictures, wanted, question = _draw_set(rng)
        images = [render(picture, rng.randrange(1 << 30)) for picture in pictures]

        def read(indices: Sequence[int], transform: FrameTransform, images: Sequence[Any] = images) -> Iterator[Frame]:
            return (Frame(transform(images[index]), index, None) for index in indices)

        candidates = Candidates("pictures", f"{seed} {number}", list(range(PICTURES)), read)
        frames, text = similarity(candidates, question)
        score.total += 1
        score.right += int((frames @ text[0]).argmax()) == wanted
        score.answers[str(wanted)] += 1
    return score


def _draw_set(rng: random.Random) -> tuple[list[Picture], int, str]:
    """Held-out pictures, the number of one of them, and a question that fits it alone."""
    while True:
        pictures = [draw_picture(rng, held_out=True, max_things=3, sign_share=0.1) for _ in range(PICTURES)]
        for wanted in rng.sample(range(PICTURES), PICTURES):
            question = ask_about_picture(rng, pictures[wanted]).text
            named = facts_named(question)
            if named and [n for n, picture in enumerate(pictures) if named <= facts_held(picture)] == [wanted]:
                return pictures, wanted, question


def measure(folder: Path, run: Path | None = None, count: int = 120, seed: int = 0) -> dict[str, Any]:
    """The numbers of the model card; also written beside the weights."""
    engine = longview.load("demo", similarity=folder)
    results = evaluate_needles(engine, seed, count, progress=_report)
    found = evaluate_retrieval(engine.similarity, seed, count)
    kept = json.loads((folder / NUMBERS).read_text()) if (folder / NUMBERS).exists() else {}
    numbers = {
        "model": {
            "parameters": sum(parameter.numel() for parameter in engine.similarity.model.parameters()),
            "bytes": (folder / "model.safetensors").stat().st_size,
        },
        "training": training_facts([run]) if run else kept["training"],
        "seed": seed,
        "frames": FRAMES,
        "found": found.as_dict(),
        "needle": {select: summary([row for row in results if row.select == select]) for select in SELECTS},
    }
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n")
    return numbers


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Needles shown and questions answered right, in all and by kind."""
    return {
        "shown": _count(results, "shown", lambda row: row.needle_shown),
        "answered": _count(results, "answered", lambda row: row.right),
        "kinds": {
            kind: _count([row for row in results if row.kind == kind], kind, lambda row: row.right) for kind in KINDS
        },
    }


def _count(results: Sequence[Result], name: str, counts: Callable[[Result], bool]) -> dict[str, Any]:
    score = Score("film", name, right=sum(map(counts, results)), total=len(results))
    score.answers.update(row.truth for row in results)
    return score.as_dict()


def card(numbers: Mapping[str, Any]) -> str:
    """The model card, Markdown."""
    training, needle = numbers["training"], numbers["needle"]
    minutes = sum(stage["minutes"] for stage in training["stages"].values())
    stages = ", ".join(f"{name} {stage['steps']:,}" for name, stage in training["stages"].items())
    found = numbers["found"]
    rows = [
        f"| {name} | {_cell(needle['mdp3'][key])} | {_cell(needle['uniform'][key])} |"
        for name, key in (("needle among the frames", "shown"), ("question answered", "answered"))
    ]
    kinds = [
        f"| {kind} | {_cell(needle['mdp3']['kinds'][kind])} | {_cell(needle['uniform']['kinds'][kind])} "
        f"| {needle['mdp3']['kinds'][kind]['chance']:.0%} |"
        for kind in KINDS
    ]
    return _CARD.format(
        millions=numbers["model"]["parameters"] / 1e6,
        megabytes=numbers["model"]["bytes"] / 1e6,
        films=needle["mdp3"]["shown"]["total"],
        frames=numbers["frames"],
        rows="\n".join(rows),
        kinds="\n".join(kinds),
        found=f"{found['accuracy']:.1%} ({found['low']:.1%} – {found['high']:.1%}) of {found['total']}",
        pictures=PICTURES,
        chance=1 / PICTURES,
        command=COMMAND,
        minutes=minutes,
        stages=stages,
        painted=training["pictures"],
        notes=training["notes"],
    )


def _cell(score: Mapping[str, Any]) -> str:
    return f"**{score['accuracy']:.1%}** ({score['low']:.1%} – {score['high']:.1%})"


def _report(done: int, total: int) -> None:
    if done % 20 == 0 or done == total:
        print(f"videos: {done}/{total}", file=sys.stderr)


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---

# The embedded towers: a tiny SigLIP that chooses frames for the demo models

A SigLIP (transformers' `SiglipModel`) with {millions:.2f} million parameters, {megabytes:.1f} MB in bf16. It scores
pictures of the demo models' small world against a question, and `--select mdp3` chooses frames by it when the model is
one of the demos. It knows nothing of photographs; for them name a released checkpoint with `--similarity`.

## A needle in a film

{films} films of four minutes, each a real MP4 file of 40 held-out scenes. What the question names is visible for
two seconds, 0.8 % of the film. `longview.load("demo")` is asked with {frames} frames, chosen by MDP3 among one a second
and uniformly (95 % intervals in brackets).

| | MDP3 | uniform |
|---|---|---|
{rows}

Answers by kind of question, beside always giving the most frequent one:

| kind | MDP3 | uniform | chance |
|---|---|---|---|
{kinds}

The demo model was trained on films of eight unrelated scenes, none of them held out.

Nearest of {pictures} held-out pictures to a question that fits one of them: {found} questions; by chance {chance:.1%}.

All of it again: `python -m longview.eval.needle measure FOLDER`.

## Training

One command, from random weights: `{command}`.
{minutes:.0f} minutes on one CPU core; steps: {stages}. The {painted:,} pictures are from `longview/world`; none is
held out. {notes}

## Limits

A text names colours, shapes, sizes and signs; places and numbers of things are not understood. Texts of more than 16
words are split.
"""


def main(arguments: Sequence[str]) -> None:
    if len(arguments) == 2 and arguments[0] == "queries":
        similarity = Similarity.open(arguments[1])
        found = {count: compare_queries(similarity, 0, 24, count) for count in (32, CANDIDATES)}
        print(json.dumps(found, indent=1))
        return
    if len(arguments) in (2, 3) and arguments[0] == "measure":
        measure(Path(arguments[1]), Path(arguments[2]) if len(arguments) == 3 else None)
    elif len(arguments) != 2 or arguments[0] != "write":
        raise SystemExit(__doc__)
    folder = Path(arguments[1])
    (folder / "README.md").write_text(card(json.loads((folder / NUMBERS).read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
