"""The report of an evaluation: Markdown and one self-contained page with the answers that went wrong."""

from __future__ import annotations

import re

import pytest
from evaluations import measure, mmbench_rows, oracle, write_tsv

from longview.errors import RequestError
from longview.eval.report.failures import chosen, kind_of
from longview.eval.report.page import page, write_reports
from longview.eval.results import read_result


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_tsv(folder / "MMBench_DEV_EN.tsv", mmbench_rows(6))
    return folder


def mixed(item):
    if item.unit == "241":
        raise RequestError("a picture did not open")
    return {"240": "<b>hm</b>", "242": "A"}.get(item.unit, oracle(item))


@pytest.fixture
def result(data, tmp_path):
    return measure("mmbench_en", mixed, data, tmp_path / "run")


def test_the_page_needs_nothing_else_and_shows_what_went_wrong(result, tmp_path):
    html = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert html.count("<article") == len(chosen(result.samples))
    assert html.count("data:image/jpeg;base64,") >= 6
    for said in ("a picture did not open", "&lt;b&gt;hm&lt;/b&gt;", "CircularEval accuracy", "By category", "guessing"):
        assert said in html
    assert "<b>hm</b>" not in html
    for kind in ("wrong", "not understood", "failed", "right"):
        assert f"<option>{kind}</option>" in html
    assert 'data-kind="failed"' in html


def test_markdown_has_the_numbers(result, tmp_path):
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"| CircularEval accuracy | {result.numbers['score']:.1f}% (95 %: " in text
    assert "| failed | 4 answers, counted as wrong" in text
    assert "| color | " in text


def test_a_page_is_written_again_from_the_files_with_and_without_the_pictures(result, data, tmp_path):
    before = page(result).count("data:image/jpeg")
    assert page(read_result(tmp_path / "run")).count("data:image/jpeg") == before
    (data / "MMBench_DEV_EN.tsv").unlink()
    write_reports(tmp_path / "run", read_result(tmp_path / "run"))
    html = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/jpeg" not in html
    assert "&lt;b&gt;hm" in html


def test_of_many_wrong_answers_some_of_each_kind_and_label_are_shown():
    samples = [
        {"id": str(n), "score": 0, "understood": n % 50 != 0, "labels": {"category": "rare" if n == 1 else "often"}}
        for n in range(500)
    ]
    shown = chosen(samples)
    assert len(shown) == 60
    assert {kind_of(sample) for sample in shown} == {"wrong", "not understood"}
    assert "rare" in {sample["labels"]["category"] for sample in shown}
