"""Benchmarks in miniature, in their real file formats, and models whose answers are scripted."""

from __future__ import annotations

import base64
import csv
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import LongviewError
from longview.eval.ask import Reply
from longview.eval.items import Item, Protocol
from longview.eval.results import Result
from longview.eval.run import Plan, run
from longview.eval.tasks import Options, find_task
from longview.messages import Message

COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")


def png(colour: str = "red", size: tuple[int, int] = (32, 24)) -> bytes:
    """A picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def base64_png(colour: str = "red") -> str:
    return base64.b64encode(png(colour)).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A TSV as pandas writes it."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def mmbench_rows(count: int, chinese: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """Questions as MMBench's dev TSV has them: four options, some without D, a hint for some."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        options = rng.sample(COLOURS, 4 if number % 3 else 3)
        answer = rng.randrange(len(options))
        row = {
            "index": 240 + number,
            "question": "这张图片是什么颜色？" if chinese else f'Which colour is "picture {number}"?\nLook closely.',
            "hint": "A plain picture." if number % 2 else "nan",
            **dict(zip("ABCD", [*options, "nan"], strict=False)),
            "answer": "ABCD"[answer],
            "category": ("attribute_recognition", "color")[number % 2],
            "image": base64_png(options[answer]),
            "source": "made by a test",
            "l2-category": "finegrained_perception",
            "comment": "nan",
            "split": "dev",
        }
        rows.append(row)
    return rows


def rotated_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same with every rotation in rows of their own, whose picture is that of the first."""
    found = [dict(row) for row in rows]
    for row in rows:
        options = [row[letter] for letter in "ABCD" if row[letter] != "nan"]
        for shift in range(1, len(options)):
            turned = options[shift:] + options[:shift]
            truth = "ABCD"[turned.index(row[row["answer"]])]
            index = row["index"] + 1_000_000 * shift
            names = dict(zip("ABCD", [*turned, "nan"], strict=False))
            found.append({**row, "index": index, **names, "answer": truth, "image": row["index"]})
    return found


class Scripted:
    """A model whose answers are a function of the item; an error that it returns or raises is the item's."""

    name, family, where, partitions = "scripted", None, "test", False

    def __init__(self, answer: Callable[[Item], Any], name: str = "scripted") -> None:
        self.answer, self.name = answer, name
        self.asked: list[str] = []
        self.messages: list[Message] = []

    def answers(self, items: Sequence[Item], protocol: Protocol) -> Iterator[Reply | LongviewError]:
        for item in items:
            self.asked.append(item.id)
            try:
                self.messages.append(Message.of("user", *protocol.parts(item)))
                yield Reply(self.answer(item))
            except LongviewError as error:
                yield error

    choices = answers


def oracle(item: Item) -> str:
    """The truth."""
    return str(item.answer if isinstance(item.answer, (str, int, float)) else item.answer[0])


def measure(
    task: str,
    answer: Any,
    data: Path | None = None,
    output: Path | None = None,
    **more: Any,
) -> Result:
    """A task run on a model, or on a function of items that answers in its place."""
    asker = answer if hasattr(answer, "answers") else Scripted(answer)
    options = more.pop("options", Options(data))
    found = find_task(task)
    return run(Plan(found, found.items(options), asker, options, **more), output)
