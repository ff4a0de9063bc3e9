"""The rows of easy-VQA, pictures of shapes with questions that nobody here made: for training, and for a test.

    pip install easy-vqa                          # MIT; 3 MB: 5,000 pictures of 64 × 64 pixels, 48,248 questions
    python examples/easy_vqa_rows.py FOLDER       # FOLDER/train-any-order.jsonl, train-presence-first.jsonl, test.jsonl

Its halves are as published. Rows name the package's own pictures, by whole paths; none is copied. A row to learn from
is a conversation about one picture, which is encoded once for all of its questions; a row of the test is one question.
Four of five questions of yes and no are about what is not there; rows draw the others as often, if a picture has any.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

import easy_vqa

Turn = tuple[str, str]  # a question and its answer
ROWS = 4  # of each picture; they differ in questions and order


def category(answer: str) -> str:
    """What an answer tells."""
    if answer in ("yes", "no"):
        return "yes-or-no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"


def kind(question: str, answer: str) -> str:
    """The category of a question; of those of yes and no, whether what it names is in the picture."""
    if category(answer) != "yes-or-no":
        return category(answer)
    negated = re.search(r"\b(no|not)\b", question) is not None
    return "there" if (answer == "yes") != negated else "not-there"


def any_order(kinds: dict[str, list[Turn]], draw: random.Random) -> list[Turn]:
    """A question of each kind that a picture has, in random order."""
    asked = [draw.choice(questions) for questions in kinds.values()]
    draw.shuffle(asked)
    return asked


def presence_first(kinds: dict[str, list[Turn]], draw: random.Random) -> list[Turn]:
    """Three questions of yes and no, each by a throw about what is there or what is not, before any that names it.

    Every fourth row is the questions that name it alone.
    """
    named = [draw.choice(kinds[kind]) for kind in ("shape", "colour") if kind in kinds]
    draw.shuffle(named)
    told = [kind for kind in ("there", "not-there") if kind in kinds]
    if not told or (named and draw.random() < 0.25):
        return named
    return [draw.choice(kinds[draw.choice(told)]) for _ in range(3)] + named


def messages(asked: list[Turn]) -> list[dict[str, str]]:
    """The turns of a row, which shows its picture before the first."""
    turns = []
    for number, (question, answer) in enumerate(asked):
        turns.append({"role": "user", "content": question if number else f"<image>\n{question}"})
        turns.append({"role": "assistant", "content": answer})
    return turns


def write(folder: Path) -> None:
    """Write both halves: rows that `longview train` reads, and rows that `longview eval --task messages` does."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {image: str(Path(path).resolve()) for image, path in easy_vqa.get_train_image_paths().items()}
    known: dict[int, dict[str, list[Turn]]] = defaultdict(lambda: defaultdict(list))
    for question, answer, image in zip(*easy_vqa.get_train_questions(), strict=True):
        known[image][kind(question, answer)].append((question, answer))
    for name, asked in (("any-order", any_order), ("presence-first", presence_first)):
        draw = random.Random(1)
        with (folder / f"train-{name}.jsonl").open("w") as file:
            for image, kinds in known.items():
                for _ in range(ROWS):
                    row = {"messages": messages(asked(kinds, draw)), "images": [pictures[image]]}
                    file.write(json.dumps(row) + "\n")
    pictures = {image: str(Path(path).resolve()) for image, path in easy_vqa.get_test_image_paths().items()}
    with (folder / "test.jsonl").open("w") as file:
        for question, answer, image in zip(*easy_vqa.get_test_questions(), strict=True):
            row = {"question": question, "answer": answer, "image": pictures[image], "category": category(answer)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
