"""VQAv2, OK-VQA, VizWiz, GQA, OCRBench, DocVQA, MM-Vet, AI2D, MMStar and HallusionBench in their real file formats."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from evaluations import base64_png, measure, mmbench_rows, oracle, png, write_tsv

from longview.errors import RequestError
from longview.eval import metrics
from longview.eval.ask import GoneError
from longview.eval.judge import Judge, mmvet_read
from longview.eval.report.markdown import facts
from longview.eval.run import check_judge
from longview.eval.tasks import Options, find_task

TEN = [{"answer": "red", "answer_confidence": "yes", "answer_id": n} for n in range(1, 9)]
TEN += [{"answer": "dark red", "answer_id": 9}, {"answer": "unanswerable", "answer_id": 10}]


def write(folder: Path, name: str, data) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


@pytest.mark.parametrize(
    ("task", "questions", "annotations"),
    [
        ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
        ("okvqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
    ],
)
def test_questions_and_annotations_of_vqa_belong_together(tmp_path, task, questions, annotations):
    rows = [{"image_id": 262148, "question": f"What colour {n}?", "question_id": 262148000 + n} for n in range(2)]
    truths = [
        {"question_id": row["question_id"], "answers": TEN, "answer_type": "other", "image_id": 262148} for row in rows
    ]
    write(tmp_path, questions, {"questions": rows})
    write(tmp_path, annotations, {"annotations": truths})
    write(tmp_path, "val2014/COCO_val2014_000000262148.jpg", png())
    found = measure(task, oracle, tmp_path).numbers
    assert (found["score"], found["questions"], found["failed"]) == (100, 2, 0)
    assert measure(task, lambda item: "Dark red.", tmp_path).numbers["score"] == pytest.approx(30)
    write(tmp_path, annotations, {"annotations": truths[:1]})
    with pytest.raises(RequestError, match="has no answers to question 262148001"):
        find_task(task).items(Options(tmp_path))


def test_vizwiz_asks_for_unanswerable_and_gives_a_missing_picture_its_own_error(tmp_path):
    rows = [
        {"image": f"VizWiz_val_{n:08}.jpg", "question": "What?", "answers": TEN, "answer_type": "other"}
        for n in range(2)
    ]
    write(tmp_path, "val.json", rows)
    write(tmp_path, "val/VizWiz_val_00000000.jpg", png())
    found = measure("vizwiz", oracle, tmp_path)
    assert (found.numbers["score"], found.numbers["failed"]) == (50, 1)
    assert "there is no VizWiz_val_00000001.jpg" in found.samples[1]["error"]
    assert "respond with 'Unanswerable'. Answer" in found.samples[0]["prompt"]


def test_gqa_reads_the_authors_json_and_lines_and_compares_words(tmp_path):
    write(
        tmp_path,
        "testdev_balanced_questions.json",
        {"201307251": {"imageId": "n161313", "question": "Is it?", "answer": "yes"}},
    )
    write(tmp_path, "images/n161313.jpg", png())
    assert measure("gqa", lambda item: "Yes.", tmp_path).numbers["score"] == 100
    assert measure("gqa", lambda item: "yes it may be", tmp_path).numbers["score"] == 0
    assert measure("gqa", lambda item: "Yes, it is", tmp_path).numbers["score"] == 100
    assert measure("gqa", lambda item: "Yes, it is", tmp_path, protocol="mgm").numbers["score"] == 0
    lines = {"question_id": 1, "image": "n161313.jpg", "question": "Is it?", "answer": "yes"}
    write(tmp_path / "lines", "testdev_balanced.jsonl", lines)
    write(tmp_path / "lines", "gqa/images/n161313.jpg", png())
    assert measure("gqa", oracle, tmp_path / "lines").numbers["score"] == 100


def test_ocrbench_looks_for_the_truth_in_the_answer(tmp_path):
    formula = "Handwritten Mathematical Expression Recognition"
    rows = [
        {"index": 1, "image": base64_png(), "question": "what is written in the image?", "answer": "['CENTRE']",
         "category": "Regular Text Recognition"},
        {"index": 2, "image": base64_png(), "question": "Write it in LaTeX.", "answer": r"['\frac { a } { b }']",
         "category": formula},
    ]  # fmt: skip
    write_tsv(tmp_path / "OCRBench.tsv", rows)
    said = {"1": "It says Centre.", "2": r"\frac{a}{b}"}
    assert measure("ocrbench", lambda item: said[item.id], tmp_path).numbers["score"] == 100
    said["2"] = r"\frac{A}{b}"
    assert measure("ocrbench", lambda item: said[item.id], tmp_path).numbers["by"]["category"][formula]["score"] == 0
    assert find_task("ocrbench").protocols["ovis2"].max_partition == 12


def test_documents_are_scored_by_letters(tmp_path):
    write_tsv(
        tmp_path / "DocVQA_VAL.tsv",
        [{"index": 1, "image": base64_png(), "question": "Who?", "answer": "['John Smith']"}],
    )
    assert measure("docvqa", lambda item: "john smith", tmp_path).numbers["score"] == 100
    assert measure("docvqa", lambda item: "Jon Smith", tmp_path).numbers["score"] == 90
    assert measure("docvqa", lambda item: "nobody", tmp_path).numbers["score"] == 0


ANLS = [
    ("Hello World", ["hello world"], 1),
    ("hello", ["hullo", "x"], 0.8),
    ("a", ["b"], 0),
    ("abcd", ["ab"], 0.5),
    ("John  Smith", ["john smith", "J. Smith"], 1),
    ("12.5 %", ["12.5%"], 5 / 6),
]


@pytest.mark.parametrize(("answer", "truths", "score"), ANLS)
def test_anls_counts_from_one_half_up(answer, truths, score):
    assert metrics.anls(answer, truths) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1),
        ("the cat", "the cat sat", 0.8),
        ("一只红色的猫", "红色的猫", 0.8),
        ("猫", "狗", 0),
        ("猫坐在 mat", "猫 坐 在 mat", 1),
        ("", "x", 0),
        ("a c b", "a b c", 2 / 3),
        ("a a", "a b", 0.5),
    ],
)
def test_rouge_l_counts_words_and_chinese_characters(answer, truth, score):
    assert metrics.rouge_l(answer, truth) == pytest.approx(score, abs=0.001)


# ── choices ──


def test_ai2d_reads_tables_with_numbers_and_tsv_with_letters(tmp_path):
    rows = [
        {"question": "Which?", "options": ["a", "b", "c", "d"], "answer": "2", "image": {"bytes": png(), "path": None}}
    ]
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert measure("ai2d", lambda item: "C", tmp_path).numbers["score"] == 100
    write_tsv(tmp_path / "AI2D_TEST.tsv", mmbench_rows(3))
    found = measure("ai2d", oracle, tmp_path)
    assert (found.numbers["score"], found.numbers["answers"]) == (100, 3)
    assert found.samples[0]["prompt"].startswith("<image>\nQuestion: ")


def test_mmstar_is_no_circular_evaluation(tmp_path):
    write_tsv(tmp_path / "MMStar.tsv", mmbench_rows(6))
    found = measure("mmstar", lambda item: "A", tmp_path).numbers
    assert (found["answers"], found["metric"]) == (6, "accuracy")
    assert found["score"] > 0


def hallusion_rows() -> list[dict]:
    """Two figures of one set, two questions about each."""
    return [
        {"index": f"VS_chart_3_{figure}_{question}", "image": base64_png(), "question": f"Is it {question}?",
         "answer": ("Yes", "No")[figure], "category": "VS", "l2-category": "chart"}
        for figure in range(2)
        for question in range(2)
    ]  # fmt: skip


def test_hallusionbench_counts_answers_figures_and_questions(tmp_path):
    write_tsv(tmp_path / "HallusionBench.tsv", hallusion_rows())
    always = measure("hallusionbench", lambda item: "Yes", tmp_path).numbers
    assert always["more"] == {"aAcc": 50, "fAcc": 50, "qAcc": 0}
    assert always["score"] == pytest.approx(100 / 3, abs=0.01)
    assert measure("hallusionbench", oracle, tmp_path).numbers["score"] == 100


def test_hallusionbench_asks_some_questions_without_a_picture(tmp_path):
    base = {"category": "VD", "subcategory": "illusion", "set_id": "0", "question_id": "0", "question": "Same length?"}
    rows = [
        {**base, "figure_id": "0", "visual_input": "0", "filename": None, "gt_answer": "1"},
        {
            **base,
            "figure_id": "1",
            "visual_input": "1",
            "filename": "./hallusion_bench/VD/illusion/0_1.png",
            "gt_answer": "0",
        },
    ]
    write(tmp_path, "HallusionBench.json", rows)
    write(tmp_path, "hallusion_bench/VD/illusion/0_1.png", png())
    found = measure("hallusionbench", oracle, tmp_path)
    assert (found.numbers["score"], found.numbers["failed"]) == (100, 0)
    assert [sample["prompt"].count("<image>") for sample in found.samples] == [0, 1]


# ── judges ──


class Grader:
    """A judge's server, scripted."""

    model, address = "grader", "http://127.0.0.1:1"

    def __init__(self, reply) -> None:
        self.reply, self.asked = reply, []

    def complete(self, messages, max_tokens):
        self.asked.append(messages[0]["content"])
        content = self.reply(messages[0]["content"])
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=content))])


