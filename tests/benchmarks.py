"""One question of each form that a task reads, in the form's own files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from evaluations import base64_png, png

STORED = {"bytes": png(), "path": None}
PHOTO = "COCO_val2014_000000000001.jpg"
TEN = [{"answer": "red", "answer_id": number} for number in range(10)]


@dataclass(frozen=True)
class Sample:
    """A file of one row, and what lies beside it."""

    task: str
    file: str
    kind: str
    """list, object, under KEY, lines, line, parquet, tsv, csv or text."""
    row: Mapping[str, Any]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    wrong: Mapping[str, Any] = field(default_factory=dict)
    """Columns, and a value of the wrong kind for each."""
    needed: tuple[str, ...] = ()

    def write(self, folder: Path, row: Any = None, data: bytes | None = None) -> Path:
        """The files in a folder; with another row, or another content of the file."""
        for name, content in self.beside.items():
            put(folder / name, content)
        put(folder / self.file, self.encoded(self.row if row is None else row) if data is None else data)
        return folder

    def encoded(self, row: Any) -> bytes:
        if self.kind == "parquet":
            file = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
            return file.getvalue()
        if self.kind in ("tsv", "csv"):
            return separated([row], "\t" if self.kind == "tsv" else ",")
        if self.kind == "text":
            return str(row["text"]).encode()
        key = self.kind.removeprefix("under ")
        whole = {"list": [row], "object": {"1": row}, "lines": row}.get(self.kind, {key: [row]})
        return json.dumps(whole).encode()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def separated(rows: Sequence[Mapping[str, Any]], delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def tsv(name: str, file: str, **columns: Any) -> Sample:
    """VLMEvalKit's, with a picture inside."""
    needed = ("index", "question", *(each for each in ("answer", "answers", "A") if each in columns))
    row = {"index": 1, "image": base64_png(), "question": "What?", **columns}
    return Sample(name, file, "tsv", row, needed=needed)


CHOICE = {"A": "red", "B": "blue", "answer": "A"}
VQA = {"question_id": 1, "question": "What?", "image_id": 1}
OWL = {"image": f"data/coco/val2014/{PHOTO}", "question": "What?", "question_id": 1, "answer": "red"}
PEOPLE = json.dumps({"annotations": [{"question_id": 1, "answers": TEN}]}).encode()
IN_TABLE = {"question": "What?", "answers": ["red"] * 10, "image": STORED}
VIDEO = {"video": "v.mp4", "question": "What?", "candidates": ["1", "2", "3"], "answer": "3"}
MATH = {"question": "How many?", "choices": None, "unit": None, "precision": 1.0, "question_type": "free_form",
        "answer_type": "float", "answer": "1.5"}  # fmt: skip
INTERLEAVED = {
    "sample_id": 1, "image": ["a.png"], "metadata": {"dataset": "Mantis", "question_type": "multi-choice"},
    "conversations": [{"value": "<image> Which?\nA. red\nB. blue"}, {"value": "A"}],
}  # fmt: skip


def _interleaved(task: str, dataset: str) -> Sample:
    metadata = {"dataset": dataset, "question_type": "multi-choice"}
    return Sample(task, "multi_image_out_domain.json", "list", {**INTERLEAVED, "metadata": metadata},
                  {"eval_images_fix/a.png": png()}, {"image": 5, "conversations": ["x"], "metadata": 3},
                  ("image", "conversations", "sample_id"))  # fmt: skip


def _videomme(task: str) -> list[Sample]:
    row = {"videoID": "v", "question_id": "1", "question": "What?", "options": ["A. x", "B. y"], "answer": "B"}
    listed = {"index": 1, "video": "v", "video_path": "./video/v.mp4", "candidates": "['A. x', 'B. y']",
              "question": "What?", "answer": "B"}  # fmt: skip
    return [
        Sample(task, "videomme/test-0.parquet", "parquet", row, {"data/v.mp4": b"x"}, {"options": 5, "question": 3},
               tuple(row)),
        Sample(task, "Video-MME.tsv", "tsv", listed, {"video/v.mp4": b"x"}, {"answer": "Z"}, tuple(listed)),
    ]  # fmt: skip


def _pairs(task: str, prefix: str) -> list[Sample]:
    annotations = {f"{prefix}mscoco_val2014_annotations.json": PEOPLE}
    owl = {f"dataset/{task}/{name}": content for name, content in annotations.items()}
    return [
        Sample(task, f"{prefix}OpenEnded_mscoco_val2014_questions.json", "under questions", VQA,
               {**annotations, f"val2014/{PHOTO}": png()}, {"question": None, "image_id": "x"}, tuple(VQA)),
        Sample(task, f"dataset/{task}/{task}_val.json", "list", OWL,
               {**owl, f"images/mscoco/images/val2014/{PHOTO}": png()}, {"question": 3, "image": None},
               ("image", "question", "question_id")),
    ]  # fmt: skip


