"""VQA, GQA and POPE in the files of mPLUG-Owl's evaluation programs, which stand in `dataset/` (mPLUG-Owl2: `data/`).

a JSON list or lines          image, question, question_id, answer; or images, query, data_id
okvqa/okvqa_val.json          with mscoco_val2014_annotations.json
vqav2/vqav2_val.json          with v2_mscoco_val2014_annotations.json
textvqa/textvqa_val.json      with textvqa_val_annotations.json
gqa/testdev_balanced.jsonl    the answer is in the row; LLaVA's lines have text in the place of question
pope/ImageQA_POPE_*.jsonl     random, popular, adversarial; the answer is yes or no

Pictures are named by paths of the authors' machines. They are looked for there, and by their names in the folders that
the programs read: images/mscoco/images/val2014, images/textvqa/text_vqa, images/gqa/images, …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown
from longview.eval.readers.columns import either
from longview.eval.readers.files import Found
from longview.eval.readers.pictures import yes_or_no
from longview.eval.readers.tables import read_rows
from longview.eval.readers.vqa import truths_of

COLUMNS = {"image|images": "text", "question|query": "text", "question_id|data_id": "value"}
PLACES = (
    "images/mscoco/images/val2014", "images/textvqa/text_vqa", "images/gqa/images", "data/coco/val2014",
    "data/textvqa/train_images", "data/gqa/images", "gqa/images", "val2014", "train_images", "images",
)  # fmt: skip
"""Folders of pictures, in the folder of the rows, or beside it, or beside `dataset/`."""


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


def read_owl_gqa(found: Found) -> Iterator[Item]:
    """The lines, whose answers are in them."""
    kinds = {"image|images": "text", "question|query|text": "text", "question_id|data_id?": "value", "answer": "value"}
    for number, row in enumerate(read_rows(found.path, kinds)):
        id = str(either(row, "question_id", "data_id", default=number))
        question = _question(row).partition("\n")[0]
        yield Item(id, question, str(row["answer"]), (_shown(found.folder, row),))


def read_owl_pope(found: Found) -> Iterator[Item]:
    """The lines of its three files."""
    for path in found.paths[0]:
        category = path.stem.removeprefix("ImageQA_POPE_")
        for number, row in enumerate(read_rows(path, COLUMNS | {"answer": "value"}), 1):
            truth = yes_or_no(row, str(row["answer"]))
            # a question's id is its picture's name, which several questions share
            yield Item(f"{category}/{number}", _question(row), truth, (_shown(found.folder, row),),
                       labels={"category": category})  # fmt: skip


def _id(row: Mapping[str, Any]) -> str:
    return str(either(row, "question_id", "data_id"))


def _question(row: Mapping[str, Any]) -> str:
    return str(either(row, "question", "query", "text"))


def _shown(folder: Path, row: Mapping[str, Any]) -> Shown:
    given = str(either(row, "image", "images"))
    name = Path(given).name

    def load() -> Path:
        roots = (folder, folder / "..", folder / "../..")
        for place in (root / below for root in roots for below in (given, *(f"{each}/{name}" for each in PLACES))):
            if place.is_file():
                return place
        raise RequestError(f"there is no {name} in {' or '.join(PLACES[:4])}, …, in or above {folder}; fetch it")

    return Shown("image", load, name)
