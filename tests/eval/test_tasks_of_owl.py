"""The folders of mPLUG-Owl's and MGM's evaluation programs; VQA, GQA and POPE in mPLUG-Owl's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import SAMPLES
from evaluations import measure, oracle, png

from longview.errors import RequestError
from longview.eval.tasks import Options, find_task

TEN = [{"answer": "red"}] * 7 + [{"answer": "dark red"}] * 3
PHOTO = "COCO_val2014_000000262148.jpg"
NAMED, STORED = f"data/coco/val2014/{PHOTO}", f"images/mscoco/images/val2014/{PHOTO}"
TASKS = [
    ("vqav2", "v2_mscoco_val2014_annotations.json", NAMED, STORED),
    ("okvqa", "mscoco_val2014_annotations.json", NAMED, STORED),
    ("textvqa", "textvqa_val_annotations.json", "data/textvqa/train_images/0054c91397f2fe05.jpg",
     "images/textvqa/text_vqa/0054c91397f2fe05.jpg"),
]  # fmt: skip


def write(path: Path, data) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lay_out(root: Path, task: str, annotations: str, named: str, stored: str, suffix: str, count: int = 2) -> Path:
    """The folder that the programs run in: dataset/ and images/."""
    rows = [{"image": named, "question": f"What {n}?", "question_id": n, "answer": "red"} for n in range(count)]
    text = json.dumps(rows) if suffix == ".json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    write(root / "dataset" / task / f"{task}_val{suffix}", text)
    truths = [{"question_id": n, "answers": TEN, "answer_type": "other"} for n in range(2)]
    write(root / "dataset" / task / annotations, json.dumps({"annotations": truths}))
    write(root / stored, png())
    return root


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(("task", "annotations", "named", "stored"), TASKS)
def test_the_rows_are_asked_and_the_annotations_count(tmp_path, task, annotations, named, stored, suffix):
    lay_out(tmp_path, task, annotations, named, stored, suffix)
    for data in (tmp_path, tmp_path / "dataset", tmp_path / "dataset" / task):
        found = measure(task, oracle, data)
        assert (found.numbers["score"], found.numbers["questions"], found.numbers["failed"]) == (100, 2, 0)
    # three of ten said it: min(1, 3 / 3) but for the three leave-one-outs that lack one of them
    assert measure(task, lambda item: "dark red", tmp_path).numbers["score"] == pytest.approx(90)
    assert "Answer the question using a single word or phrase." in found.samples[0]["prompt"]


def test_the_authors_own_form_and_the_rows_give_the_same_questions(tmp_path):
    task, annotations, named, stored = TASKS[1]
    lay_out(tmp_path, task, annotations, named, stored, ".json")
    by_rows = find_task("okvqa").items(Options(tmp_path))
    pairs = [{"image_id": 262148, "question": f"What {n}?", "question_id": n} for n in range(2)]
    write(tmp_path / "a/OpenEnded_mscoco_val2014_questions.json", json.dumps({"questions": pairs}))
    write(tmp_path / "a" / annotations, (tmp_path / "dataset/okvqa" / annotations).read_bytes())
    assert find_task("okvqa").items(Options(tmp_path / "a")) == by_rows


def test_a_question_without_an_answer_and_a_missing_picture_are_named(tmp_path):
    lay_out(tmp_path, *TASKS[1], suffix=".json", count=3)
    with pytest.raises(RequestError, match=r"has no answers to question 2 of .*okvqa_val.json; give files of one"):
        find_task("okvqa").items(Options(tmp_path))
    lay_out(tmp_path, *TASKS[1], suffix=".json")
    (tmp_path / TASKS[1][3]).unlink()
    found = measure("okvqa", oracle, tmp_path)
    assert found.numbers["failed"] == 2
    assert f"there is no {PHOTO} in images/mscoco/images/val2014 or" in found.samples[0]["error"]


def test_rows_without_a_column_are_refused(tmp_path):
    lay_out(tmp_path, *TASKS[1], suffix=".json")
    write(tmp_path / "dataset/okvqa/okvqa_val.json", json.dumps([{"image": PHOTO, "question": "What?"}]))
    with pytest.raises(RequestError, match="has no column 'question_id' or 'data_id'; it has image, question"):
        find_task("okvqa").items(Options(tmp_path))


def test_pope_has_its_three_files_and_many_questions_of_one_picture(tmp_path):
    for category in ("random", "popular", "adversarial"):
        rows = [
            {"image": f"images/val2014/{PHOTO}", "question": "Is there a dog?", "question_id": PHOTO, "answer": "yes"},
            {"images": f"val2014/{PHOTO}", "query": "Is there a cat?", "data_id": PHOTO, "answer": "No"},
        ]
        write(tmp_path / f"dataset/pope/ImageQA_POPE_{category}.jsonl", "".join(f"{json.dumps(r)}\n" for r in rows))
    write(tmp_path / f"images/mscoco/images/val2014/{PHOTO}", png())
    found = measure("pope", oracle, tmp_path)
    assert (found.numbers["score"], found.numbers["questions"], found.numbers["failed"]) == (100, 6, 0)
    assert set(found.numbers["by"]["category"]) == {"random", "popular", "adversarial"}
    assert measure("pope", lambda item: "Yes.", tmp_path).numbers["score"] == 66.67
    write(tmp_path / "dataset/pope/ImageQA_POPE_random.jsonl", json.dumps(rows[0] | {"answer": "maybe"}))
    with pytest.raises(RequestError, match=r"ImageQA_POPE_random.jsonl, line 1: the answer is 'maybe'; expected"):
        find_task("pope").items(Options(tmp_path))


def test_gqa_has_its_answers_in_its_lines(tmp_path):
    lines = [
        {"image": "gqa/n1.jpg", "question": "Is it?", "question_id": 1, "answer": "yes"},
        {"image": "n1.jpg", "text": "Which?\nAnswer the question using a single word or phrase.", "question_id": 2,
         "answer": "red"},
    ]  # fmt: skip
    write(tmp_path / "dataset/gqa/testdev_balanced.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    write(tmp_path / "images/gqa/images/n1.jpg", png())
    for data in (tmp_path, tmp_path / "dataset", tmp_path / "dataset/gqa"):
        found = measure("gqa", oracle, data)
        assert (found.numbers["score"], found.numbers["questions"], found.numbers["failed"]) == (100, 2, 0)
    assert [sample["question"] for sample in found.samples] == ["Is it?", "Which?"]


PLACES = [
    ("mmbench_en", "MMBench_DEV_EN.tsv", "dataset/mmbench/mmbench_dev_en_20231003.tsv"),
    ("mmbench_cn", "MMBench_DEV_CN.tsv", "dataset/mmbench/mmbench_dev_cn_20231003.tsv"),
    ("ai2d", "data/test-0.parquet", "dataset/ai2d/"),
    ("nlvr2", "data/unbalanced_test_public-0.parquet", "dataset/NLVR2/"),
    ("qbench2", "data/dev-0.parquet", "dataset/qbench2/"),
    ("mvbench", "json/action_count.json", "dataset/mvbench/"),
    ("nextqa", "mc.csv", "dataset/nextqa/"),
    ("videomme", "videomme/test-0.parquet", "dataset/videomme/"),
    ("longvideobench", "lvb_val.json", "dataset/LongVideoBench/"),
    ("blink", "multi_image_out_domain.json", "dataset/LLaVA-NeXT-Interleave-Bench/"),
    ("mmbench_en", "MMBench_DEV_EN.tsv", "MGM-Eval/MMB/mmbench_dev_20230712.tsv"),
    ("mmbench_en", "MMBench_DEV_EN.tsv", "data/MGM-Eval/mmbench/mmbench_dev_20230712.tsv"),
    ("mmmu", "Art/validation-0.parquet", "data/MGM-Eval/MMMU/"),
    ("mathvista", "testmini.json", "MGM-Eval/MathVista/"),
    ("mathvista", "data/testmini-0.parquet", "MGM-Eval/MathVista/"),
    ("textvqa", "TextVQA_0.5.1_val.json", "MGM-Eval/textvqa/"),
    ("mmvet", "mm-vet.json", "MGM-Eval/mm-vet/"),
]


@pytest.mark.parametrize(("task", "file", "place"), PLACES)
def test_files_are_found_in_the_folders_of_the_authors_programs(tmp_path, task, file, place):
    sample = next(each for each in SAMPLES if (each.task, each.file) == (task, file))
    if place.endswith("/"):
        sample.write(tmp_path / place)
    else:
        write(tmp_path / place, sample.encoded(sample.row))
    inner = tmp_path / place.partition("/")[0]
    for data in (tmp_path, inner):
        assert len(find_task(task).unexpanded(Options(data))) == 1


def test_mmvet_finds_its_pictures_where_mplug_owl_has_them(tmp_path):
    sample = next(each for each in SAMPLES if each.file == "mm-vet.json")
    write(tmp_path / "dataset/mmvet/mm-vet.json", sample.encoded(sample.row))
    write(tmp_path / "images/mmvet/images/v1_0.png", png())
    for data in (tmp_path, tmp_path / "dataset", tmp_path / "dataset/mmvet"):
        (item,) = find_task("mmvet").items(Options(data))
        assert item.shown[0].load().read_bytes() == png()
