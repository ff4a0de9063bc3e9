"""MathVista on a handful of problems in its real file formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluations import measure, png

from longview.eval.tasks import Options, find_task


def write_mathvista(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.jpg").write_bytes(png())
    meta = {"task": "geometry problem solving", "category": "math-targeted-vqa", "source": "made"}
    base = {"image": "images/1.jpg", "unit": None, "choices": None, "precision": None, "question_type": "free_form",
            "metadata": meta}  # fmt: skip
    problems = {
        "1": {**base, "question": "How many?", "answer_type": "integer", "answer": "14"},
        "2": {**base, "question": "How long?", "answer_type": "float", "precision": 1, "answer": "1.2", "unit": "m"},
        "3": {**base, "question": "Which?", "answer_type": "text", "answer": "8/11", "question_type": "multi_choice",
              "choices": ["3/11", "8/11"]},
        "4": {**base, "question": "In which order?", "answer_type": "list", "answer": "[1, 2]"},
    }  # fmt: skip
    (folder / "testmini.json").write_text(json.dumps(problems))


MATHVISTA = [
    ({"1": "14", "2": "1.2", "3": "8/11", "4": "[1, 2]"}, 100, 0),
    (
        {"1": "The answer is 14.", "2": "It is 1 + 0.2. The answer is 1.2", "3": "(B)", "4": "The answer is [1,2]"},
        100,
        0,
    ),
    ({"1": "I count 14", "2": "about 1.21 m", "3": "8/1", "4": "[1, 2] I think"}, 100, 100),
    ({"1": "many", "2": "long", "3": "neither", "4": "1, 2"}, 0, 100),
]


@pytest.mark.parametrize(("said", "score", "unparsed"), MATHVISTA)
def test_mathvista_finds_answers_by_rules_and_says_where_it_is_not_sure(tmp_path, said, score, unparsed):
    write_mathvista(tmp_path / "MathVista")
    found = measure("mathvista", lambda item: said[item.id], tmp_path).numbers
    assert (found["score"], found["unparsed"]) == (score, unparsed)


def test_mathvista_is_asked_with_its_hints(tmp_path):
    write_mathvista(tmp_path)
    task = find_task("mathvista")
    asked = [task.protocols["mgm"].text(item) for item in task.items(Options(tmp_path))]
    assert asked[0].startswith("<image>\nHint: Please answer the question requiring an integer answer")
    assert asked[1].endswith("Question: How long? (Unit: m)")
    assert asked[2].endswith("Choices:\n(A) 3/11\n(B) 8/11")
