"""How often evidence is where the answer is: on constructed evidence, and on the embedded model."""

from __future__ import annotations

import random

import numpy as np
import pytest

import longview
from longview.answer_evidence import Evidence, PatchGrid, PictureEvidence
from longview.eval import evidence as measured
from longview.eval.evidence import Amount, measure, page, picture_row, place_row, plot, points, rank_correlation
from longview.evidence.deletion import Deletion, Step
from longview.messages import Answer, FrameUsed
from longview.world.needle import draw_needle_video

FEW = Amount(pictures=1, places=1, films=1)


def answer_with(shares: list[float], peak: int = 0, cells: int = 3) -> Answer:
    """An answer of one token with such shares; the highest cell of each map is `peak`, row after row."""
    frame = FrameUsed(medium=0, name="", kind="image", index=0, seconds=None, width=300, height=150, crops=1)
    grid = PatchGrid(0, 0, 300, 150, cells, cells, shown=(0, 0, 300, 150))
    pictures = []
    for number, share in enumerate(shares, 1):
        maps = np.zeros((1, cells, cells))
        maps.flat[peak] = share
        pictures.append(PictureEvidence(number, frame, np.array([share]), np.zeros(1), maps, (grid,), maps.reshape(-1)))
    return Answer("red", "stop", None, (), evidence=Evidence(("red",), tuple(pictures), "", (0,)))  # type: ignore[arg-type]


def deletion(*alone: float) -> Deletion:
    step = Step(1, -2.0, -0.5, (-1.0, 0.0))
    return Deletion(-1.0, 1, sum(alone), alone, (step,), (), passes=9, seed=0, seconds=0.25)


def test_the_right_picture_is_counted_by_the_map_and_by_leaving_out_each_by_itself():
    answer = answer_with([0.1, 0.5, 0.2])
    row = picture_row(answer, deletion(-0.1, -0.2, -4.0), truth=2)
    assert (row["map"], row["left out"]) == (True, False)
    assert picture_row(answer, deletion(-0.1, -0.2, -4.0), truth=3)["left out"]
    assert row["without"] == {"highest": -2.0, "random": -0.5, "lowest": -0.5}
    assert row["correlation"] == pytest.approx(0.5)  # ranks 1 3 2 and 1 2 3


@pytest.mark.parametrize("cells", [3, 6, 9])
def test_the_right_place_is_the_ninth_that_holds_the_highest_cell(cells):
    for row in range(3):
        for column in range(3):
            each = cells // 3
            peak = (row * each + each - 1) * cells + column * each
            answer = answer_with([0.4], peak, cells)
            found = [cell for cell in range(9) if place_row(answer, cell)["map"]]
            assert found == [row * 3 + column]


def test_rank_correlation_is_spearman_s():
    assert rank_correlation([1, 2, 3], [10, 20, 300]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 3, 4], [5, 6, 7, 8]) == pytest.approx(0.9486833, abs=1e-6)  # ties share a rank
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0


def test_one_frame_of_eight_is_in_the_needle():
    rng = random.Random(3)
    for kind in ("colour", "shape"):
        video = draw_needle_video(rng, kind)
        seconds, place = measured.shown_seconds(rng, video)
        assert seconds == sorted(set(seconds))
        assert len(seconds) == measured.SHOWN
        assert [number for number, second in enumerate(seconds) if video.begin <= second < video.end] == [place]


def test_questions_have_one_picture_or_one_place_that_answers_them():
    for case in measured._cases("eight pictures", 12, seed=1):
        assert 1 <= case.question.about <= 8
        assert case.question.answer not in measured.VAGUE
    for case in measured._cases("one picture", 12, seed=1):
        assert len(case.question.cells) == 1


def row_of(right: bool, at_map: bool, left_out: bool) -> dict:
    row = {"task": "picture", "model": "demo-owl3", "number": 0, "right": right, "truth": "red", "pictures": 8}
    changes = {"highest": -3.0, "random": -1.0, "lowest": 0.0}
    seconds = {"answer": 0.1, "evidence": 0.02, "check": 1.5}
    return row | {
        "map": at_map, "left out": left_out, "correlation": 0.5, "without": changes, "passes": 24, "seconds": seconds,
    }  # fmt: skip


def test_shares_are_of_answers_that_were_right(tmp_path):
    found = points([row_of(True, True, True), row_of(True, False, True), row_of(False, False, False)])
    (point,) = found
    assert (point["asked"], point["right"], point["chance"]) == (3, 2, 0.125)
    assert (point["map"]["share"], point["left out"]["share"]) == (0.5, 1.0)
    text = page({"points": found}, "pictures")
    assert "| picture of eight | mPLUG-Owl3 | 2 of 3 | 50% (" in text
    assert "| -3.00 | -1.00 | +0.00 | 100 ms | 20 ms | 1500 ms |" in text
    assert "(24 passes)" in text
    plot({"points": found}, tmp_path)
    assert (tmp_path / "evidence.png").stat().st_size > 5_000


def test_a_model_without_a_right_answer_has_no_shares(tmp_path):
    found = points([row_of(False, True, True)])
    assert "map" not in found[0]
    assert "| 0 of 1 | – | – | 12% | – |" in page({"points": found}, "pictures")
    plot({"points": found}, tmp_path)


def test_the_embedded_model_is_measured_and_a_second_run_is_the_same(tmp_path):
    engine = longview.load("demo")
    found = [measure({"demo": engine}, FEW, tmp_path / f"{number}.json", lambda _: None) for number in range(2)]
    assert [(point["task"], point["asked"]) for point in found[0]["points"]] == [
        ("picture", 1), ("place", 1), ("moment", 1),
    ]  # fmt: skip
    for first, second in zip(*(numbers["points"] for numbers in found), strict=True):
        assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert not list(tmp_path.glob("*.jsonl"))