@pytest.fixture
def mmvet(tmp_path) -> Path:
    rows = {
        f"v1_{n}": {
            "imagename": f"v1_{n}.png",
            "question": "What is x?",
            "answer": "-1 <AND> -5",
            "capability": ["ocr", "math"] if n else ["ocr"],
        }
        for n in range(3)
    }
    write(tmp_path, "mm-vet/mm-vet.json", rows)
    for n in range(3):
        write(tmp_path, f"mm-vet/images/v1_{n}.png", png())
    return tmp_path


def test_mmvet_is_graded_by_a_judge_who_is_named_in_the_result(mmvet, tmp_path):
    grader = Grader(lambda text: "0.5" if "Answer: one" in text else "Grade: 1.0")
    said = {"v1_0": "one", "v1_1": "both", "v1_2": "both"}
    run = tmp_path / "run"
    found = measure("mmvet", lambda item: said[item.id], mmvet, run, judge=Judge(grader))
    assert found.numbers["score"] == pytest.approx(100 * 2.5 / 3, abs=0.01)
    assert found.numbers["judge"] == "grader at http://127.0.0.1:1"
    assert found.samples[0]["judge"] == "0.5"
    assert found.numbers["more"] == {"math": 100, "ocr": 83.33}
    assert set(found.numbers["by"]["capability"]) == {"ocr", "ocr+math"}
    assert "-1 <AND> -5" in grader.asked[0]
    again = Grader(lambda text: pytest.fail("asked again"))
    assert (
        measure("mmvet", lambda item: pytest.fail("asked"), mmvet, run, judge=Judge(again)).numbers["score"]
        == found.numbers["score"]
    )


