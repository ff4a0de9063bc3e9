"""MME, POPE, TextVQA and MMMU on a handful of items in their real file formats."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from evaluations import COLOURS, base64_png, measure, oracle, png, write_tsv

from longview.errors import RequestError
from longview.eval.tasks import Options, find_task


def write_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def stored(colour: str) -> dict:
    """A picture as Hugging Face's datasets keep it."""
    return {"bytes": png(colour), "path": f"{colour}.png"}


# ── MME ──


def write_mme(folder: Path) -> None:
    """Two categories; in one the texts lie beside the pictures in folders of their own."""
    for category, sub in (("existence", True), ("OCR", False), ("code_reasoning", False)):
        for number in range(2):
            root = folder / "MME_Benchmark_release_version" / category
            images, texts = (root / "images", root / "questions_answers_YN") if sub else (root, root)
            images.mkdir(parents=True, exist_ok=True)
            texts.mkdir(parents=True, exist_ok=True)
            (images / f"{number:04}.png").write_bytes(png())
            questions = [("red", "Yes"), ("blue", "No")]
            lines = [f"Is the picture {colour}? Please answer yes or no.\t{truth}\n" for colour, truth in questions]
            (texts / f"{number:04}.txt").write_text("".join(lines))


def test_mme_counts_points_of_accuracy_and_of_whole_pictures(tmp_path):
    write_mme(tmp_path / "MME")
    found = measure("mme", oracle, tmp_path).numbers
    assert (found["score"], found["more"]) == (600, {"perception": 400, "cognition": 200})
    half = measure("mme", lambda item: "Yes" if item.labels["category"] == "OCR" else oracle(item), tmp_path).numbers
    assert half["more"]["perception"] == 200 + 50
    assert found["by"]["category"]["OCR"] == {"score": 200, "questions": 2}


def mme_rows() -> list[dict]:
    rows = []
    for category in ("existence", "code_reasoning"):
        for picture in range(2):
            for number, (colour, truth) in enumerate((("red", "Yes"), ("blue", "No"))):
                question = f"Is the picture {colour}? Please answer yes or no."
                index = len(rows)
                image = base64_png() if number == 0 else str(index - 1)
                rows.append({"index": index, "category": category, "image_path": f"{category}/{picture}.png",
                             "question": question, "answer": truth, "image": image})  # fmt: skip
    return rows


def test_mme_reads_vlmevalkits_tsv_and_always_yes_gets_half_the_accuracy_and_no_plus(tmp_path):
    write_tsv(tmp_path / "MME.tsv", mme_rows())
    found = measure("mme", oracle, tmp_path).numbers
    assert (found["score"], found["more"]) == (400, {"perception": 200, "cognition": 200})
    assert (found["questions"], found["answers"]) == (4, 8)
    always = measure("mme", lambda item: "Yes, it is.", tmp_path).numbers
    assert (always["score"], always["unparsed"]) == (100, 0)
    unclear = measure("mme", lambda item: "It may be", tmp_path).numbers
    assert (unclear["score"], unclear["unparsed"]) == (0, 100)


def test_mme_is_asked_as_mgm_and_ovis2_ask_it(tmp_path):
    write_tsv(tmp_path / "MME.tsv", mme_rows())
    task = find_task("mme")
    item = task.items(Options(tmp_path))[0]
    short = "Answer the question using a single word or phrase."
    assert task.protocols["mgm"].text(item) == f"<image>\nIs the picture red?\n{short}"
    assert task.protocols["ovis2"].text(item) == f"<image>\nIs the picture red? Please answer yes or no.\n{short}"


# ── POPE ──


