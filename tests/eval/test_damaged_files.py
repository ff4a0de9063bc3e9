"""Every form of every task: sound, and damaged in the usual ways, which is one line that names the file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from benchmarks import SAMPLES, Sample
from evaluations import measure, oracle

from longview.errors import LongviewError, RequestError
from longview.eval.items import Item
from longview.eval.judge import Judge
from longview.eval.readers.files import Form, Found, find_form
from longview.eval.tasks import TASKS, Options, find_task

QUESTIONS, ANNOTATIONS = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
ASKED = {"questions": [{"question_id": 1, "question": "What?", "image_id": 1}]}
TURNED = {"list": ("a list", {"1": {}}), "object": ("an object", [{}]), "lines": ("an object", [1])}


def each(samples):
    """A test for each of these samples."""
    return pytest.mark.parametrize("sample", [pytest.param(one, id=f"{one.task}-{one.file}") for one in samples])


class Grader:
    """A judge's server that finds all answers right."""

    model, address = "grader", "http://127.0.0.1:1"

    def complete(self, messages, max_tokens):
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="1.0"))])


def refusal(sample: Sample, folder) -> str:
    """What is said of a damaged file: one line that names it."""
    with pytest.raises(LongviewError) as refused:
        find_task(sample.task).items(Options(folder))
    said = str(refused.value)
    assert "\n" not in said
    assert sample.file in said
    return said


@each(SAMPLES)
def test_a_sound_file_is_one_question_that_its_truth_answers(tmp_path, sample):
    sample.write(tmp_path)
    assert len(find_task(sample.task).unexpanded(Options(tmp_path))) == 1
    judge = Judge(Grader()) if sample.task == "mmvet" else None
    found = measure(sample.task, oracle, tmp_path, judge=judge)
    assert (found.numbers["failed"], found.numbers["unparsed"]) == (0, 0)
    assert {row["score"] for row in found.samples} == {1}


def test_there_is_a_sample_of_every_form(tmp_path):
    read = []
    for number, sample in enumerate(SAMPLES):
        folder = sample.write(tmp_path / str(number))
        read.append((sample.task, find_form(sample.task, find_task(sample.task).forms, folder)[0].about))
    assert set(read) == {(task.name, form.about) for task in TASKS.values() for form in task.forms}


@each(sample for sample in SAMPLES if sample.needed)
def test_a_missing_column_is_named_with_those_that_are_needed(tmp_path, sample):
    for number, column in enumerate(sample.needed):
        row = {name: value for name, value in sample.row.items() if name != column}
        said = refusal(sample, sample.write(tmp_path / str(number), row))
        assert f"has no column {column!r}" in said or f"{column!r} or " in said or f"or {column!r}" in said
        assert "needed are" in said or len(sample.needed) == 1


@each(sample for sample in SAMPLES if sample.wrong)
def test_a_value_of_the_wrong_kind_is_named(tmp_path, sample):
    for number, (column, value) in enumerate(sample.wrong.items()):
        said = refusal(sample, sample.write(tmp_path / str(number), {**sample.row, column: value}))
        assert "expected" in said


@each(sample for sample in SAMPLES if sample.kind in TURNED or sample.kind.startswith("under "))
def test_a_list_and_an_object_are_told_apart(tmp_path, sample):
    expected, data = TURNED.get(sample.kind, ("under", [{}]))
    said = refusal(sample, sample.write(tmp_path / "turned", data=json.dumps(data).encode()))
    assert expected in said or "line 1 has no column" in said
    said = refusal(sample, sample.write(tmp_path / "number", data=sample.encoded(3)))
    assert "is 3; expected an object" in said


@each(SAMPLES)
def test_a_file_that_is_not_utf8_is_refused(tmp_path, sample):
    data = sample.encoded(sample.row)
    broken = b"nothing" if sample.kind == "parquet" else data[:-4] + b"\xff\xfe" + data[-4:]
    said = refusal(sample, sample.write(tmp_path, data=broken))
    assert "no Parquet file" in said if sample.kind == "parquet" else "UTF-8" in said or "utf-8" in said


@pytest.mark.parametrize(
    ("task", "files", "said"),
    [
        ("okvqa", {QUESTIONS: ASKED, ANNOTATIONS: {"annotations": [{"question_id": 1}]}}, "no column 'answers'"),
        ("okvqa", {QUESTIONS: ASKED, ANNOTATIONS: {"annotations": [{"answers": []}]}}, "no column 'question_id'"),
        (
            "okvqa",
            {QUESTIONS: ASKED, ANNOTATIONS: {"annotations": [{"question_id": 1, "answers": [{"said": "red"}]}]}},
            "expected texts, or objects with an answer",
        ),
        (
            "lvbench",
            {"video_info.meta.jsonl": {"key": "k", "qa": [{"question": None, "uid": 1, "answer": "A"}]}},
            "line 1, question 1: 'question' is None; expected text",
        ),
        (
            "messages",
            {"m.jsonl": {"messages": [{"role": "user", "content": ["What?"]}], "answer": "x"}},
            "line 1, medium 1 is 'What?'; expected an object",
        ),
    ],
)
def test_what_is_deeper_in_a_file_is_named_too(tmp_path, task, files, said):
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    with pytest.raises(RequestError) as refused:
        find_task(task).items(Options(tmp_path))
    assert said in str(refused.value)
    assert any(name in str(refused.value) for name in files)


@pytest.mark.parametrize(
    "error", [TypeError("x"), KeyError("x"), AttributeError("x"), IndexError("x"), ValueError("x")]
)
def test_what_no_check_foresaw_is_one_line_too(tmp_path, error):
    def read(found):
        yield Item("1", "?", "A")
        raise error

    form, found = Form(read, ("a.json",), "the authors' JSON"), Found(tmp_path, ((tmp_path / "a.json",),))
    with pytest.raises(
        RequestError, match=r"a\.json, behind its first 1 question, .*; expected the authors' JSON; fetch"
    ):
        list(form.items(found))


def test_a_cell_that_lists_no_pictures_has_none(tmp_path):
    sample = next(each for each in SAMPLES if each.task == "mmstar")
    (item,) = find_task("mmstar").items(Options(sample.write(tmp_path, {**sample.row, "image": "[]"})))
    assert item.shown == ()
