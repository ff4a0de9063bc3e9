"""Questions with short answers, as VQA, OK-VQA, VizWiz and GQA write them.

questions + annotations   {"questions": [{question_id, image_id, question}]}, {"annotations": [{question_id, answers}]}
VizWiz                    [{image, question, answers: [{answer}], answer_type}]
GQA                       {id: {question, imageId, answer}}, or lines of question_id, image, question (or text), answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown, picture
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


def late_picture(folder: Path, name: str) -> Shown:
    """A picture in one of the usual folders, looked for when it is shown."""

    def load() -> Path:
        for place in FOLDERS:
            if (folder / place / name).is_file():
                return folder / place / name
        raise RequestError(f"there is no {name} in {folder} or its folders {', '.join(FOLDERS[:4])}, …; fetch it")

    return Shown("image", load, name)


def read_pairs(pattern: str = "COCO_val2014_{:012d}.jpg") -> Callable[[Found], Iterator[Item]]:
    """Questions and annotations in files of their own; `pattern` makes a picture's name of its number."""

    def read(found: Found) -> Iterator[Item]:
        questions, annotations = found.paths[0][0], found.paths[1][0]
        truths = truths_of(annotations)
        for row in _under(questions, "questions"):
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
    return {
        str(each["question_id"]): (
            people(each["answers"]),
            {"answer_type": str(each["answer_type"])} if each.get("answer_type") else {},
        )
        for each in _under(annotations, "annotations")
    }


def people(answers: Any) -> list[str]:
    """What several people answered, as texts or as {"answer": text}."""
    return [str(each["answer"] if isinstance(each, Mapping) else each) for each in answers]


def read_vizwiz(found: Found) -> Iterator[Item]:
    """The authors' annotations."""
    for number, row in enumerate(read_rows(found.path, ("image", "question", "answers"))):
        labels = {"answer_type": row["answer_type"]} if row.get("answer_type") else {}
        yield Item(str(number), row["question"], people(row["answers"]), (late_picture(found.folder, row["image"]),),
                   labels=labels)  # fmt: skip


def read_gqa(found: Found) -> Iterator[Item]:
    """The authors' JSON by question, or lines."""
    if found.path.suffix == ".json":
        data = read_json(found.path)
        if not isinstance(data, Mapping):
            raise RequestError(
                f"{found.path} is no object of questions by their ids; give testdev_balanced_questions.json"
            )
        for id, row in data.items():
            yield Item(str(id), row["question"], row["answer"], (late_picture(found.folder, f"{row['imageId']}.jpg"),))
        return
    for number, row in enumerate(read_rows(found.path, ("image", "question|text", "answer"))):
        question = str(row.get("question") or row["text"]).partition("\n")[0]
        yield Item(str(row.get("question_id", number)), question, str(row["answer"]),
                   (late_picture(found.folder, Path(str(row["image"])).name),))  # fmt: skip


def _under(path: Path, key: str) -> list[Any]:
    data = read_json(path)
    if not isinstance(data, Mapping) or not isinstance(data.get(key), list):
        raise RequestError(f"{path} has no list under {key!r}; give the file of {key}")
    if not all(isinstance(row, Mapping) for row in data[key]):
        raise RequestError(f"{path}: the list under {key!r} holds what is no object; fetch it again")
    return data[key]


def read_mmvet(found: Found) -> Iterator[Item]:
    """The authors' JSON with images/."""
    for id, row in read_json(found.path).items():
        shown = picture(found.folder / "images" / row["imagename"], row["imagename"])
        labels = {"capability": "+".join(row["capability"])} if row.get("capability") else {}
        yield Item(str(id), row["question"], str(row["answer"]), (shown,), labels=labels)
