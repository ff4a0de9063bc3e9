"""longview eval: tasks listed and described, benchmarks run, results compared, mistakes in one line."""

from __future__ import annotations

import json
import re

import pytest
from evaluations import mmbench_rows, write_tsv
from PIL import Image

from longview.eval.tasks import TASKS, Options, find_task


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    write_tsv(folder / "MMBench_DEV_EN.tsv", mmbench_rows(3))
    return folder


def test_tasks_are_listed_and_described(longview):
    listed = longview("eval", "--list").out
    assert all(re.search(rf"^{name} ", listed, re.MULTILINE) for name in TASKS)
    checked = r"  (world needs no files; never ran on the real MMBench|(never )?ran on the real files|needs no files)$"
    assert all(re.search(checked, line) for line in listed.splitlines())
    assert {row["name"] for row in longview("eval", "--list", "--json").json} == set(TASKS)
    told = longview("eval", "--describe", "mmbench_en").out
    for said in ("arXiv 2307.06281", "MMBench_DEV_EN.tsv", "protocol owl3", "Context: N/A", "MGM-7B-HD", "65.8"):
        assert said in told


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_described(longview, name):
    told = longview("eval", "--describe", name, "--json").json
    assert told["about"]
    assert told["citation"]
    assert told["get"]
    assert all(protocol["prompt"] for protocol in told["protocols"].values())


