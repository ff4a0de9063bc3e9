"""The embedded SigLIP: MDP3 shows needles with it, and its card is that of the measured numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

import longview
from longview.eval.needle import (
    NUMBERS,
    PICTURES,
    card,
    compare_queries,
    evaluate_needles,
    evaluate_retrieval,
    shows_needle,
)
from longview.models.similarity import Similarity
from longview.world.needle import draw_needle_video

FOLDER = Path(longview.__file__).parent / "demo" / "siglip"


def test_the_towers_take_a_few_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3e6


def test_the_card_says_what_was_measured():
    assert (FOLDER / "README.md").read_text() == card(json.loads((FOLDER / NUMBERS).read_text()))


def test_a_question_retrieves_the_picture_it_fits():
    found = evaluate_retrieval(Similarity.open("demo-siglip"), seed=1, count=30)
    assert found.total == 30
    assert found.accuracy > 0.5  # by chance 1 in PICTURES
    assert PICTURES == 40


def test_mdp3_shows_the_needle_where_uniform_frames_miss_it():
    results = evaluate_needles(longview.load("demo"), seed=1, count=6)
    hits = {select: sum(row.needle_shown for row in results if row.select == select) for select in ("mdp3", "uniform")}
    assert len(results) == 12
    assert hits["mdp3"] >= 5
    assert hits["uniform"] <= 2


def test_the_published_query_is_compared_with_the_question():
    found = compare_queries(Similarity.open("demo-siglip"), seed=0, count=2, candidates=24)
    assert found["other choice"] in (0, 0.5, 1)
    assert 0 < found["frames in common"] <= 1
    assert (found["other choice"] == 0) == (found["frames in common"] == 1)


def test_a_needle_is_shown_by_a_frame_within_its_seconds():
    video = draw_needle_video(random.Random(0), "colour")
    assert shows_needle(video, [0.0, video.begin + 0.5])
    assert shows_needle(video, [float(video.begin)])
    assert not shows_needle(video, [video.begin - 0.5, float(video.end), None])


def test_the_numbers_are_those_of_more_than_a_hundred_videos():
    numbers = json.loads((FOLDER / NUMBERS).read_text())
    mdp3, uniform = (numbers["needle"][select] for select in ("mdp3", "uniform"))
    assert mdp3["shown"]["total"] == uniform["shown"]["total"] >= 100
    assert mdp3["shown"]["low"] > uniform["shown"]["high"]
    assert mdp3["answered"]["low"] > uniform["answered"]["high"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_the_folder_is_transformers_own(name):
    assert (FOLDER / name).exists()
