"""VQA and POPE in the files of mPLUG-Owl's evaluation programs, which stand in `dataset/` (mPLUG-Owl2: `data/`).

a JSON list or lines          image, question, question_id, answer; or images, query, data_id
okvqa/okvqa_val.json          with mscoco_val2014_annotations.json
vqav2/vqav2_val.json          with v2_mscoco_val2014_annotations.json
textvqa/textvqa_val.json      with textvqa_val_annotations.json
pope/ImageQA_POPE_*.jsonl     random, popular, adversarial; the answer is yes or no

Pictures are named by paths of the authors' machines. They are looked for there, and by their names in the folders that
the programs read: images/mscoco/images/val2014, images/textvqa/text_vqa, …
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown
from longview.eval.readers.files import Found
from longview.eval.readers.pictures import yes_or_no
from longview.eval.readers.tables import read_rows
from longview.eval.readers.vqa import truths_of

COLUMNS = ("image|images", "question|query", "question_id|data_id")
PLACES = (
    "images/mscoco/images/val2014", "images/textvqa/text_vqa", "data/coco/val2014", "data/textvqa/train_images",
    "val2014", "train_images", "images",
)  # fmt: skip
"""Folders of pictures, in the folder of the rows, or beside it, or beside `dataset/`."""


def folders(task: str) -> tuple[str, ...]:
    """Where the files of a task may be below a folder."""
    return (f"dataset/{task}", f"data/{task}", task, "")


def read_owl_vqa(found: Found) -> Iterator[Item]:
    """The rows, with what people answered from the annotations."""
    (rows, *_), (annotations, *_) = found.paths
    truths = truths_of(annotations)
    for row in read_rows(rows, COLUMNS):
        id = _id(row)
        if id not in truths:
            raise RequestError(f"{annotations} has no answers to question {id} of {rows}; give files of one split")
        people, labels = truths[id]
        yield Item(id, _question(row), people, (_shown(found.folder, row),), labels=labels)


def read_owl_pope(found: Found) -> Iterator[Item]:
    """The lines of its three files."""
    for path in found.paths[0]:
        category = path.stem.removeprefix("ImageQA_POPE_")
        for number, row in enumerate(read_rows(path, (*COLUMNS, "answer")), 1):
            truth = yes_or_no(f"{path}, line {number}", str(row["answer"]))
            # a question's id is its picture's name, which several questions share
            yield Item(f"{category}/{number}", _question(row), truth, (_shown(found.folder, row),),
                       labels={"category": category})  # fmt: skip


def _id(row: dict[str, Any]) -> str:
    return str(row["question_id"] if "question_id" in row else row["data_id"])


def _question(row: dict[str, Any]) -> str:
    return str(row["question"] if "question" in row else row["query"])


def _shown(folder: Path, row: dict[str, Any]) -> Shown:
    given = str(row["image"] if "image" in row else row["images"])
    name = Path(given).name

    def load() -> Path:
        roots = (folder, folder.parent, folder.parent.parent)
        for place in (root / below for root in roots for below in (given, *(f"{each}/{name}" for each in PLACES))):
            if place.is_file():
                return place
        raise RequestError(f"there is no {name} in {' or '.join(PLACES[:4])}, …, in or above {folder}; fetch it")

    return Shown("image", load, name)
