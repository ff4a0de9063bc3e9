"""The letter of a truth, which files give as a number, a letter or words."""

from __future__ import annotations

import json

import pytest
from benchmarks import SAMPLES

from longview.errors import RequestError
from longview.eval.readers import truths
from longview.eval.tasks import Options, find_task

DIGITS = [
    ("ai2d", "data/test-0.parquet"),
    ("nextqa", "mc.csv"),
    ("longvideobench", "lvb_val.json"),
    ("longvideobench", "LongVideoBench.tsv"),
    ("mvbench", "json/action_count.json"),
    ("mlvu", "json/4_count.json"),
]


@pytest.mark.parametrize(("task", "file"), DIGITS)
def test_a_number_is_an_index_or_an_options_words_as_the_benchmark_means_it(tmp_path, task, file):
    sample = next(each for each in SAMPLES if (each.task, each.file) == (task, file))
    (item,) = find_task(task).items(Options(sample.write(tmp_path)))
    assert item.answer == "C"
    assert all(option.isdigit() for option in item.options)


def test_the_letter_of_videomme_is_a_letter_where_options_are_letters(tmp_path):
    row = {"videoID": "v", "question_id": "1", "question": "?", "options": ["A. C", "B. A", "C. B"], "answer": "B"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "v.mp4").write_bytes(b"x")
    (tmp_path / "videomme.json").write_text(json.dumps([row]))
    (item,) = find_task("videomme").items(Options(tmp_path))
    assert (item.answer, item.options) == ("B", ("C", "A", "B"))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("b", "B"), ("(C)", "C"), ("two", "B"), (2, "C"), ("0", "A"), ("1", "B"), ("3", None), ("D", None), ("", None)],
)
def test_a_users_own_truth_may_be_words_a_letter_or_a_number(answer, letter):
    options = ("one", "two", "three")
    if letter is not None:
        assert truths.guessed("row 1", answer, options) == letter
        return
    with pytest.raises(RequestError, match="which is none of the 3 options; expected the words of one, its letter"):
        truths.guessed("row 1", answer, options)


@pytest.mark.parametrize("answer", ["3", "-1", "A", "1.5", "", None])
def test_an_index_is_that_of_an_option(answer):
    with pytest.raises(RequestError, match="expected a number from 0 to 2"):
        truths.by_index("row 1", answer, ("1", "2", "3"))
    assert truths.by_index("row 1", "2.0", ("1", "2", "3")) == "C"
