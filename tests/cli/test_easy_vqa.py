"""The walk of docs/easy-vqa.md, command by command, with a package of the same form and a few pictures."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from longview import shipped
from longview.train.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "easy-vqa.md"
COLOURS = ("red", "blue", "green", "teal")
SHAPES = ("circle", "rectangle")


def shown(verb: str) -> list[list[str]]:
    """The words of the page's commands of a verb, behind `longview`."""
    text = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"longview {verb} ")]
    assert found, verb
    return found


def draw(folder: Path) -> dict[int, str]:
    """A picture of 64 pixels for each colour and shape."""
    paths = {}
    for number, colour in enumerate(COLOURS * len(SHAPES)):
        picture = Image.new("RGB", (64, 64), "white")
        drawing = ImageDraw.Draw(picture)
        (drawing.ellipse if number < len(COLOURS) else drawing.rectangle)((20, 20, 40, 40), fill=colour)
        paths[number] = str(folder / f"{number}.png")
        picture.save(paths[number])
    return paths


@pytest.fixture
def rows(tmp_path, monkeypatch) -> Path:
    """The rows that the example writes of a package of easy-VQA's form, in easy-vqa/ of a folder that is entered."""
    paths = draw(tmp_path)
    questions, answers, images = [], [], []
    for number in paths:
        colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS)]
        for question, answer in (
            ("what color is the shape?", colour),
            ("what shape is present?", shape),
            ("is there a red shape?", "yes" if colour == "red" else "no"),
        ):
            questions.append(question)
            answers.append(answer)
            images.append(number)
    half = (questions, answers, images)
    package = types.ModuleType("easy_vqa")
    for name in ("train", "test"):
        setattr(package, f"get_{name}_questions", lambda: half)
        setattr(package, f"get_{name}_image_paths", lambda: paths)
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    monkeypatch.setattr(sys, "argv", ["easy_vqa_rows.py", str(tmp_path / "easy-vqa")])
    runpy.run_path(str(ROOT / "examples" / "easy_vqa_rows.py"), run_name="__main__")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "easy-vqa"


def answers(row: dict) -> list[str]:
    assert [turn["content"].count("<image>") for turn in row["messages"]] == [1] + [0] * (len(row["messages"]) - 1)
    return [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_row_in_any_order_asks_a_question_of_each_kind_and_one_of_the_test_asks_one(rows):
    learned, asked = read(rows / "train-any-order.jsonl"), read(rows / "test.jsonl")
    assert (len(learned), len(asked)) == (4 * 8, 3 * 8)
    assert {row["category"] for row in asked} == {"shape", "colour", "yes-or-no"}
    for row in learned:
        kinds = ["shape" if answer in SHAPES else "colour" if answer in COLOURS else "yn" for answer in answers(row)]
        assert sorted(kinds) == ["colour", "shape", "yn"]
    assert {answers(row)[0] for row in learned} > set(SHAPES)


def test_nothing_names_a_thing_before_it_is_asked_whether_it_is_there(rows):
    learned = [answers(row) for row in read(rows / "train-presence-first.jsonl")]
    asking = [row for row in learned if len(row) > 2]
    assert 0 < len(asking) < len(learned) == 4 * 8
    for row in asking:
        assert {*row[:3]} <= {"yes", "no"}
        assert not {*row[3:]} & {"yes", "no"}


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("is there a red shape?", "yes", "there"),
        ("is there not a red shape?", "no", "there"),
        ("is no red shape present?", "yes", "not-there"),
        ("does the image contain a circle?", "no", "not-there"),
        ("what shape is present?", "circle", "shape"),
        ("what color is the shape?", "brown", "colour"),
    ],
)
def test_what_is_there_is_told_from_what_is_not_where_questions_are_negated(rows, question, answer, kind):
    assert runpy.run_path(str(ROOT / "examples" / "easy_vqa_rows.py"))["kind"](question, answer) == kind


@pytest.mark.parametrize("words", shown("train"), ids=["full", "lora"])
def test_the_recipe_says_what_it_would_take(longview, rows, words):
    told = longview(*words, "--dry-run")
    assert told.code == 0, told.err
    assert re.search(r"pictures a sample: 5, 5 at most, in \d+ samples", told.out)  # 2 × 2 crops and the whole
    assert "supervised" in told.out
    assert "hint" not in told.out


def test_the_page_shows_the_recipe_in_full_and_by_adapters():
    full, adapters = (
        load_recipe(shipped.find_recipe(words[1]), [word for word in words if "=" in word]) for words in shown("train")
    )
    assert full.model.adapter is None
    assert adapters.model.adapter is not None
    assert full.model.processor == adapters.model.processor == {"cut_enable": True}


@pytest.mark.parametrize("number", [0, 1], ids=["full", "lora"])
def test_what_was_trained_cuts_pictures_as_it_did_in_training(longview, rows, number):
    words = shown("train")[number]
    keys = ("steps=2", "warmup=1", "data.batch=2", "data.micro_batch=2")
    small = [f"stages.{stage}.{key}" for stage in (0, 1) for key in keys]
    ran = longview(*words, *small, "--answers", 0)
    assert ran.code == 0, ran.err
    evaluation = [words for words in shown("eval") if "--task" in words][1 + number]
    measured = longview(*evaluation, "--limit", 2, "--json")
    assert measured.code == 0, measured.err
    (kept,) = Path(evaluation[evaluation.index("--output") + 1]).rglob("samples.jsonl")
    samples = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(samples) == 2
    assert all(sample["tokens"] > 45 for sample in samples)  # about 30 without crops
