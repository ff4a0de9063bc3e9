"""Questions about single pictures, in the files that their authors and LLaVA's evaluation have.

MME        MME_Benchmark_release_version/CATEGORY/…/NAME.txt: "question<tab>Yes", two a picture
POPE       coco_pope_{random,popular,adversarial}.json: lines of question_id, image, text, label; val2014/
TextVQA    TextVQA_0.5.1_val.json with train_images/; llava_textvqa_val_v051_ocr.jsonl has the words of OCR
MMMU       SUBJECT/validation-*.parquet
the same   as VLMEvalKit's TSV, or as Parquet with the pictures inside
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown, picture
from longview.eval.metrics import textvqa_key
from longview.eval.readers.columns import either, under
from longview.eval.readers.files import Found
from longview.eval.readers.tables import (
    below,
    filled,
    listed,
    listed_options,
    options_of,
    read_json,
    read_rows,
    read_text,
    stored_picture,
)
from longview.eval.readers.truths import by_letter
from longview.eval.readers.tsv import rows_with_pictures
from longview.eval.readers.vqa import people

PICTURES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def yes_or_no(where: Any, answer: str) -> str:
    """
    Raises:
        RequestError: the truth is neither.
    """
    said = answer.strip().strip(".").lower()
    if said not in ("yes", "no"):
        raise RequestError(f"{where}: the answer is {answer!r:.40}; expected yes or no")
    return said


# ── MME ──


def read_mme(found: Found) -> Iterator[Item]:
    """The release's folders."""
    for path in found.paths[0]:
        parents = [part for part in path.relative_to(found.folder).parts[:-1] if part != "questions_answers_YN"]
        category = parents[-1] if parents else path.parent.name
        folders = (path.parent, path.parent.parent / "images")
        image = next((f / (path.stem + s) for f in folders for s in PICTURES if (f / (path.stem + s)).is_file()), None)
        if image is None:
            raise RequestError(f"there is no picture of {path}; expected {folders[0] / path.stem}.jpg or .png")
        lines = read_text(path).splitlines()
        for number, line in enumerate(filter(str.strip, lines)):
            question, tab, answer = line.rpartition("\t")
            if not tab:
                raise RequestError(f"{path}, line {number + 1} is {line!r:.60}; expected a question, a tab, Yes or No")
            group = f"{category}/{image.name}"
            truth = yes_or_no(f"{path}, line {number + 1}", answer)
            yield Item(f"{group}/{number}", question.strip(), truth, (picture(image, group),), group=group,
                       labels={"category": category})  # fmt: skip


def read_mme_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's."""
    needed = ("category", "image_path", "question", "answer")
    for row, shown in rows_with_pictures(found.path, needed):
        group = f"{filled(row, 'category')}/{Path(filled(row, 'image_path')).name}"
        yield Item(filled(row, "index"), filled(row, "question"), yes_or_no(row, filled(row, "answer")), shown,
                   group=group, labels={"category": filled(row, "category")})  # fmt: skip


def read_mme_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub: both questions of a picture have its id."""
    kinds = {"question_id": "value", "question": "text", "answer": "text", "category": "text", "image": "any"}
    numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
    for row in found.rows(kinds):
        group = f"{row['category']}/{Path(str(row['question_id'])).name}"
        shown = stored_picture(row, row["image"], found.folder, group)
        id, truth = f"{group}/{next(numbers[group])}", yes_or_no(row, row["answer"])
        yield Item(id, row["question"], truth, (shown,), group=group, labels={"category": row["category"]})


# ── POPE ──


def read_pope(found: Found) -> Iterator[Item]:
    """The lines of its three files."""
    kinds = {"question_id": "value", "image": "text", "text": "text", "label": "text"}
    for path in found.paths[0]:
        labels = {"category": path.stem.removeprefix("coco_pope_")}
        for row in read_rows(path, kinds):
            shown = picture(below(found.folder, row["image"], "val2014", "images"), row["image"])
            id = f"{labels['category']}/{row['question_id']}"
            yield Item(id, row["text"], yes_or_no(row, row["label"]), (shown,), labels=labels)


def read_pope_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's."""
    for row, shown in rows_with_pictures(found.path, ("question", "answer", "category", "image|image_path")):
        question = re.sub(r"\s*Please answer yes or no\.?\s*$", "", filled(row, "question"))
        labels = {"category": filled(row, "category")}
        yield Item(filled(row, "index"), question, yes_or_no(row, filled(row, "answer")), shown, labels=labels)


def read_pope_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub."""
    kinds = {"question": "text", "answer": "text", "image": "any"}
    for number, row in enumerate(found.rows(kinds)):
        shown = stored_picture(row, row["image"], found.folder, str(row.get("image_source") or f"row {number + 1}"))
        labels = {"category": filled(row, "category")} if filled(row, "category") else {}
        yield Item(str(number), row["question"], yes_or_no(row, row["answer"]), (shown,), labels=labels)


# ── TextVQA ──


def read_textvqa(found: Found) -> Iterator[Item]:
    """The annotations, with LLaVA's question file for the words of OCR where it is there."""
    annotations, lines = found.paths[0][0], found.folder / "llava_textvqa_val_v051_ocr.jsonl"
    words = {}
    for row in read_rows(lines, {"question_id": "value", "text": "text"}) if lines.is_file() else ():
        words[str(row["question_id"]), textvqa_key(row["text"])] = _ocr_tokens(row["text"])
    kinds = {"image_id": "value", "question_id": "value", "question": "text", "answers": "list", "ocr_tokens?": "list"}
    for row in under(annotations, read_json(annotations), "data", kinds):
        name = f"{row['image_id']}.jpg"
        key = str(row["image_id"]), row["question"].lower()
        path = below(found.folder, name, "train_images", "images")
        facts = {"ocr_tokens": words.get(key, row.get("ocr_tokens") or [])}
        answers = people(row, row["answers"])
        yield Item(str(row["question_id"]), row["question"], answers, (picture(path, name),), facts=facts)


