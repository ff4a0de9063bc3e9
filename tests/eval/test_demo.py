"""The shipped model: it answers about scenes it never saw, and cannot without looking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import longview
from longview.eval.card import NUMBERS, card
from longview.world.render import write_picture
from longview.world.scenes import Picture, Sign, Thing

FOLDER = Path(longview.__file__).parent / "demo" / "owl3"


@pytest.fixture(scope="module")
def engine():
    return longview.load("demo")


def test_the_weights_fit_into_ten_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 10e6


def test_the_placeholder_is_five_ordinary_tokens(engine):
    tokens = engine.processor.tokenizer.convert_ids_to_tokens(engine.processor.tokenizer("<|image|>")["input_ids"])
    assert tokens == ["<", "|", "image", "|", ">"]


def test_the_card_says_what_was_measured():
    assert (FOLDER / "README.md").read_text() == card(json.loads((FOLDER / NUMBERS).read_text()))


def test_it_answers_a_persons_questions_about_a_picture(engine, tmp_path):
    things = Thing("red", "circle", "large", 0.16, 0.16), Thing("blue", "star", "small", 0.5, 0.5)
    file = write_picture(Picture(things, Sign("stop", 2)), tmp_path / "picture.jpg", seed=4)
    for question, answer in {
        "What colour is the circle?": "red",
        "What shape is the blue thing?": "star",
        "Where is the star?": "centre",
        "What does the sign say?": "stop",
        "Is there a green square?": "no",
    }.items():
        assert engine.answer([longview.ask(question, longview.image(file))]).text == answer
