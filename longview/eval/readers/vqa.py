"""Questions with short answers, as VQA, OK-VQA, VizWiz and GQA write them.

questions + annotations   {"questions": [{question_id, image_id, question}]}, {"annotations": [{question_id, answers}]}
VizWiz                    [{image, question, answers: [{answer}], answer_type}]
GQA                       {id: {question, imageId, answer}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown
from longview.eval.readers.columns import entries_of, under
from longview.eval.readers.files import Found
from longview.eval.readers.tables import read_json, read_rows

FOLDERS = (
    "val2014",
    "images/val2014",
    "mscoco/images/val2014",
    "images",
    "val",
    "test",
    "vizwiz/test",
    "gqa/images",
    "",
)


MMVET = ("images", "../../images/mmvet/images", "../images/mmvet/images")
"""Beside mm-vet.json; or as mPLUG-Owl's programs have them, beside `dataset/`."""


def late_picture(folder: Path, name: str, folders: Sequence[str] = FOLDERS) -> Shown:
    """A picture in one of the usual folders, looked for when it is shown."""

    def load() -> Path:
        for place in folders:
            if (folder / place / name).is_file():
                return folder / place / name
        raise RequestError(f"there is no {name} in {folder} or its folders {', '.join(folders[:4])}, …; fetch it")

    return Shown("image", load, name)


def read_pairs(pattern: str = "COCO_val2014_{:012d}.jpg") -> Callable[[Found], Iterator[Item]]:
    """Questions and annotations in files of their own; `pattern` makes a picture's name of its number."""

    def read(found: Found) -> Iterator[Item]:
        questions, annotations = found.paths[0][0], found.paths[1][0]
        truths = truths_of(annotations)
        kinds = {"question_id": "value", "question": "text", "image_id": "value", "image?": "text"}
        for row in under(questions, read_json(questions), "questions", kinds):
            id = str(row["question_id"])
            if id not in truths:
                raise RequestError(
                    f"{annotations} has no answers to question {id} of {questions}; give files of one split"
                )
            name = row.get("image") or _name(pattern, row["image_id"], f"{questions}, question {id}")
            answers, labels = truths[id]
            yield Item(id, row["question"], answers, (late_picture(found.folder, name),), labels=labels)

    return read


def _name(pattern: str, number: Any, where: str) -> str:
    """
    Raises:
        RequestError: the picture has no number.
    """
    if not str(number).isdigit():
        raise RequestError(f"{where}: image_id is {number!r:.40}; expected a whole number")
    return pattern.format(int(number))


def truths_of(annotations: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What people answered to each question of the annotations, and its labels."""
    kinds = {"question_id": "value", "answers": "list", "answer_type?": "text"}
    return {
        str(row["question_id"]): (people(row, row["answers"]), answer_type(row))
        for row in under(annotations, read_json(annotations), "annotations", kinds)
    }


def answer_type(row: Mapping[str, Any]) -> dict[str, str]:
    """A label, where the row has it."""
    return {"answer_type": str(row["answer_type"])} if row.get("answer_type") else {}


def people(where: Any, answers: Sequence[Any]) -> list[str]:
    """What several people answered, as texts or as {"answer": text}.

    Raises:
        RequestError: it is something else, or nobody answered.
    """
    found = [each.get("answer") if isinstance(each, Mapping) else each for each in answers]
    if not found or not all(isinstance(each, (str, int, float)) for each in found):
        raise RequestError(
            f"{where}: the answers are {answers!r:.40}; expected texts, or objects with an answer; fetch the file again"
        )
    return [str(each) for each in found]


def read_vizwiz(found: Found) -> Iterator[Item]:
    """The authors' annotations."""
    kinds = {"image": "text", "question": "text", "answers": "list", "answer_type?": "text"}
    for number, row in enumerate(read_rows(found.path, kinds)):
        answers, shown = people(row, row["answers"]), late_picture(found.folder, row["image"])
        yield Item(str(number), row["question"], answers, (shown,), labels=answer_type(row))


def read_gqa(found: Found) -> Iterator[Item]:
    """The authors' JSON by question."""
    kinds = {"imageId": "value", "question": "text", "answer": "value"}
    for id, row in entries_of(found.path, read_json(found.path), kinds):
        shown = late_picture(found.folder, f"{row['imageId']}.jpg")
        yield Item(id, row["question"], str(row["answer"]), (shown,))


def read_mmvet(found: Found) -> Iterator[Item]:
    """The authors' JSON with images/."""
    kinds = {"imagename": "text", "question": "text", "answer": "value", "capability?": "texts"}
    for id, row in entries_of(found.path, read_json(found.path), kinds):
        labels = {"capability": "+".join(map(str, row["capability"]))} if row.get("capability") else {}
        shown = late_picture(found.folder, row["imagename"], MMVET)
        yield Item(id, row["question"], str(row["answer"]), (shown,), labels=labels)
