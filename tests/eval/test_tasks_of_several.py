"""NLVR2, LLaVA-NeXT-Interleave-Bench's sets, Q-Bench2, and users' own files, in their real formats."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from evaluations import base64_png, measure, mmbench_rows, oracle, png, write_tsv

from longview.errors import RequestError
from longview.eval.tasks import Options, find_task

DIRECT = "Answer with the option's letter from the given choices directly."
OWL3 = "Answer with the option’s letter from the given choices directly."


def stored(colour: str) -> dict:
    return {"bytes": png(colour), "path": f"{colour}.png"}


def write_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ── the interleaved bench ──


def interleaved(
    number: int, dataset: str, question: str, answer: str, kind: str = "multi-choice", pictures: int = 2
) -> dict:
    return {
        "sample_id": number,
        "sub_task": dataset.lower(),
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        "image": [f"Split2/{dataset}/{number}_{n}.jpg" for n in range(pictures)],
        "metadata": {"dataset": dataset, "split": "val", "question_type": kind},
    }


@pytest.fixture
def bench(tmp_path) -> Path:
    rows = [
        interleaved(1, "BLINK", "<image> <image> Which is nearer?\n(A) first\n(B) second\n", "(B)"),
        interleaved(2, "Mantis", "<image><image>Compare.\nOptions: \nA. red\nB. blue\nC. green", "B"),
        interleaved(3, "Mantis", "What is in <image> but not in <image>?", "a red dog", "open-ended"),
        interleaved(4, "MathVerse", f"<image><image>Find x.\nA:1\nB:2\nC:3\nD:4\n{DIRECT}", "C"),
        interleaved(5, "SciVerse", f"<image><image><image><image>Which pairs?\nA. 1\nB. 2\n{DIRECT}", "A", pictures=4),
    ]
    folder = tmp_path / "LLaVA-NeXT-Interleave-Bench"
    for row in rows:
        for name in row["image"]:
            (folder / "eval_images_fix" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "eval_images_fix" / name).write_bytes(png())
    (folder / "multi_image_out_domain.json").write_text(json.dumps(rows))
    return tmp_path


def prompt(task: str, data: Path, number: int = 0) -> str:
    found = find_task(task)
    return found.protocols["owl3"].text(found.items(Options(data))[number])


def test_each_set_of_the_bench_is_asked_as_mplug_owl3_asks_it(bench):
    blink = prompt("blink", bench)
    assert blink.startswith("the first image: <image>  the second image: <image>  Which is nearer?")
    assert blink.endswith(f"\n{OWL3}")
    mantis = prompt("mantis", bench)
    assert mantis.startswith("Image 1: <image> Image 2: <image> Compare.")
    assert "directly" not in mantis
    assert prompt("mantis", bench, 1) == "What is in Image 1: <image>  but not in Image 2: <image> ?"
    assert prompt("mathverse_mv", bench).endswith(DIRECT)
    scientific = "\nPlease select the correct paired scientific diagram from four given images. " + DIRECT
    assert prompt("sciverse_mv", bench).endswith(scientific)
    assert prompt("sciverse_mv", bench).count("<image>") == 4


@pytest.mark.parametrize(("task", "count"), [("blink", 1), ("mantis", 2), ("mathverse_mv", 1), ("sciverse_mv", 1)])
def test_an_oracle_scores_all_in_each_set(bench, task, count):
    found = measure(task, oracle, bench).numbers
    assert (found["score"], found["questions"], found["failed"]) == (100, count, 0)


def test_free_answers_count_by_rouge_l(bench):
    said = {"2": "B. blue", "3": "a dog"}
    found = measure("mantis", lambda item: said[item.id], bench).numbers
    assert found["score"] == pytest.approx(100 * (1 + 0.8) / 2, abs=0.01)


def test_blink_reads_vlmevalkits_tsv_too(tmp_path):
    rows = mmbench_rows(2)
    for row in rows:
        row["image"] = str([base64_png("red"), base64_png("blue")])
    write_tsv(tmp_path / "BLINK.tsv", rows)
    item = find_task("blink").items(Options(tmp_path))[0]
    assert [shown.load() for shown in item.shown] == [png("red"), png("blue")]


# ── pairs ──


def test_nlvr2_reads_tables_and_the_authors_lines(tmp_path):
    rows = [{"question_id": "1", "question": "Both are red.", "answer": truth, "images": [stored("red"), stored("red")]}
            for truth in ("True", "False")]  # fmt: skip
    rows[1]["question_id"] = "2"
    write_parquet(tmp_path / "data" / "balanced_test_public-00000-of-00001.parquet", rows)
    found = measure("nlvr2", oracle, tmp_path)
    assert (found.numbers["score"], found.numbers["unparsed"]) == (100, 0)
    expected = (
        "Left image: <image> Right image: <image>\nBoth are red.\nyes or no? Answer the question using a single word."
    )
    assert found.samples[0]["prompt"] == expected
    lines = tmp_path / "lines"
    (lines / "test1").mkdir(parents=True)
    for side in (0, 1):
        (lines / "test1" / f"test1-0-1-img{side}.png").write_bytes(png())
    row = {"identifier": "test1-0-1-0", "sentence": "Both are red.", "label": "True"}
    (lines / "test1.json").write_text(json.dumps(row) + "\n")
    assert measure("nlvr2", lambda item: "Yes", lines).numbers["score"] == 100


def test_qbench2_asks_about_two_numbered_pictures(tmp_path):
    row = {"id": 7, "image1": stored("red"), "image2": stored("blue"), "question": "Which is sharper?",
           "option0": "First", "option1": "Second", "option2": "N/A", "option3": "N/A",
           "question_type": 0, "question_concern": 2,
           "correct_choice": "B"}  # fmt: skip
    write_parquet(tmp_path / "qbench2" / "data" / "dev-00000-of-00001.parquet", [row])
    found = measure("qbench2", oracle, tmp_path)
    assert found.numbers["score"] == 100
    assert found.samples[0]["prompt"] == (
        f"Image 1: <image>\nImage 2: <image>\nQuestion: Which is sharper?\nOptions: A. First\nB. Second\n{OWL3}"
    )


# ── users' own ──


def test_evalscopes_vmcq_is_read_with_its_pictures_in_place(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        {"question": "Is <image 1> like <image 2>?", "options": ["yes", "no"], "answer": "B", "image_1": "a.png",
         "image_2": f"data:image/png;base64,{base64_png('blue')}"},
        {"messages": [{"role": "user", "content": [
            {"type": "text", "text": "What building is this?\nA. School\nB. Museum"},
            {"type": "image_url", "image_url": {"url": "a.png"}}]}], "answer": "B"},
    ]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measure("choices", oracle, tmp_path / "mine.jsonl")
    assert (found.numbers["score"], found.numbers["failed"]) == (100, 0)
    assert found.samples[0]["prompt"].startswith("Is <image> like <image>?\nA. yes\nB. no\n")
    assert found.samples[1]["prompt"] == "What building is this?\nA. School\nB. Museum<image>"
    assert found.samples[1]["options"] == ["School", "Museum"]


def test_messages_and_llavas_question_files_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/a.png"}},
            {"type": "text", "text": "这是什么？"}]}], "answer": "一只红色的猫"},
        {"question_id": "x", "image": "a.png", "text": "What colour?", "answer": ["red", "dark red"]},
    ]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {"1": "红色的猫", "x": "dark red"}
    found = measure("messages", lambda item: said[item.id], tmp_path)
    assert found.numbers["score"] == pytest.approx(100 * (0.8 + 1) / 2, abs=0.01)
    assert found.numbers["failed"] == 0
    assert [sample["prompt"] for sample in found.samples] == ["<image>这是什么？", "<image>\nWhat colour?"]


def test_ones_own_choices_about_videos_are_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    row = {"video": "a", "question": "What?", "candidates": ["x", "y"], "answer": "y", "start": 1, "end": 2}
    (tmp_path / "v.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = find_task("video_choices").items(Options(tmp_path / "v.jsonl"))
    assert (item.answer, item.shown[0].start, item.shown[0].load()) == ("B", 1, tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("choices", {"question": "?", "options": ["a"], "answer": "Z", "image_1": "a.png"}, "none of the 1 options"),
        ("choices", {"question": "?", "answer": "A"}, "no column 'options'"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "audio"}]}], "answer": "x"}, "type 'audio'"),
        ("messages", {"messages": [], "question": "", "text": "", "answer": "x"}, ""),
        ("messages", {"answer": "x"}, "no column 'messages' or 'question' or 'text'"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(tmp_path, task, row, said):
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    if not said:
        assert find_task(task).items(Options(tmp_path / "r.jsonl"))
        return
    with pytest.raises(RequestError, match=said):
        find_task(task).items(Options(tmp_path / "r.jsonl"))