SAMPLES = [
    tsv("mmbench_en", "MMBench_DEV_EN.tsv", **CHOICE),
    tsv("mmbench_cn", "MMBench_DEV_CN.tsv", **CHOICE),
    tsv("mmbench_v11", "MMBench_DEV_EN_V11.tsv", **CHOICE),
    tsv("ai2d", "AI2D_TEST.tsv", **CHOICE),
    Sample("ai2d", "data/test-0.parquet", "parquet",
           {"question": "How many?", "options": ["1", "2", "3", "4"], "answer": "2", "image": STORED},
           wrong={"options": 7, "answer": "9", "image": 5}, needed=("question", "options", "answer", "image")),
    tsv("mmstar", "MMStar.tsv", **CHOICE),
    replace(tsv("hallusionbench", "HallusionBench.tsv", answer="Yes", **{"l2-category": "chart"}),
            row={"index": "VS_chart_3_0_1", "image": base64_png(), "question": "Is it?", "answer": "Yes",
                 "l2-category": "chart"}, wrong={"index": "1", "answer": "red"}),
    Sample("hallusionbench", "HallusionBench.json", "list",
           {"category": "VD", "subcategory": "math", "set_id": "0", "figure_id": "0", "question_id": "0",
            "question": "Is it?", "gt_answer": "1", "filename": None},
           wrong={"question": 3, "gt_answer": "yes"}, needed=("category", "set_id", "question", "gt_answer")),
    *_videomme("videomme"),
    *_videomme("videomme_subtitles"),
    Sample("mvbench", "json/action_count.json", "list", VIDEO, {"video/perception/videos/v.mp4": b"x"},
           {"video": 7, "candidates": None, "answer": "none", "start": "x"}, tuple(VIDEO)),
    Sample("mvbench", "MVBench.tsv", "tsv",
           {"task_type": "Action Sequence", "prefix": "video/star/Charades_v1_480/", "data_type": "video",
            "bound": True, "start": 1.5, "end": 3.0, "video": "v.mp4", "question": "What?", "answer": "3",
            "candidates": "['1', '2', '3']", "index": 0}, {"video/star/Charades_v1_480/v.mp4": b"x"},
           {"start": "x", "task_type": "Other"}, ("task_type", "prefix", "video", "question", "answer", "candidates")),
    Sample("nextqa", "mc.csv", "csv",
           {"video": 1, "question": "how many", "answer": 2, "qid": 0, "type": "DC", "a0": 3, "a1": 2, "a2": 4,
            "a3": 5, "a4": 1}, {"NExTVideo/1.mp4": b"x"}, {"answer": "7"}, ("video", "question", "answer", "a0", "a3")),
    Sample("longvideobench", "lvb_val.json", "list",
           {"id": "x_0", "video_path": "v.mp4", "question": "How many?", "candidates": ["1", "2", "3"],
            "correct_choice": 2, "duration_group": 15}, {"videos/v.mp4": b"x"},
           {"video_path": None, "candidates": None, "correct_choice": 9, "question": 4},
           ("id", "video_path", "question", "candidates", "correct_choice")),
    Sample("longvideobench", "LongVideoBench.tsv", "tsv",
           {"id": "x_0", "video_path": "./videos/v.mp4", "question": "How many?", "candidates": "['1', '2', '3']",
            "correct_choice": 2, "duration_group": 15, "index": 0, "video": "v"}, {"videos/v.mp4": b"x"},
           {"correct_choice": "A"}, ("id", "video_path", "question", "candidates", "correct_choice")),
    Sample("mlvu", "json/4_count.json", "list", {**VIDEO, "question_type": "count"}, {"video/4_count/v.mp4": b"x"},
           {"video": None, "candidates": 3, "question": None}, ("video", "question", "answer")),
    Sample("mlvu", "MLVU_MCQ.tsv", "tsv",
           {"task_type": "count", "prefix": "./MLVU/video/4_count", "duration": 200.0, "video": "v.mp4",
            "question": "What?", "answer": "3", "candidates": "['1', '2', '3']", "index": 0},
           {"MLVU/video/4_count/v.mp4": b"x"}, {"answer": "9"},
           ("prefix", "video", "question", "answer", "candidates")),
    Sample("lvbench", "video_info.meta.jsonl", "lines",
           {"key": "v", "qa": [{"uid": 1, "question": "What?\n(A) x\n(B) y", "answer": "B", "question_type": ["er"]}]},
           {"videos/v.mp4": b"x"}, {"qa": None, "key": None}, ("key", "qa")),
    tsv("mme", "MME.tsv", category="color", image_path="1.png", answer="Yes"),
    Sample("mme", "MME_Benchmark_release_version/color/1.txt", "text", {"text": "Is it red?\tYes"},
           {"MME_Benchmark_release_version/color/1.png": png()}, {"text": "Is it red?\tmaybe"}),
    Sample("mme", "data/test-0.parquet", "parquet",
           {"question_id": "color/1.png", "image": STORED, "question": "Is it?", "answer": "Yes", "category": "color"},
           wrong={"answer": "maybe", "category": 3, "image": 4}, needed=("question_id", "image", "answer", "category")),
    tsv("pope", "POPE.tsv", answer="Yes", category="random"),
    Sample("pope", "coco_pope_random.json", "lines", {"question_id": 1, "image": PHOTO, "text": "Dog?", "label": "yes"},
           {f"val2014/{PHOTO}": png()}, {"label": None, "image": 4, "text": None},
           ("question_id", "image", "text", "label")),
    Sample("pope", "dataset/pope/ImageQA_POPE_random.jsonl", "lines", {**OWL, "answer": "yes"},
           {f"images/mscoco/images/val2014/{PHOTO}": png()}, {"answer": "maybe", "question": 3}, tuple(OWL)),
    Sample("pope", "data/test-0.parquet", "parquet", {"question": "Dog?", "answer": "yes", "image": STORED},
           wrong={"answer": "maybe", "question": 3}, needed=("question", "answer", "image")),
    tsv("textvqa", "TextVQA_VAL.tsv", answer="['red', 'red', 'red', 'red']"),
    Sample("textvqa", "TextVQA_0.5.1_val.json", "under data",
           {"image_id": "a", "question": "What?", "question_id": 1, "answers": ["red"] * 10},
           {"train_images/a.jpg": png()}, {"question": None, "answers": 7},
           ("image_id", "question", "question_id", "answers")),
    Sample("textvqa", "dataset/textvqa/textvqa_val.jsonl", "lines",
           {**OWL, "image": "data/textvqa/train_images/a.jpg"},
           {"dataset/textvqa/textvqa_val_annotations.json": PEOPLE, "images/textvqa/text_vqa/a.jpg": png()},
           {"image": 3}, ("image", "question", "question_id")),
    Sample("textvqa", "data/validation-0.parquet", "parquet", {**IN_TABLE, "ocr_tokens": ["A"]},
           wrong={"question": 3, "ocr_tokens": 4}, needed=tuple(IN_TABLE)),
    tsv("mmmu", "MMMU_DEV_VAL.tsv", split="validation", category="Art", **CHOICE),
    Sample("mmmu", "Art/validation-0.parquet", "parquet",
           {"id": "validation_Art_1", "question": "Which is <image 1>?", "options": "['red', 'blue']", "answer": "A",
            "question_type": "multiple-choice", "image_1": STORED},
           wrong={"id": None, "options": "['red'", "answer": "Z", "image_1": 5},
           needed=("id", "question", "options", "answer", "question_type", "image_1")),
    Sample("mmmu_test", "Art/test-0.parquet", "parquet",
           {"id": "test_Art_1", "question": "Which is <image 1>?", "options": "['red', 'blue']", "answer": "?",
            "question_type": "multiple-choice", "image_1": STORED},
           {"answer_dict_test.json": b'{"test_Art_1": {"question_type": "multiple-choice", "ground_truth": "A"}}'},
           {"id": 5, "options": 3, "image_1": 5}, ("id", "question", "options", "question_type", "image_1")),
    Sample("mathvista", "testmini.json", "object", {"image": "images/1.jpg", **MATH}, {"images/1.jpg": png()},
           {"image": 5, "question_type": "multi_choice", "answer_type": "thing", "precision": "x", "metadata": 3},
           ("image", *MATH)),
    Sample("mathvista", "data/testmini-0.parquet", "parquet", {"pid": "1", "decoded_image": STORED, **MATH},
           wrong={"question": 4, "decoded_image": 4}, needed=("pid", "decoded_image", "question", "answer_type")),
    replace(tsv("mathvista", "MathVista_MINI.tsv", answer="1.5", choices="", question_type="free_form",
                answer_type="float", precision=1.0, unit="m", task="geometry"), wrong={"answer_type": "thing"}),
    Sample("nlvr2", "data/unbalanced_test_public-0.parquet", "parquet",
           {"question_id": "1", "question": "Both?", "answer": "True", "left_image": STORED, "right_image": STORED},
           wrong={"answer": "maybe", "left_image": 3, "question": 4}, needed=("question", "answer")),
    Sample("nlvr2", "test1.json", "lines", {"identifier": "test1-0-0-1", "sentence": "Both?", "label": "True"},
           {"test1/test1-0-0-img0.png": png(), "test1/test1-0-0-img1.png": png()}, {"label": "maybe", "sentence": 3},
           ("identifier", "sentence", "label")),
    _interleaved("mantis", "Mantis"),
    _interleaved("blink", "BLINK"),
    tsv("blink", "BLINK.tsv", **CHOICE),
    _interleaved("mathverse_mv", "MathVerse"),
    _interleaved("sciverse_mv", "SciVerse"),
    Sample("qbench2", "data/dev-0.parquet", "parquet",
           {"image1": STORED, "image2": STORED, "question": "Which?", "option0": "first", "option1": "second",
            "correct_choice": "B"}, wrong={"correct_choice": "Z", "image2": 3, "question": 4},
           needed=("image1", "image2", "question", "option0", "correct_choice")),
    *_pairs("vqav2", "v2_"),
    Sample("vqav2", "data/validation-0.parquet", "parquet", IN_TABLE, wrong={"question": 3}, needed=tuple(IN_TABLE)),
    *_pairs("okvqa", ""),
    Sample("okvqa", "data/val2014-0.parquet", "parquet", IN_TABLE, wrong={"image": 3}, needed=tuple(IN_TABLE)),
    Sample("vizwiz", "val.json", "list",
           {"image": "a.jpg", "question": "What?", "answers": TEN, "answer_type": "other"},
           {"val/a.jpg": png()}, {"answers": None, "image": 4, "question": None}, ("image", "question", "answers")),
    Sample("vizwiz", "data/val-0.parquet", "parquet", IN_TABLE, wrong={"image": 3}, needed=tuple(IN_TABLE)),
    tsv("vizwiz", "VizWiz.tsv", answers=str(["red"] * 10)),
    Sample("gqa", "testdev_balanced_questions.json", "object", {"imageId": "n1", "question": "What?", "answer": "red"},
           {"images/n1.jpg": png()}, {"question": None, "imageId": []}, ("imageId", "question", "answer")),
    Sample("gqa", "dataset/gqa/testdev_balanced.jsonl", "lines",
           {"image": "gqa/n1.jpg", "question": "What?", "question_id": 1, "answer": "red"},
           {"images/gqa/images/n1.jpg": png()}, {"image": 3, "question": 4}, ("image", "question", "answer")),
    tsv("gqa", "GQA_TestDev_Balanced.tsv", answer="red"),
    tsv("ocrbench", "OCRBench.tsv", answer="['CENTRE']", category="Regular Text Recognition"),
    Sample("ocrbench", "OCRBench.json", "list",
           {"image_path": "a/1.png", "question": "What?", "answers": ["CENTRE"], "type": "Regular Text Recognition"},
           {"OCRBench_Images/a/1.png": png()}, {"answers": None, "image_path": 4, "type": None},
           ("image_path", "question", "answers", "type")),
    tsv("docvqa", "DocVQA_VAL.tsv", answer="['John Smith']"),
    Sample("docvqa", "DocVQA/validation-0.parquet", "parquet", IN_TABLE, wrong={"question": 3}, needed=tuple(IN_TABLE)),
    tsv("infovqa", "InfoVQA_VAL.tsv", answer="['12 %', '12%']"),
    Sample("infovqa", "InfographicVQA/validation-0.parquet", "parquet", IN_TABLE, wrong={"question": 3},
           needed=tuple(IN_TABLE)),
    Sample("mmvet", "mm-vet.json", "object",
           {"imagename": "v1_0.png", "question": "What?", "answer": "red", "capability": ["ocr"]},
           {"images/v1_0.png": png()}, {"imagename": 1, "question": None, "capability": 3},
           ("imagename", "question", "answer")),
    tsv("mmvet", "MMVet.tsv", answer="red", category="ocr"),
    Sample("choices", "a.jsonl", "lines",
           {"question": "Which?", "options": ["red", "blue"], "answer": "A", "image_1": base64_png()},
           wrong={"options": {"A": "x"}, "answer": "Z", "question": 3}, needed=("answer",)),
    tsv("choices", "a.tsv", **CHOICE),
    Sample("messages", "a.jsonl", "lines", {"messages": [{"role": "user", "content": "What?"}], "answer": "red"},
           wrong={"messages": 5}, needed=("answer",)),
    Sample("video_choices", "a.jsonl", "lines",
           {"video": "v.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "A"}, {"v.mp4": b"x"},
           {"options": 3, "start": "x", "video": []}, ("video", "question", "options", "answer")),
]  # fmt: skip
"""Every form of every task."""
