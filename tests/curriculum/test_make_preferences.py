"""Preferences about the world, made of a model's own errors."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from runs import data_stage

from longview.curriculum import make_preferences
from longview.errors import RequestError
from longview.train.data.datasets import Mixture
from longview.train.data.settings import DatasetSettings


class Always:
    """Gives one answer to everything."""

    def __init__(self, answer):
        self.text = answer

    def batch(self, conversations):
        return (
            self.text if isinstance(self.text, Exception) else SimpleNamespace(text=self.text) for _ in conversations
        )


def test_what_a_model_gets_wrong_is_what_it_shall_not_say(tmp_path):
    counts = make_preferences.write_preferences(Always("maybe"), tmp_path, 24)
    assert counts == {"questions": 24, "own errors": 24, "plausible": 0}
    datasets = [DatasetSettings(str(tmp_path / "pairs.jsonl"))]
    mixture = Mixture(data_stage(objective="preference", datasets=datasets), 1)
    assert mixture.epoch == 24
    kinds = set()
    for position in range(24):
        data, number = mixture.at(position)
        example = data[number]
        assert example.rejected.text == "maybe" != example.messages[-1].text
        kinds |= {part.type for part in example.media}
        assert all((tmp_path / part.source).exists() for part in example.media)
    assert kinds == {"image", "video"}


def test_an_answer_of_another_scene_stands_beside_some_right_ones(tmp_path):
    told = list(make_preferences.draw_questions(tmp_path, 60, seed=0))
    assert all(other != question.answer for question, _, other in told)
    assert all(other in question.choices for question, _, other in told if question.choices)
    engine = SimpleNamespace(
        batch=lambda asked: (SimpleNamespace(text=q.answer) for (q, _, _), _ in zip(told, asked, strict=True))
    )
    counts = make_preferences.write_preferences(engine, tmp_path, 60)
    assert counts["own errors"] == 0
    assert 1 <= counts["plausible"] <= 20
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == counts["plausible"]
    assert all(row["rejected_response"] != row["messages"][-1]["content"] for row in rows)


def test_a_question_that_fails_ends_it(tmp_path):
    with pytest.raises(RequestError, match="too long"):
        make_preferences.write_preferences(Always(RequestError("too long")), tmp_path, 2)