def write_pope(folder: Path) -> None:
    (folder / "val2014").mkdir()
    for kind in ("random", "popular", "adversarial"):
        lines = []
        for number, colour in enumerate(("red", "blue") * 2):
            name = f"COCO_val2014_{number // 2:012}.jpg"
            (folder / "val2014" / name).write_bytes(png())
            label = "yes" if colour == "red" else "no"
            lines.append({"question_id": number + 1, "image": name, "text": f"Is there {colour}?", "label": label})
        (folder / f"coco_pope_{kind}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def fails_where_the_truth_is_no(item) -> str:
    if item.answer == "no":
        raise RequestError("broken")
    return "Yes"


def test_pope_counts_the_mean_f1_of_its_three_sets(tmp_path):
    write_pope(tmp_path)
    found = measure("pope", oracle, tmp_path).numbers
    assert (found["score"], found["answers"], set(found["by"]["category"])) == (
        100,
        12,
        {"random", "popular", "adversarial"},
    )
    yes = measure("pope", lambda item: "Yes", tmp_path).numbers
    assert yes["score"] == pytest.approx(200 / 3, abs=0.01)
    assert yes["more"] == {"accuracy": 50, "precision": 50, "recall": 100, "yes": 100}
    assert measure("pope", lambda item: "No", tmp_path).numbers["score"] == 0
    lost = measure("pope", fails_where_the_truth_is_no, tmp_path).numbers
    assert (lost["score"], lost["failed"]) == (yes["score"], 6)
    assert lost["more"] == {"accuracy": 50, "precision": 50, "recall": 100, "yes": 50}
    only = measure("pope", lambda item: "No" if item.labels["category"] == "random" else oracle(item), tmp_path).numbers
    assert only["score"] == pytest.approx(200 / 3, abs=0.01)


def test_pope_counts_words_that_are_neither_yes_nor_no_by_each_protocols_rule(tmp_path):
    write_pope(tmp_path)
    said = {"yes": "There is a lot.", "no": "No, there is none."}
    found = [measure("pope", lambda item: said[item.answer], tmp_path, protocol=p).numbers for p in ("owl3", "mgm")]
    assert [each["score"] for each in found] == [0, 100]
    assert [each["unparsed"] for each in found] == [50, 50]


def test_pope_reads_tables_and_tsv_to_the_same_questions(tmp_path):
    rows = [
        {"index": number, "question": f"Is there {colour} in the image?", "category": "popular",
         "answer": ("Yes", "No")[number % 2]}
        for number, colour in enumerate(COLOURS)
    ]  # fmt: skip
    suffix = " Please answer yes or no."
    write_tsv(
        tmp_path / "POPE.tsv", [{**row, "question": row["question"] + suffix, "image": base64_png()} for row in rows]
    )
    table = tmp_path / "table"
    write_parquet(table / "data" / "test-00000-of-00001.parquet", [{**row, "image": stored("red")} for row in rows])
    items = [find_task("pope").items(Options(folder)) for folder in (tmp_path, table)]
    mine, theirs = ([(item.question, item.answer, item.labels) for item in some] for some in items)
    assert mine == theirs
    assert items[0][3].shown[0].load() == items[1][3].shown[0].load() == png()
    owl3 = find_task("pope").protocols["owl3"]
    assert owl3.text(items[0][0]).endswith("in the image? Answer the question using a single word or phrase.")
    assert owl3.detail == "high"


# ── TextVQA ──


def write_textvqa(folder: Path) -> None:
    (folder / "train_images").mkdir(parents=True)
    rows = []
    for number, word in enumerate(("nokia", "exit")):
        (folder / "train_images" / f"im{number}.jpg").write_bytes(png())
        answers = [word] * 8 + ["a phone", "unanswerable"]
        rows.append({"question": f"What is written {number}?", "image_id": f"im{number}", "question_id": 34602 + number,
                     "answers": answers, "image_classes": ["Sign"]})  # fmt: skip
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"dataset_type": "val", "data": rows}))
    behind = "Reference OCR token: NOKIA, 3310\nAnswer the question using a single word or phrase."
    lines = [
        {"question_id": row["image_id"], "image": f"{row['image_id']}.jpg", "text": f"{row['question']}\n{behind}"}
        for row in rows
    ]
    (folder / "llava_textvqa_val_v051_ocr.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_textvqa_scores_agreement_with_ten_people_and_shows_mgm_the_words_of_ocr(tmp_path):
    write_textvqa(tmp_path / "textvqa")
    found = measure("textvqa", oracle, tmp_path).numbers
    assert (found["score"], found["questions"], found["metric"]) == (100, 2, "VQA accuracy")
    phone = measure("textvqa", lambda item: "A phone.", tmp_path).numbers
    assert phone["score"] == pytest.approx(30)
    task = find_task("textvqa")
    item = task.items(Options(tmp_path))[0]
    short = "Answer the question using a single word or phrase."
    assert task.protocols["mgm"].text(item) == f"<image>\nWhat is written 0?\nReference OCR token: NOKIA, 3310\n{short}"
    assert task.protocols["owl3"].text(item) == f"<image>What is written 0? {short}"
    assert task.protocols["ovis2"].max_partition == 12


def test_textvqa_reads_tables_and_tsv_too(tmp_path):
    answers = ["nokia"] * 9 + ["phone"]
    write_tsv(
        tmp_path / "TextVQA_VAL.tsv", [{"index": 1, "image": base64_png(), "question": "What?", "answer": answers}]
    )
    table = tmp_path / "table" / "data" / "validation-00000-of-00003.parquet"
    row = {"image_id": "x", "question_id": 7, "question": "What?", "image": stored("red"), "answers": answers,
           "ocr_tokens": ["NOKIA"]}  # fmt: skip
    write_parquet(table, [row])
    for folder in (tmp_path, tmp_path / "table"):
        (item,) = find_task("textvqa").items(Options(folder))
        assert item.answer == answers
        assert measure("textvqa", lambda item: "Nokia", folder).numbers["score"] == 100
    assert item.facts["ocr_tokens"] == ["NOKIA"]


def test_a_table_may_be_a_dataset_that_was_saved_to_disk(tmp_path):
    import datasets

    rows = [{"question": "Is it red?", "answer": "yes", "image": base64_png(), "category": "random"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert measure("pope", oracle, tmp_path / "saved").numbers["score"] == 100


# ── MMMU ──


def mmmu_row(number: int, **changes) -> dict:
    row = {
        "id": f"validation_Art_Theory_{number}",
        "question": "Which colour is <image 1>, not <image 2>?",
        "options": str(["red", "blue", "green"]),
        "explanation": "",
        **{f"image_{place}": None for place in range(1, 8)},
        "image_1": stored("red"),
        "image_2": stored("blue"),
        "img_type": "['Photographs']",
        "answer": "A",
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice",
        "subfield": "Art",
    }
    return row | changes


def test_mmmu_reads_a_folder_a_subject_and_puts_pictures_in_their_places(tmp_path):
    rows = [mmmu_row(1), mmmu_row(2, question="How many?", options="[]", answer="42", question_type="open")]
    write_parquet(tmp_path / "Art_Theory" / "validation-00000-of-00001.parquet", rows)
    found = measure("mmmu", oracle, tmp_path).numbers
    assert (found["score"], list(found["by"]["subject"])) == (100, ["Art_Theory"])
    said = {"validation_Art_Theory_1": "The answer is (A)", "validation_Art_Theory_2": "So the result is 42.0"}
    assert measure("mmmu", lambda item: said[item.id], tmp_path).numbers["score"] == 100
    task = find_task("mmmu")
    choice, _ = task.items(Options(tmp_path))
    assert task.protocols["ovis2"].text(choice) == (
        "Which colour is\n<image>\n, not\n<image>\n?\nA. red\nB. blue\nC. green\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (
        task.protocols["mgm"].text(choice).startswith("<image>\nWhich colour is <image 1>, not <image 2>?\n(A) red\n")
    )
    steps = task.protocols["ovis2-cot"].text(choice)
    assert steps.endswith("followed by the final solution.")
    assert "directly" not in steps


def test_an_mmmu_answer_that_no_rule_fits_is_an_option_by_chance_and_counted_as_not_understood(tmp_path):
    rows = [mmmu_row(number) for number in range(300)]
    write_parquet(tmp_path / "Art_Theory" / "validation-00000-of-00001.parquet", rows)
    first = measure("mmmu", lambda item: "hm", tmp_path).numbers
    assert first["unparsed"] == 100
    assert 25 < first["score"] < 42
    assert measure("mmmu", lambda item: "hm", tmp_path).numbers["score"] == first["score"]


def test_steps_before_the_answer_do_not_count(tmp_path):
    write_parquet(tmp_path / "Art_Theory" / "validation-00000-of-00001.parquet", [mmmu_row(1)])
    found = measure("mmmu", lambda item: "B is blue, C green; the answer is A", tmp_path, protocol="ovis2-cot")
    assert found.numbers["score"] == 100


def test_mmmus_test_split_has_its_truths_in_a_file_of_their_own(tmp_path):
    rows = [mmmu_row(1, id="test_Art_Theory_1", answer="?")]
    rows.append(mmmu_row(2, id="test_Art_Theory_2", options="[]", answer="?", question_type="open"))
    write_parquet(tmp_path / "Art_Theory" / "test-00000-of-00001.parquet", rows)
    with pytest.raises(RequestError, match=r"missing is answer_dict_test\.json"):
        find_task("mmmu_test").items(Options(tmp_path))
    truths = {"test_Art_Theory_1": {"question_type": "multiple-choice", "ground_truth": "B"}}
    (tmp_path / "answer_dict_test.json").write_text(json.dumps(truths))
    with pytest.raises(RequestError, match="no 'ground_truth' of test_Art_Theory_2"):
        find_task("mmmu_test").items(Options(tmp_path))
    truths["test_Art_Theory_2"] = {"question_type": "short-answer", "ground_truth": ["king", "a king"]}
    (tmp_path / "answer_dict_test.json").write_text(json.dumps(truths))
    said = {"test_Art_Theory_1": "The answer is (B)", "test_Art_Theory_2": "It is a king\n"}
    found = measure("mmmu_test", lambda item: said[item.id], tmp_path).numbers
    assert (found["score"], list(found["by"]["subject"])) == (100, ["Art_Theory"])
    assert measure("mmmu_test", lambda item: "C", tmp_path).numbers["score"] == 0


def test_mmmu_reads_vlmevalkits_tsv_without_its_other_splits(tmp_path):
    base = {"question": "Which is <image 1>?", "A": "red", "B": "blue", "answer": "A", "split": "validation"}
    pictures = str([base64_png("red"), base64_png("blue")])
    rows = [
        {"index": 1, "id": "validation_Art_1", "image": pictures, **base, "category": "Art"},
        {"index": 2, "id": "dev_Art_1", "image": base64_png(), **base, "split": "dev", "category": "Art"},
        {"index": 3, "id": "validation_Art_3", "image": base64_png(), **base, "A": "42", "B": "Other Answers"},
    ]
    write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    first, second = find_task("mmmu").items(Options(tmp_path))
    assert [shown.load() for shown in first.shown] == [png("red"), png("blue")]
    assert (second.options, second.answer) == ((), "42")


# ── what is wrong ──


@pytest.mark.parametrize(
    ("task", "files", "said"),
    [
        ("mathvista", {"testmini.json": "{}"}, r"missing is images/\*"),
        ("textvqa", {"TextVQA_0.5.1_val.json": "{}", "train_images/x": ""}, "has no list under 'data'"),
        ("mathvista", {"testmini.json": "[", "images/x": ""}, r"testmini.json is no JSON"),
        (
            "pope",
            {"coco_pope_random.json": '{"image": "x"}\n', "val2014/x": ""},
            "line 1 has no column 'question_id'.*needed are question_id, image, text, label",
        ),
        ("pope", {"coco_pope_random.json": "[1]", "val2014/x": ""}, "row 1 is 1; expected an object"),
        ("pope", {"coco_pope_random.json": "hm\n", "val2014/x": ""}, "line 1 is not JSON"),
        ("mmmu", {"MMMU_DEV_VAL.tsv": "index\tquestion\n"}, "needed are index, question, A, answer"),
        (
            "mme",
            {"MME.tsv": "index\tcategory\timage_path\tquestion\tanswer\n1\tOCR\ta.png\tq\tmaybe\n"},
            "expected yes or no",
        ),
        (
            "mme",
            {"MME.tsv": "index\tcategory\timage_path\tquestion\tanswer\n1\tOCR\n"},
            "row 1 has 2 cells, and its head",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_told_what_is_missing(tmp_path, task, files, said):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(Exception, match=said) as error:
        find_task(task).items(Options(tmp_path))
    assert isinstance(error.value, RequestError)
    assert "\n" not in str(error.value)
