"""Preferences from a model's own errors: true answers about the world, each beside a wrong one of the model.

    python -m longview.curriculum.make_preferences MODEL FOLDER QUESTIONS

The scenes are not held out. FOLDER/pairs.jsonl is data for `objective: preference`; the pictures and clips lie beside
it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longview.errors import LongviewError
from longview.messages import Message, Part, ask
from longview.train.preferences.judges import is_true_answer
from longview.train.preferences.pairs import pair_row
from longview.world.questions import Question, ask_about, ask_about_picture
from longview.world.render import write_clip, write_picture
from longview.world.scenes import draw_clip, draw_picture

MEDIA = (1, 1, 1, 2, 2, 4, 4, 8, 0)
"""Numbers of pictures of a question, equally likely; 0 is a clip."""
PLAUSIBLE = 0.15
"""Share of the questions answered right that are kept, beside an answer that another scene would have had."""


def draw_questions(folder: Path, questions: int, seed: int) -> Iterator[tuple[Question, list[Part], str]]:
    """Questions, their media as files in a folder, and an answer to a question of the same kind about other scenes."""
    rng = random.Random(f"rivals {seed}")  # this text decides which questions are drawn
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(questions):
        count = rng.choice(MEDIA)
        pictures = [draw_picture(rng, sign_share=0.35) for _ in range(count)]
        if pictures:
            question = ask_about(rng, *pictures)
            files = [write_picture(p, folder / f"{number}-{n}.jpg", number) for n, p in enumerate(pictures)]
            parts = [Part("image", source=file) for file in files]
        else:
            question = ask_about(rng, clip := draw_clip(rng))
            parts = [Part("video", source=write_clip(clip, folder / f"{number}.mp4", number))]
        yield question, parts, _wrong_answer(rng, question)


def _wrong_answer(rng: random.Random, question: Question) -> str:
    """A wrong answer that makes sense."""
    wrong = [choice for choice in question.choices if choice != question.answer]
    while not wrong:
        about = ask_about_picture(rng, draw_picture(rng, sign_share=0.35))
        if about.kind == question.kind.removesuffix(" of one") and about.answer != question.answer:
            wrong.append(about.answer)
        elif question.kind in ("what happens", "what moves", "order"):
            about = ask_about(rng, draw_clip(rng))
            wrong += [about.answer] if about.kind == question.kind and about.answer != question.answer else []
    return rng.choice(wrong)


def write_preferences(engine: Any, folder: Path, questions: int, seed: int = 0) -> dict[str, int]:
    """Ask, and write pairs.jsonl; returns the numbers of questions, and of pairs of each sort."""
    rng = random.Random(f"kept {seed}")
    drawn = list(draw_questions(folder, questions, seed))
    counts = {"questions": questions, "own errors": 0, "plausible": 0}
    asked = ([ask(question.text, *parts)] for question, parts, _ in drawn)
    rows = []
    for (question, parts, other), answer in zip(drawn, engine.batch(asked), strict=True):
        if isinstance(answer, LongviewError):
            raise answer
        wrong = not is_true_answer(answer.text, question.answer)
        if not wrong and rng.random() >= PLAUSIBLE:
            continue
        counts["own errors" if wrong else "plausible"] += 1
        messages = [Message.of("user", *parts, question.text), Message.of("assistant", question.answer)]
        rows.append(pair_row(messages, answer.text.strip() if wrong else other, folder / "pairs.jsonl"))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    return counts


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 3 or not arguments[2].isdigit():
        raise SystemExit(__doc__)
    from longview.engine import load

    counts = write_preferences(load(arguments[0]), Path(arguments[1]), int(arguments[2]))
    print(", ".join(f"{count:,} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
