"""VLMEvalKit's TSV and the authors' files of one benchmark are the same questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmarks import SAMPLES
from evaluations import base64_png, measure, oracle, png, write_tsv

from longview.eval.items import Item
from longview.eval.metrics import mathvista_query
from longview.eval.tasks import Options, find_task


def items(task: str, folder: Path) -> list[Item]:
    return find_task(task).items(Options(folder))


def said(found: list[Item]) -> list[Any]:
    return [(item.id, item.question, item.options, item.answer, item.labels) for item in found]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def test_mvbench(tmp_path):
    sources = {
        "Action Antonym": ("ssv2_video", {"video": "1.mp4"}),
        "Action Sequence": ("star/Charades_v1_480", {"video": "2.mp4", "start": 0.5, "end": 1.5}),
        "Episodic Reasoning": ("tvqa/frames_fps3_hq", {"video": "friends", "start": 1.0, "end": 2.0}),
    }
    rows = []
    for task, (source, row) in sources.items():
        row |= {"question": "What?", "candidates": ["It moves.", 'It\'s "still".'], "answer": 'It\'s "still".'}
        write(tmp_path / f"json/{task.lower().replace(' ', '_')}.json", [row])
        for name in [row["video"]] if "." in row["video"] else [f"friends/{n:05}.jpg" for n in range(1, 10)]:
            write(tmp_path / "video" / source / name, png())
        rows.append({"task_type": task, "prefix": f"video/{source}/", "data_type": "video", "bound": "start" in row,
                     "start": row.get("start", ""), "end": row.get("end", ""), "index": len(rows), **row,
                     "candidates": str(row["candidates"])})  # fmt: skip
    expected = items("mvbench", tmp_path)
    assert len(expected) == 3
    write_tsv(tmp_path / "MVBench.tsv", rows)
    shutil.rmtree(tmp_path / "json")
    found = items("mvbench", tmp_path)
    assert said(found) == said(expected)
    parts, others = ([item.shown[0].part() for item in some] for some in (found, expected))
    assert [part.source for part in parts] == [part.source for part in others]
    assert [item.shown[0].start for item in found] == [None, 0.5, None]


def test_mlvu(tmp_path):
    row = {"video": "a.mp4", "duration": 480, "question": "What colour?", "candidates": ["Red", "It's blue"]}
    rows = [{**row, "answer": "Red"}, {**row, "answer": "It's blue"}]
    write(tmp_path / "MLVU/video/1_plotQA/a.mp4", b"x")
    write(tmp_path / "MLVU/json/1_plotQA.json", [{**row, "question_type": "plotQA"} for row in rows])
    expected = items("mlvu", tmp_path)
    assert [item.answer for item in expected] == ["A", "B"]
    table = [
        {"task_type": "plotQA", "prefix": "./MLVU/video/1_plotQA", **row, "candidates": str(row["candidates"])}
        for row in rows
    ]
    write_tsv(tmp_path / "MLVU_MCQ.tsv", table)
    shutil.rmtree(tmp_path / "MLVU" / "json")
    assert said(items("mlvu", tmp_path)) == said(expected)
    assert measure("mlvu", oracle, tmp_path).numbers["failed"] == 0


def test_longvideobench(tmp_path):
    folders = [
        next(each for each in SAMPLES if each.file == file).write(tmp_path / file)
        for file in ("lvb_val.json", "LongVideoBench.tsv")
    ]
    first, second = (items("longvideobench", folder) for folder in folders)
    assert said(first) == said(second)


PROBLEMS = {
    "1": {"question": "How many?", "answer_type": "integer", "answer": "14"},
    "2": {"question": "How long?", "answer_type": "float", "precision": 1.0, "answer": "1.2", "unit": "m"},
    "3": {"question": "Which?", "answer_type": "text", "answer": "8/11", "question_type": "multi_choice",
          "choices": ["3/11", "8/11"]},
    "4": {"question": "Between which years?", "answer_type": "list", "answer": "[2007, 2008]"},
}  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_mathvista_whether_its_questions_have_the_hint_or_not(tmp_path, whole):
    empty = {"image": "images/1.jpg", "unit": None, "choices": None, "precision": None, "question_type": "free_form"}
    metadata = {"task": "geometry problem solving", "category": "math-targeted-vqa", "source": "made"}
    problems = {id: {**empty, **problem, "metadata": metadata} for id, problem in PROBLEMS.items()}
    write(tmp_path / "json/testmini.json", problems)
    write(tmp_path / "json/images/1.jpg", png())
    expected = items("mathvista", tmp_path / "json")
    rows = []
    for item in expected:
        problem = item.facts["problem"]
        row = {"index": item.id, "image": base64_png(), "question": item.question, "choices": problem["choices"] or "",
               **{key: problem[key] for key in ("question_type", "answer_type", "answer")}, **metadata}  # fmt: skip
        more = {"unit": problem["unit"] or "", "precision": problem["precision"] or ""}
        rows.append(row | ({"question": mathvista_query(problem)} if whole else more))
    (tmp_path / "tsv").mkdir()
    write_tsv(tmp_path / "tsv" / "MathVista_MINI.tsv", rows)
    found = items("mathvista", tmp_path / "tsv")
    assert said(found) == said(expected)
    queries = [[mathvista_query(item.facts["problem"]) for item in some] for some in (found, expected)]
    assert queries[0] == queries[1]
    assert [item.facts["problem"]["precision"] for item in found] == [None, 1, None, None]
