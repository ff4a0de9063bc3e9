"""CircularEval on MMBench's file format, English and Chinese; and what its rotations promise."""

from __future__ import annotations

import random

import pytest
from evaluations import base64_png, measure, mmbench_rows, oracle, rotated_rows, write_tsv

from longview.errors import RequestError
from longview.eval.circular import rotations
from longview.eval.items import Item
from longview.eval.tasks import Options, find_task


@pytest.fixture
def data(tmp_path):
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", mmbench_rows(12))
    write_tsv(tmp_path / "MMBench_DEV_CN.tsv", mmbench_rows(3, chinese=True))
    return tmp_path


def test_always_saying_a_scores_nothing_and_an_oracle_all(data):
    always = measure("mmbench_en", lambda item: "A", data).numbers
    assert always["score"] == 0
    assert 20 < always["more"]["each rotation by itself"] < 35
    found = measure("mmbench_en", oracle, data).numbers
    assert (found["score"], found["questions"], found["unparsed"]) == (100, 12, 0)
    assert found["answers"] == 4 * 3 + 8 * 4
    assert found["by"]["category"]["color"] == {"score": 100.0, "questions": 6}


def test_guessing_scores_one_in_k_to_the_power_of_k():
    options = ("red", "blue")
    items = [Item(str(number), "?", "AB"[number % 2], (), options) for number in range(4000)]
    rng = random.Random(0)
    right = [all(rng.choice("AB") == turn.answer for turn in rotations(item)) for item in items]
    assert sum(right) / len(right) == pytest.approx(1 / 4, abs=0.03)
    three = [Item(str(number), "?", "C", (), ("red", "blue", "green")) for number in range(6000)]
    right = [all(rng.choice("ABC") == turn.answer for turn in rotations(item)) for item in three]
    assert sum(right) / len(right) == pytest.approx(1 / 27, abs=0.01)


def test_the_result_says_what_guessing_scores(data):
    expected = (4 / 27 + 8 / 256) / 12
    assert measure("mmbench_en", oracle, data).numbers["guessing"] == pytest.approx(100 * expected, abs=0.01)


def test_each_rotation_keeps_the_truth_and_each_option_stands_at_each_letter_once():
    item = Item("7", "?", "C", (), ("red", "blue", "green", "black"))
    turns = rotations(item)
    assert turns[0].options == item.options
    assert {turn.options["ABCD".index(turn.answer)] for turn in turns} == {"green"}
    assert all(len({turn.options[place] for turn in turns}) == 4 for place in range(4))
    assert {turn.unit for turn in turns} == {"7"}
    assert len({turn.id for turn in turns}) == 4


def test_a_file_that_rotates_its_options_itself_is_asked_as_it_is(data):
    write_tsv(data / "MMBench_DEV_EN.tsv", rotated_rows(mmbench_rows(12)))
    found = measure("mmbench_en", oracle, data)
    assert (found.numbers["questions"], found.numbers["answers"], found.numbers["score"]) == (12, 44, 100)
    assert measure("mmbench_en", lambda item: "A", data).numbers["score"] == 0
    item = find_task("mmbench_en").items(Options(data))[-1]
    assert item.id.startswith("3000")
    assert item.shown[0].load() == find_task("mmbench_en").items(Options(data))[11].shown[0].load()


def test_one_wrong_rotation_makes_the_question_wrong(data):
    found = measure("mmbench_en", lambda item: oracle(item) if item.id != "241/2" else "nothing of these", data)
    assert found.numbers["score"] == round(100 * 11 / 12, 2)
    assert found.numbers["unparsed"] == round(100 / 44, 2)


def test_questions_are_put_as_each_familys_authors_put_them(data):
    task = find_task("mmbench_en")
    first, second = task.items(Options(data))[0], task.items(Options(data))[3]
    asked = task.protocols["owl3"].text(first)
    assert asked.startswith('<image>Context: N/A\nQuestion: Which colour is "picture 0"?\nLook closely.\nOptions: A. ')
    assert asked.endswith("\nAnswer with the option’s letter from the given choices directly.")
    assert task.protocols["ovis2"].text(second).startswith("<image>\nA plain picture.\nWhich colour")
    assert (
        task.protocols["mgm"].text(first).endswith("\nAnswer with the option's letter from the given choices directly.")
    )
    chinese = find_task("mmbench_cn")
    assert chinese.protocols["mgm"].text(chinese.items(Options(data))[0]).endswith("\n请直接回答选项字母。")
    assert task.protocol("owl3")[0] == "owl3"
    assert task.protocol(None)[0] == "owl3"
    assert task.protocol("mgm", "ovis2")[0] == "ovis2"


def test_pictures_stay_in_the_file_until_they_are_shown(data):
    items = find_task("mmbench_en").items(Options(data))
    write_tsv(data / "MMBench_DEV_EN.tsv", [])
    with pytest.raises((RequestError, StopIteration, ValueError)):
        items[0].shown[0].load()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda rows: [row.pop("answer") for row in rows], "has no column 'answer'; it has index, question"),
        (lambda rows: [row.pop("image") for row in rows], "has no column 'image' or 'image_path'"),
        (lambda rows: rows[1].update(answer="nan"), "row 2: the answer is '', and there are 4 options"),
        (lambda rows: rows[1].update(index=240), "two rows have the index 240"),
        (lambda rows: rows[2].update(image="999"), "row 3 takes the picture of row 999, which is not there"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(data, damage, said):
    rows = mmbench_rows(4)
    damage(rows)
    write_tsv(data / "MMBench_DEV_EN.tsv", rows)
    with pytest.raises(RequestError) as error:
        find_task("mmbench_en").items(Options(data))
    assert said in str(error.value)


def test_a_picture_that_is_no_base64_fails_alone(data):
    rows = mmbench_rows(4)
    rows[1]["image"] = base64_png()[:-9] + "?" * 9
    write_tsv(data / "MMBench_DEV_EN.tsv", rows)
    found = measure("mmbench_en", oracle, data)
    assert (found.numbers["failed"], found.numbers["score"]) == (4, 75)
    failed = [sample for sample in found.samples if "error" in sample]
    assert {sample["unit"] for sample in failed} == {"241"}
    assert "row 2 is no base64" in failed[0]["error"]
