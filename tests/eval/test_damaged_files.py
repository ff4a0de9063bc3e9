"""Files of benchmarks that lack what is needed: one line that names the file and what is missing, and no traceback."""

from __future__ import annotations

import json

import pytest

from longview.errors import RequestError
from longview.eval.tasks import Options, find_task

QUESTIONS, ANNOTATIONS = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
ASKED = {"questions": [{"question_id": 1, "question": "What?", "image_id": 1}]}
SAID = {"annotations": [{"question_id": 1, "answers": ["red"]}]}
PARTS = [{"role": "user", "content": ["What?"]}]


@pytest.mark.parametrize(
    ("task", "files", "said"),
    [
        (
            "okvqa",
            {QUESTIONS: ASKED, ANNOTATIONS: {"annotations": [{"question_id": 1}]}},
            "no 'answers' (it has question",
        ),
        (
            "okvqa",
            {QUESTIONS: ASKED, ANNOTATIONS: {"annotations": [{"answers": []}]}},
            "no 'question_id' (it has answers",
        ),
        ("okvqa", {QUESTIONS: {"questions": [{"question_id": 1}]}, ANNOTATIONS: SAID}, "no 'image_id'"),
        (
            "okvqa",
            {QUESTIONS: {"questions": [1]}, ANNOTATIONS: SAID},
            "the list under 'questions' holds what is no object",
        ),
        (
            "okvqa",
            {QUESTIONS: {"questions": [ASKED["questions"][0] | {"image_id": "x"}]}, ANNOTATIONS: SAID},
            "question 1: image_id is 'x'; expected a whole number",
        ),
        (
            "textvqa",
            {"TextVQA_0.5.1_val.json": {"data": [{"question_id": 1}]}, "images/a": ""},
            "no 'image_id' (it has",
        ),
        ("gqa", {"testdev_balanced_questions.json": {"1": {"question": "What?"}}}, "no 'answer' (it has question)"),
        ("mmvet", {"mm-vet.json": {"1": {"question": "What?"}}, "images/a": ""}, "no 'imagename' (it has question)"),
        ("mathvista", {"testmini.json": {"1": {"question": "What?"}}, "images/a": ""}, "no 'image' (it has question)"),
        (
            "pope",
            {"coco_pope_random.json": {"image": "a", "text": "?", "label": "yes"}, "val2014/a": ""},
            "no 'question_id'",
        ),
        (
            "mantis",
            {"multi_image_out_domain.json": [{"metadata": {"dataset": "Mantis"}}], "Split1/a": ""},
            "no 'image' (",
        ),
        ("messages", {"m.jsonl": {"messages": PARTS, "answer": "x"}}, "row 1, medium 1 is 'What?'; expected an object"),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path, task, files, said):
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(data))
    with pytest.raises(RequestError) as refused:
        find_task(task).items(Options(tmp_path))
    assert said in str(refused.value)
    assert any(name in str(refused.value) for name in files)