def _ocr_tokens(text: str) -> list[str]:
    line = re.search(r"^Reference OCR token: (.*)$", text, re.MULTILINE)
    return line[1].split(", ") if line and line[1] else []


def read_vqa_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's TSV of questions with one answer, or those of several people."""
    for row, shown in rows_with_pictures(found.path, ("question", "answer|answers", "image|image_path")):
        labels = {name: filled(row, name) for name in ("category", "split") if filled(row, name)}
        given = row.get("answer") or row.get("answers") or ""
        answers = people(row, listed(given) if given.strip() else [])
        yield Item(filled(row, "index"), filled(row, "question"), answers, shown, labels=labels)


def read_vqa_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub: answers of people as texts, or as {"answer": text}."""
    kinds = {"question": "text", "answers|answer": "list|value", "image": "any", "ocr_tokens?": "list"}
    for number, row in enumerate(found.rows(kinds)):
        given = either(row, "answers", "answer")
        answers = people(row, given if isinstance(given, list) else [given])
        id = str(either(row, "question_id", "questionId", default=number))
        shown = stored_picture(row, row["image"], found.folder, str(row.get("image_id") or f"row {number + 1}"))
        labels = {"answer type": filled(row, "answer_type")} if filled(row, "answer_type") else {}
        facts = {"ocr_tokens": list(row.get("ocr_tokens") or ())}
        yield Item(id, row["question"], answers, (shown,), labels=labels, facts=facts)


# ── MMMU ──


MMMU = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science",
    "Biology", "Chemistry", "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine",
    "Economics", "Electronics", "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage",
    "Marketing", "Materials", "Math", "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology",
    "Public_Health", "Sociology",
)  # fmt: skip
"""Its subjects, each a subset on the hub."""

_MMMU = {
    "id": "text",
    "question": "text",
    "options": "texts|text",
    "answer": "texts|text",
    "question_type": "text",
    "image_1": "any",
}


def read_mmmu(found: Found) -> Iterator[Item]:
    """Parquet, a folder a subject."""
    for row in found.rows(_MMMU):
        yield mmmu_item(row.where, row, found.folder)


def mmmu_item(where: str, row: Mapping[str, Any], folder: Path) -> Item:
    """The question of a row of its Parquet.

    Raises:
        RequestError: a picture, the options or the truth are not what they should be.
    """
    shown = tuple(
        stored_picture(where, row[name], folder, f"{row['id']}, picture {number}")
        for number in range(1, 8)
        if row.get(name := f"image_{number}") is not None
    )
    return _mmmu(where, row["id"], row, shown, "_".join(row["id"].split("_")[1:-1]))


def read_mmmu_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's: validation alone; an open question has one option, or "Other Answers" as the second."""
    for row, shown in rows_with_pictures(found.path, ("question", "A", "answer", "image|image_path")):
        if filled(row, "split") not in ("", "validation", "val"):
            continue
        options = options_of(row)
        is_open = len(options) < 2 or options[1] == "Other Answers" or filled(row, "question_type") == "open"
        answer = options[0] if is_open and options else filled(row, "answer")
        kind = "open" if is_open else "multiple-choice"
        sample = {"question": filled(row, "question"), "question_type": kind, "answer": answer}
        sample["options"] = [] if is_open else list(options)  # type: ignore[assignment]
        subject = filled(row, "category") or filled(row, "l2-category")
        yield _mmmu(row.where, filled(row, "id") or filled(row, "index"), sample, shown, subject)


def _mmmu(where: str, id: str, row: Mapping[str, Any], shown: tuple[Shown, ...], subject: str) -> Item:
    options: tuple[str, ...] = ()
    if row["question_type"] != "open":
        options = tuple(str(each) for each in listed_options(where, row["options"]))
        answer: Any = by_letter(where, row["answer"], options)
    else:
        answer = listed(row["answer"]) if str(row["answer"]).startswith("[") else row["answer"]
    sample = {name: row[name] for name in ("question", "options", "question_type")}
    return Item(id, row["question"], answer, shown, options, labels={"subject": subject} if subject else {},
                facts={"sample": sample})  # fmt: skip


# ── OCRBench ──


def read_ocrbench(found: Found) -> Iterator[Item]:
    """The authors' JSON."""
    kinds = {"image_path": "text", "question": "text", "answers": "list|value", "type": "text", "id?": "value"}
    for number, row in enumerate(read_rows(found.path, kinds)):
        shown = picture(below(found.folder, row["image_path"], "OCRBench_Images"), row["image_path"])
        answers = people(row, row["answers"] if isinstance(row["answers"], list) else [row["answers"]])
        id = str(either(row, "id", default=number))
        yield Item(id, row["question"], answers, (shown,), labels={"category": row["type"]})
