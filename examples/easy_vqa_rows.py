"""The rows of easy-VQA, pictures of shapes with questions that nobody here made: for training, and for a test.

    pip install easy-vqa                          # MIT; 3 MB: 5,000 pictures of 64 × 64 pixels, 48,248 questions
    python examples/easy_vqa_rows.py FOLDER       # FOLDER/train-shape.jsonl, …, FOLDER/test.jsonl

Its halves are as published. Rows name the package's own pictures, by whole paths; none is copied. What an answer tells
is its category: a colour, a shape, or yes and no. The rows to learn from are a file of each category.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import easy_vqa

CATEGORIES = ("yes-or-no", "colour", "shape")


def category(answer: str) -> str:
    """What an answer tells."""
    if answer in ("yes", "no"):
        return "yes-or-no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"


def write(folder: Path) -> None:
    """Write both halves: rows that `longview train` reads, and rows that `longview eval --task messages` does."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {image: str(Path(path).resolve()) for image, path in easy_vqa.get_train_image_paths().items()}
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"train-{name}.jsonl").open("w")) for name in CATEGORIES}
        for question, answer, image in zip(*easy_vqa.get_train_questions(), strict=True):
            row = {"query": f"<image>\n{question}", "response": answer, "images": [pictures[image]]}
            files[category(answer)].write(json.dumps(row) + "\n")
    pictures = {image: str(Path(path).resolve()) for image, path in easy_vqa.get_test_image_paths().items()}
    with (folder / "test.jsonl").open("w") as file:
        for question, answer, image in zip(*easy_vqa.get_test_questions(), strict=True):
            row = {"question": question, "answer": answer, "image": pictures[image], "category": category(answer)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
