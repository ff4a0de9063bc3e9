"""Questions about single pictures, in the files that their authors and LLaVA's evaluation have.

MME        MME_Benchmark_release_version/CATEGORY/…/NAME.txt: "question<tab>Yes", two a picture
POPE       coco_pope_{random,popular,adversarial}.json: lines of question_id, image, text, label; val2014/
TextVQA    TextVQA_0.5.1_val.json with train_images/; llava_textvqa_val_v051_ocr.jsonl has the words of OCR
MMMU       SUBJECT/validation-*.parquet
MathVista  testmini.json with images/
the same   as VLMEvalKit's TSV, or as Parquet with the pictures inside
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown, picture
from longview.eval.metrics import textvqa_key
from longview.eval.readers.files import Found
from longview.eval.readers.tables import filled, listed, options_of, read_json, read_rows, stored_picture
from longview.eval.readers.tsv import rows_with_pictures

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
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        for number, line in enumerate(filter(str.strip, lines)):
            question, tab, answer = line.rpartition("\t")
            if not tab:
                raise RequestError(f"{path}, line {number + 1} is {line!r:.60}; expected a question, a tab, Yes or No")
            group = f"{category}/{image.name}"
            truth = yes_or_no(path, answer)
            yield Item(f"{group}/{number}", question.strip(), truth, (picture(image, group),), group=group,
                       labels={"category": category})  # fmt: skip


def read_mme_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's."""
    needed = ("category", "image_path", "question", "answer")
    for row, shown in rows_with_pictures(found.path, needed):
        group = f"{filled(row, 'category')}/{Path(filled(row, 'image_path')).name}"
        yield Item(filled(row, "index"), filled(row, "question"), yes_or_no(row, filled(row, "answer")), shown,
                   group=group, labels={"category": filled(row, "category")})  # fmt: skip


# ── POPE ──


def read_pope(found: Found) -> Iterator[Item]:
    """The lines of its three files."""
    for path in found.paths[0]:
        category = path.stem.removeprefix("coco_pope_")
        for row in read_rows(path, ("image", "text", "label")):
            shown = picture(_below(found.folder, row["image"], "val2014", "images"), str(row["image"]))
            truth = yes_or_no(path, row["label"])
            yield Item(f"{category}/{row['question_id']}", row["text"], truth, (shown,), labels={"category": category})


def read_pope_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's."""
    for row, shown in rows_with_pictures(found.path, ("question", "answer", "category", "image|image_path")):
        question = re.sub(r"\s*Please answer yes or no\.?\s*$", "", filled(row, "question"))
        labels = {"category": filled(row, "category")}
        yield Item(filled(row, "index"), question, yes_or_no(row, filled(row, "answer")), shown, labels=labels)


def read_pope_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub."""
    for number, row in enumerate(found.rows(("question", "answer", "image"))):
        shown = stored_picture(row["image"], found.folder, str(row.get("image_source") or f"row {number + 1}"))
        labels = {"category": filled(row, "category")} if filled(row, "category") else {}
        yield Item(str(number), row["question"], yes_or_no(f"row {number + 1}", row["answer"]), (shown,), labels=labels)


# ── TextVQA ──


def read_textvqa(found: Found) -> Iterator[Item]:
    """The annotations, with LLaVA's question file for the words of OCR where it is there."""
    annotations = found.paths[0][0]
    words = {}
    for path in (found.folder / "llava_textvqa_val_v051_ocr.jsonl",):
        for row in read_rows(path, ("question_id", "text")) if path.is_file() else ():
            words[str(row["question_id"]), textvqa_key(row["text"])] = _ocr_tokens(row["text"])
    data = read_json(annotations)
    for row in data["data"] if isinstance(data, Mapping) and "data" in data else _refuse(annotations, "data"):
        name = f"{row['image_id']}.jpg"
        key = str(row["image_id"]), row["question"].lower()
        path = _below(found.folder, name, "train_images", "images")
        tokens = words.get(key, row.get("ocr_tokens", []))
        yield Item(str(row["question_id"]), row["question"], list(row["answers"]), (picture(path, name),),
                   facts={"ocr_tokens": tokens})  # fmt: skip


def _ocr_tokens(text: str) -> list[str]:
    line = re.search(r"^Reference OCR token: (.*)$", text, re.MULTILINE)
    return line[1].split(", ") if line and line[1] else []


def _refuse(path: Path, key: str) -> Any:
    raise RequestError(f"{path} has no list under {key!r}; fetch it again")


def read_vqa_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's TSV of questions with one answer, or those of several people."""
    for row, shown in rows_with_pictures(found.path, ("question", "answer", "image|image_path")):
        labels = {name: filled(row, name) for name in ("category", "split") if filled(row, name)}
        people = [str(answer) for answer in listed(filled(row, "answer"))]
        yield Item(filled(row, "index"), filled(row, "question"), people, shown, labels=labels)


