"""Multiple choices and yes/no about single pictures, where their files are not VLMEvalKit's TSV alone.

AI2D             Parquet: question, options, answer (a number), image
HallusionBench   HallusionBench.json with its pictures; or VLMEvalKit's TSV, whose index ends in set_figure_question
"""

from __future__ import annotations

from collections.abc import Iterator

from longview.errors import RequestError
from longview.eval.items import Item, picture
from longview.eval.readers.files import Found
from longview.eval.readers.pictures import yes_or_no
from longview.eval.readers.tables import below, filled, read_rows, stored_picture
from longview.eval.readers.truths import by_index
from longview.eval.readers.tsv import rows_with_pictures


def read_ai2d(found: Found) -> Iterator[Item]:
    """Parquet as on the hub."""
    kinds = {"question": "text", "options": "texts", "answer": "value", "image": "any"}
    for number, row in enumerate(found.rows(kinds)):
        options = tuple(str(each) for each in row["options"])
        shown = stored_picture(row, row["image"], found.folder, f"row {number + 1}")
        yield Item(str(number), row["question"], by_index(row, row["answer"], options), (shown,), options)


_HALLUSION = {
    **dict.fromkeys(("category", "subcategory", "set_id", "figure_id", "question_id", "gt_answer"), "value"),
    "question": "text",
    "filename?": "text",
}


def read_hallusion(found: Found) -> Iterator[Item]:
    """The authors' JSON; questions without a picture are asked without one."""
    for row in read_rows(found.path, _HALLUSION):
        key = f"{row['subcategory']}_{row['set_id']}"
        name = (row.get("filename") or "").removeprefix("./").removeprefix("hallusion_bench/")
        path = below(found.folder, name, "hallusion_bench")
        truth = {"0": "no", "1": "yes"}.get(str(row["gt_answer"]))
        if truth is None:
            raise RequestError(f"{row}: gt_answer is {row['gt_answer']!r:.40}; expected 0 or 1; fetch the file again")
        id = f"{row['category']}_{key}_{row['figure_id']}_{row['question_id']}"
        facts = {"figure": f"{row['category']}_{key}_{row['figure_id']}", "question": f"{key}_{row['question_id']}"}
        labels = {"category": str(row["category"]), "subcategory": str(row["subcategory"])}
        yield Item(id, row["question"], truth, (picture(path, name),) if name else (), labels=labels, facts=facts)


def read_hallusion_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's."""
    for row, shown in rows_with_pictures(found.path, ("question", "answer", "l2-category")):
        parts = filled(row, "index").rsplit("_", 3)
        if len(parts) != 4:
            raise RequestError(f"{row}: the index is {filled(row, 'index')!r:.40}; expected …_SET_FIGURE_QUESTION")
        key = f"{filled(row, 'l2-category')}_{parts[1]}"
        facts = {"figure": f"{key}_{parts[2]}", "question": f"{key}_{parts[3]}"}
        labels = {name: filled(row, name) for name in ("category", "l2-category") if filled(row, name)}
        truth = yes_or_no(row, filled(row, "answer"))
        yield Item(filled(row, "index"), filled(row, "question"), truth, shown, labels=labels, facts=facts)
