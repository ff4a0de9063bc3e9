"""The report of an evaluation: Markdown and one self-contained page with the answers that went wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from evaluations import measure, mmbench_rows, oracle, png, write_tsv

from longview.errors import RequestError
from longview.eval.report.failures import chosen, kind_of
from longview.eval.report.page import page, write_reports
from longview.eval.results import read_result
from longview.eval.tasks import Options


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
    folder = tmp_path / "run"
    before = page(result).count("data:image/jpeg")
    assert page(read_result(folder)).count("data:image/jpeg") == before
    (data / "MMBench_DEV_EN.tsv").unlink()
    kept = (folder / "report.html").read_bytes()
    with pytest.raises(RequestError, match=r"report.html stays as it was, since its pictures cannot be read"):
        write_reports(folder, read_result(folder))
    assert (folder / "report.html").read_bytes() == kept
    (folder / "report.html").unlink()
    write_reports(folder, read_result(folder))
    html = (folder / "report.html").read_text()
    assert "data:image/jpeg" not in html
    assert "without pictures: " in html
    assert "&lt;b&gt;hm" in html


def test_a_page_whose_pictures_are_gone_one_by_one_stays(tmp_path):
    rows = mmbench_rows(2)
    for row in rows:
        (tmp_path / f"{row['index']}.png").write_bytes(png())
        row["image_path"] = f"{row['index']}.png"
        del row["image"]
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    measure("mmbench_en", oracle, tmp_path, tmp_path / "run")
    (tmp_path / "241.png").unlink()
    with pytest.raises(RequestError, match=r"stays as it was, since its pictures cannot be read again: .*241.png"):
        write_reports(tmp_path / "run", read_result(tmp_path / "run"))


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("mmbench_en", {"data": Path("data")}),
        ("distractor", {"source": "data/MMBench_DEV_EN.tsv", "pictures": (2,)}),
    ],
)
def test_a_page_is_written_again_from_another_folder(data, tmp_path, monkeypatch, task, options):
    monkeypatch.chdir(tmp_path)
    first = measure(task, mixed, output=Path("run"), options=Options(**options))
    before = (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_reports(tmp_path / "run", read_result(tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").read_text().count("data:image/jpeg") == before > 0
    assert str(tmp_path) in str(first.numbers)


def test_of_many_wrong_answers_some_of_each_kind_and_label_are_shown():
    samples = [
        {"id": str(n), "score": 0, "understood": n % 50 != 0, "labels": {"category": "rare" if n == 1 else "often"}}
        for n in range(500)
    ]
    shown = chosen(samples)
    assert len(shown) == 60
    assert {kind_of(sample) for sample in shown} == {"wrong", "not understood"}
    assert "rare" in {sample["labels"]["category"] for sample in shown}