def read_vqa_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub: answers of people as texts, or as {"answer": text}."""
    for number, row in enumerate(found.rows(("question", "answers|answer", "image"))):
        given = row.get("answers")
        people = [str(each["answer"] if isinstance(each, Mapping) else each) for each in given or [row.get("answer")]]
        id = str(row.get("question_id") or row.get("questionId") or number)
        shown = stored_picture(row["image"], found.folder, str(row.get("image_id") or f"row {number + 1}"))
        labels = {"answer type": filled(row, "answer_type")} if filled(row, "answer_type") else {}
        yield Item(id, row["question"], people, (shown,), labels=labels,
                   facts={"ocr_tokens": list(row.get("ocr_tokens") or ())})  # fmt: skip


# ── MMMU ──


def read_mmmu(found: Found) -> Iterator[Item]:
    """Parquet, a folder a subject."""
    for row in found.rows(("id", "question", "options", "answer", "question_type", "image_1")):
        shown = tuple(
            stored_picture(row[name], found.folder, f"{row['id']}, picture {number}")
            for number in range(1, 8)
            if row.get(name := f"image_{number}") is not None
        )
        yield _mmmu(row["id"], row, shown, "_".join(str(row["id"]).split("_")[1:-1]))


def read_mmmu_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's: validation alone; an open question has one option, or "Other Answers" as the second."""
    for row, shown in rows_with_pictures(found.path, ("question", "answer", "image|image_path")):
        if filled(row, "split") not in ("", "validation", "val"):
            continue
        options = options_of(row)
        is_open = len(options) < 2 or options[1] == "Other Answers" or filled(row, "question_type") == "open"
        answer = options[0] if is_open and options else filled(row, "answer")
        kind = "open" if is_open else "multiple-choice"
        sample = {"question": filled(row, "question"), "question_type": kind, "answer": answer}
        sample["options"] = [] if is_open else list(options)  # type: ignore[assignment]
        subject = filled(row, "category") or filled(row, "l2-category")
        yield _mmmu(filled(row, "id") or filled(row, "index"), sample, shown, subject)


def _mmmu(id: str, row: Mapping[str, Any], shown: tuple[Shown, ...], subject: str) -> Item:
    options = tuple(str(each) for each in listed(row["options"])) if row["question_type"] != "open" else ()
    answer = listed(row["answer"]) if not options and str(row["answer"]).startswith("[") else row["answer"]
    sample = {name: row[name] for name in ("question", "options", "question_type")}
    return Item(id, row["question"], answer, shown, options, labels={"subject": subject} if subject else {},
                facts={"sample": sample})  # fmt: skip


# ── MathVista ──

_MATHVISTA = ("question", "choices", "unit", "precision", "question_type", "answer_type", "answer")


def read_mathvista(found: Found) -> Iterator[Item]:
    """The authors' JSON, problems by their id."""
    problems = read_json(found.paths[0][0])
    if not isinstance(problems, Mapping):
        _refuse(found.paths[0][0], "1, 2, …")
    for id, problem in problems.items():
        yield _mathvista(str(id), problem, picture(found.folder / problem["image"], problem["image"]))


def read_mathvista_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub."""
    for row in found.rows(("pid", "decoded_image", *_MATHVISTA)):
        shown = stored_picture(row["decoded_image"], found.folder, str(row.get("image") or row["pid"]))
        yield _mathvista(str(row["pid"]), row, shown)


def _mathvista(id: str, row: Mapping[str, Any], shown: Shown) -> Item:
    meta = row.get("metadata") or {}
    labels = {name: str(meta[name]) for name in ("task", "category", "source") if meta.get(name)}
    problem = {name: row.get(name) for name in _MATHVISTA}
    return Item(id, row["question"], str(row["answer"]), (shown,), labels=labels, facts={"problem": problem})


def _below(folder: Path, name: str, *folders: str) -> Path:
    """A picture in the folder or one below it; the first of these, if it is in none."""
    places = [folder / below / name for below in (*folders, "")]
    return next((place for place in places if place.is_file()), places[0])


# ── OCRBench ──


def read_ocrbench(found: Found) -> Iterator[Item]:
    """The authors' JSON."""
    for number, row in enumerate(read_rows(found.path, ("image_path", "question", "answers", "type"))):
        shown = picture(_below(found.folder, row["image_path"], "OCRBench_Images"), row["image_path"])
        answers = [row["answers"]] if isinstance(row["answers"], str) else [str(each) for each in row["answers"]]
        yield Item(str(row.get("id", number)), row["question"], answers, (shown,), labels={"category": row["type"]})
