"""Files as pandas, editors and other tools write them: numbers for names, NaN, floats, empty lines, options "None"."""

from __future__ import annotations

import json

import pytest
from benchmarks import SAMPLES, STORED
from evaluations import base64_png, png, write_tsv

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.tasks import Options, find_task

NAN = float("nan")


def read(folder, task: str, file: str, change=None, data: bytes | None = None) -> list[Item]:
    """The questions of a sample's file with some cells changed, or with another content."""
    sample = next(each for each in SAMPLES if (each.task, each.file) == (task, file))
    return find_task(task).items(Options(sample.write(folder, {**sample.row, **(change or {})}, data)))


@pytest.mark.parametrize("name", [4010069381, 4010069381.0, "4010069381"])
def test_a_video_may_be_named_by_a_number(tmp_path, name):
    (item,) = read(tmp_path, "video_choices", "a.jsonl", {"video": name})
    assert item.shown[0].name == "4010069381.mp4"


def test_lines_without_cells_are_left_out(tmp_path):
    sample = next(each for each in SAMPLES if each.file == "mc.csv")
    data = sample.encoded(sample.row).replace(b"\n", b"\n\n") + b"\n"
    assert len(read(tmp_path, "nextqa", "mc.csv", data=data)) == 1


def test_pictures_of_a_tsv_are_found_behind_empty_lines_and_the_mark_of_utf8(tmp_path):
    rows = [{"image": base64_png(colour), "index": n, "question": "?", "A": "x", "B": "y", "answer": "A"}
            for n, colour in enumerate(("red", "blue"))]  # fmt: skip
    path = write_tsv(tmp_path / "MMStar.tsv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n"))
    items = find_task("mmstar").items(Options(tmp_path))
    assert [item.shown[0].load() for item in items] == [png("red"), png("blue")]


@pytest.mark.parametrize("given", ["['A. x', 'B. y']", ["A. x", "B. y"]])
def test_options_of_videomme_may_be_a_list_as_text(tmp_path, given):
    (item,) = read(tmp_path, "videomme", "videomme/test-0.parquet", {"options": given})
    assert item.options == ("x", "y")


def test_options_of_videomme_that_are_no_list_are_refused(tmp_path):
    with pytest.raises(RequestError, match="'options' is 'one or two'; expected a list of two or more"):
        read(tmp_path, "videomme", "videomme/test-0.parquet", {"options": "one or two"})


@pytest.mark.parametrize("word", ["none", "None", "N/A"])
@pytest.mark.parametrize(("task", "file"), [("ai2d", "AI2D_TEST.tsv"), ("mmmu", "MMMU_DEV_VAL.tsv")])
def test_none_is_an_option(tmp_path, task, file, word):
    (item,) = read(tmp_path, task, file, {"A": "x", "B": "y", "C": word, "D": "z", "answer": "D"})
    assert (item.options, item.answer) == (("x", "y", word, "z"), "D")


@pytest.mark.parametrize("cell", ["", "nan"])
def test_options_end_before_a_cell_without_a_value(tmp_path, cell):
    (item,) = read(tmp_path, "ai2d", "AI2D_TEST.tsv", {"C": cell, "D": cell})
    assert item.options == ("red", "blue")


@pytest.mark.parametrize(("precision", "kept"), [(NAN, None), (1.0, 1), (2, 2), (None, None)])
def test_precision_is_a_whole_number_or_nothing(tmp_path, precision, kept):
    (item,) = read(tmp_path, "mathvista", "testmini.json", {"precision": precision})
    assert item.facts["problem"]["precision"] == kept


@pytest.mark.parametrize(("kind", "truth"), [("integer", "3"), ("float", "3.0")])
def test_a_whole_truth_of_mathvista_has_the_point_that_its_type_has(tmp_path, kind, truth):
    (item,) = read(tmp_path, "mathvista", "testmini.json", {"answer": 3.0, "answer_type": kind})
    assert item.answer == truth


@pytest.mark.parametrize("answer", ["B", "c", 3])
def test_a_choice_of_mathvista_is_one_of_its_choices(tmp_path, answer):
    change = {"question_type": "multi_choice", "answer_type": "text", "choices": ["a", "b"], "answer": answer}
    with pytest.raises(RequestError, match=r"testmini\.json, question 1: .* none of the 2 choices; expected the words"):
        read(tmp_path, "mathvista", "testmini.json", change)


@pytest.mark.parametrize("truth", [1, 1.0, "1"])
def test_hallusionbenchs_truth_may_be_a_float(tmp_path, truth):
    (item,) = read(tmp_path, "hallusionbench", "HallusionBench.json", {"gt_answer": truth, "set_id": 0.0})
    assert (item.answer, item.id) == ("yes", "VD_math_0_0_0")


def test_an_option_that_is_missing_is_none(tmp_path):
    (item,) = read(tmp_path, "qbench2", "data/dev-0.parquet", {"option2": NAN})
    assert item.options == ("first", "second")


@pytest.mark.parametrize("candidates", [["1", "2", "3"], [1.0, 2.0, 3.0]])
def test_words_of_a_number_are_found_with_their_point_or_without(tmp_path, candidates):
    (item,) = read(tmp_path, "mvbench", "json/action_count.json", {"answer": 3.0, "candidates": candidates})
    assert item.answer == "C"


@pytest.mark.parametrize(("kind", "truth"), [("multiple-choice", "Z"), ("multiple-choice", None), ("open", None),
                                             ("open", 3)])  # fmt: skip
def test_truths_of_mmmus_test_split_are_checked(tmp_path, kind, truth):
    sample = next(each for each in SAMPLES if each.task == "mmmu_test")
    sample.write(tmp_path, {**sample.row, "question_type": kind, "image_1": STORED})
    (tmp_path / "answer_dict_test.json").write_text(json.dumps({"test_Art_1": {"ground_truth": truth}}))
    with pytest.raises(RequestError, match=r"answer_dict_test\.json.*; expected a l"):
        find_task("mmmu_test").items(Options(tmp_path))


@pytest.mark.parametrize("task", ["choices", "video_choices"])
@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        (["1", "2", "3"], 1, "B"),
        (["x", "y", "z"], 1, "B"),
        (["x", "y", "z"], 1.0, "B"),
        ([1, 2, 3], 1, "A"),
        (["1", "2", "3"], "1", "A"),
        (["1", "2", "3"], 3, "C"),
    ],
)
def test_a_number_is_an_index_unless_the_options_are_numbers(tmp_path, task, options, answer, letter):
    (item,) = read(tmp_path, task, "a.jsonl", {"options": options, "answer": answer})
    assert item.answer == letter