def test_a_benchmark_is_run_kept_and_gone_on_with(longview, demo_name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("eval", "--task", "mmbench_en", "--data", data, "--model", demo_name)
    first = longview(*arguments, "--limit", 2, "--json").json
    folder = tmp_path / "runs" / "eval" / demo_name / "mmbench_en"
    assert json.loads((folder / "results.json").read_text()) == first
    assert first["protocol"]["name"] == "owl3"
    assert first["questions"] == 2
    text = longview(*arguments).out
    assert "CircularEval accuracy" in text
    assert "not understood" in text
    assert f"kept in {folder.relative_to(tmp_path)}" in text
    lines = (folder / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3 + 4 + 4
    page = longview("eval", "compare", folder, folder)
    assert "difference may be chance" in page.out
    assert longview("eval", "compare", folder, folder, "--json").json["p"] == 1


def test_the_likeliest_letter_is_a_choice_too(longview, demo_name, data, tmp_path):
    arguments = ("eval", "--task", "mmbench_en", "--data", data, "--model", demo_name, "--by-probability")
    found = longview(*arguments, "--output", tmp_path, "--json").json
    assert (found["mode"], found["unparsed"], found["failed"]) == ("probability", 0, 0)
    sample = json.loads((tmp_path / "mmbench_en" / "samples.jsonl").read_text().splitlines()[0])
    assert sample["answer"] == max(sample["logprobs"], key=sample["logprobs"].get)
    assert sample["logprobs"].keys() == set("ABC")


@pytest.fixture(scope="module")
def demo_name():
    return "demo"


def test_wrong_words_are_told_in_one_line(refused, data, tmp_path):
    assert "did you mean 'mmbench_en'" in refused("eval", "--task", "mmbench")
    assert "give their folder with --data" in refused("eval", "--task", "mmbench_en")
    missing = refused("eval", "--task", "mmbench_cn", "--data", data)
    assert "missing is MMBench_DEV_CN.tsv" in missing
    assert "longview eval --describe mmbench_cn" in missing
    assert "there is no" in refused("eval", "--task", "mmbench_en", "--data", tmp_path / "none")
    assert "no protocol" in refused("eval", "--task", "mmbench_en", "--data", data, "--protocol", "llava")
    assert "without options" in refused("eval", "--by-probability", "--group", "clip", "--per-kind", 1)
    assert "compare and two folders" in refused("eval", "compare", tmp_path)
    assert "no finished evaluation" in refused("eval", "compare", tmp_path, tmp_path)
    for name in ("results.json", "samples.jsonl"):
        (tmp_path / name).write_text("{}")
    assert "results.json has no 'task'" in refused("eval", "compare", tmp_path, tmp_path)
    assert "results.json has no 'task'" in refused("report", tmp_path)
    assert "does not answer" in refused("eval", "--server", "http://127.0.0.1:9")
    assert "give an address" in refused("eval", "--server", "localhost:9")


def test_a_picture_that_does_not_open_fails_alone_and_is_told(longview, data, tmp_path):
    rows = mmbench_rows(2)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for row, name in zip(rows, ("good.png", "bad.png"), strict=True):
        row["image_path"] = name
        del row["image"]
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    ran = longview("eval", "--task", "mmbench_en", "--data", tmp_path, "--output", tmp_path / "out", "--model", "demo")
    assert ran.code == 0
    assert "failed                      4 answers, counted as wrong" in ran.out
    failed = [json.loads(line) for line in (tmp_path / "out" / "mmbench_en" / "samples.jsonl").read_text().splitlines()]
    assert all("bad.png" in sample["error"] for sample in failed if sample["unit"] == "241")


def test_scores_by_label_are_a_table_whose_names_are_as_in_the_files(longview, tmp_path):
    rows = [row | {"category": "[bold] :star: " + "x" * 60} for row in mmbench_rows(2)]
    write_tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    text = longview("eval", "--task", "mmbench_en", "--data", tmp_path, "--output", tmp_path / "out").out
    assert re.search(r"^ category +CircularEval accuracy +questions *$", text, re.MULTILINE)
    assert re.search(r"^ \[bold\] :star: x{60} +[\d.]+ +2 *$", text, re.MULTILINE)
    world = longview("eval", "--group", "one picture", "--per-kind", 1).out
    assert re.search(r"^ media and kind +right +accuracy +95 % interval +guessing *$", world, re.MULTILINE)
    assert "\x1b" not in text + world


def test_questions_are_exported_and_read_back(longview, data, tmp_path):
    arguments = ("eval", "export", "--task", "mmbench_en", "--data", data, "--output", tmp_path / "out", "--limit", 2)
    told = longview(*arguments, "--to", "evalscope").out
    assert told.startswith(f"mmbench_en: 2 questions in {tmp_path / 'out' / 'mmbench_en_test.jsonl'}, ")
    assert """--dataset-args '{"general_vqa": {"local_path": """ in told
    assert """--generation-config '{"temperature": 0, "max_tokens": 100}'""" in told
    (task,) = longview(*arguments, "--to", "vlmevalkit", "--json").json["tasks"]
    assert task == {
        "task": "mmbench_en", "questions": 2, "files": [str(tmp_path / "out" / "mmbench_en.tsv")], "max_tokens": 100
    }  # fmt: skip
    ours = find_task("mmbench_en").unexpanded(Options(data))[:2]
    for name in ("mmbench_en_val.jsonl", "mmbench_en.tsv"):
        back = find_task("choices").items(Options(tmp_path / "out" / name))
        assert [(each.id, each.question, each.answer) for each in back] == [
            (each.id, each.question, each.answer) for each in ours
        ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--output", "out"], "to export is longview eval export --to evalscope or vlmevalkit --task TASK"),
        (["export", "--to", "evalscope"], "--output FOLDER"),
        (["export", "--to", "lmms", "--output", "out"], "to export is longview eval export --to evalscope or vlmeval"),
        (["--to", "evalscope", "--output", "out"], "to export is longview eval export"),
        (["export", "--to", "evalscope", "--output", "out", "--by-probability"], "--by-probability asks a model"),
        (["export", "--to", "evalscope", "--output", "file"], "file cannot be made"),
    ],
)
def test_what_is_wrong_with_an_export_is_one_line(refused, data, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert said in refused("eval", *arguments, "--task", "mmbench_en", "--data", data)