def test_a_judge_that_does_not_answer_loses_no_answer(mmvet, tmp_path):
    def gone(text):
        raise GoneError("http://127.0.0.1:1 does not answer")

    with pytest.raises(RequestError, match=r"does not answer; finished answers are kept in .*run$"):
        measure("mmvet", lambda item: "x", mmvet, tmp_path / "run", judge=Judge(Grader(gone)))
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3
    found = measure(
        "mmvet", lambda item: pytest.fail("asked again"), mmvet, tmp_path / "run", judge=Judge(Grader(lambda t: "1"))
    )
    assert found.numbers["score"] == 100


def refuses_first(text):
    if "Answer: one" in text:
        raise RequestError("http://127.0.0.1:1 says 400: not this one")
    return "1.0"


def test_an_answer_that_the_needed_judge_refuses_fails_and_is_judged_again(mmvet, tmp_path):
    said = {"v1_0": "one", "v1_1": "both", "v1_2": "both"}
    run = tmp_path / "run"
    found = measure("mmvet", lambda item: said[item.id], mmvet, run, judge=Judge(Grader(refuses_first)))
    assert (found.numbers["failed"], found.numbers["unjudged"], found.numbers["unparsed"]) == (1, 1, 33.33)
    first = found.samples[0]
    assert (first["answer"], first["understood"], first["score"]) == ("one", False, 0)
    assert first["error"] == "the judge: http://127.0.0.1:1 says 400: not this one"
    assert dict(facts(found.numbers))["not judged"].startswith("1 answer: the judge failed")
    again = Grader(lambda text: "0.5")
    found = measure("mmvet", lambda item: pytest.fail("asked again"), mmvet, run, judge=Judge(again))
    assert len(again.asked) == 1
    assert (found.numbers["failed"], found.samples[0]["judge"]) == (0, "0.5")
    assert found.numbers["score"] == 83.33
    assert "error" not in found.samples[0]
    assert "unjudged" not in found.numbers


def test_a_task_that_needs_a_judge_is_not_run_without(mmvet):
    with pytest.raises(RequestError, match="graded by a judge"):
        measure("mmvet", lambda item: pytest.fail("asked"), mmvet)


@pytest.mark.parametrize(
    ("reply", "value"), [("0.7", 0.7), ("Grade: 1.0", 1), ("1", 1), ("0", 0), ("good", None), (".3", 0.3)]
)
def test_a_grade_is_read_from_a_reply(reply, value):
    assert mmvet_read(None, reply).value == value


def test_a_judge_is_asked_for_where_it_is_needed_and_refused_where_not():
    with pytest.raises(RequestError, match="graded by a judge; name an OpenAI-compatible server with --judge"):
        check_judge(find_task("mmvet"), False)
    with pytest.raises(RequestError, match="scored by rules"):
        check_judge(find_task("pope"), True)
    check_judge(find_task("mathvista"), False)
    check_judge(find_task("mathvista"), True)


def test_mathvistas_judge_is_asked_only_where_no_rule_is_sure(tmp_path):
    base = {"image": "images/1.jpg", "unit": None, "choices": None, "precision": None, "question_type": "free_form",
            "answer_type": "integer", "metadata": {}}  # fmt: skip
    problems = {str(n): {**base, "question": f"How many {n}?", "answer": "14"} for n in range(3)}
    write(tmp_path, "testmini.json", problems)
    write(tmp_path, "images/1.jpg", png())
    grader = Grader(lambda text: "14")
    said = {"0": "14", "1": "First 14, then 3 more are painted over", "2": "many"}
    found = measure("mathvista", lambda item: said[item.id], tmp_path, judge=Judge(grader)).numbers
    assert (found["score"], found["unparsed"]) == (100, 0)
    assert len(grader.asked) == 2
    assert measure("mathvista", lambda item: said[item.id], tmp_path).numbers["score"] == 33.33

    def refuses(text):
        raise RequestError("not this one")

    found = measure("mathvista", lambda item: said[item.id], tmp_path, judge=Judge(Grader(refuses))).numbers
    assert (found["score"], found["failed"], found["unjudged"]) == (33.33, 0, 2)  # the rules' verdicts stay
