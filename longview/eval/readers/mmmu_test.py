"""MMMU's test split: SUBJECT/test-*.parquet, in which all answers are "?", and answer_dict_test.json.

{"test_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}, …}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.readers.files import Found
from longview.eval.readers.tables import listed, read_json, stored_picture

KINDS = {"id": "text", "question": "text", "options": "texts|text", "question_type": "text", "image_1": "any"}


def read_mmmu_test(found: Found) -> Iterator[Item]:
    """Parquet, a folder a subject, and the truths by question.

    Raises:
        RequestError: there is no truth of a question.
    """
    (path,) = found.paths[1]
    truths = read_json(path)
    for row in found.rows(KINDS):
        truth = truths.get(row["id"]) if isinstance(truths, Mapping) else None
        if not isinstance(truth, Mapping) or "ground_truth" not in truth:
            raise RequestError(
                f"{path} has no 'ground_truth' of {row['id']}; fetch the answers of the test split again"
            )
        shown = tuple(
            stored_picture(row, row[name], found.folder, f"{row['id']}, picture {number}")
            for number in range(1, 8)
            if row.get(name := f"image_{number}") is not None
        )
        options = () if row["question_type"] == "open" else tuple(map(str, listed(row["options"])))
        sample = {name: row[name] for name in ("question", "options", "question_type")}
        subject = "_".join(row["id"].split("_")[1:-1])
        yield Item(row["id"], row["question"], truth["ground_truth"], shown, options, labels={"subject": subject},
                   facts={"sample": sample})  # fmt: skip
