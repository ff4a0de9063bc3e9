"""MMMU's test split: SUBJECT/test-*.parquet, in which all answers are "?", and answer_dict_test.json.

{"test_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}, …}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.readers.columns import checked
from longview.eval.readers.files import Found
from longview.eval.readers.pictures import mmmu_item
from longview.eval.readers.tables import read_json

KINDS = {"id": "text", "question": "text", "options": "texts|text", "question_type": "text", "image_1": "any"}


def read_mmmu_test(found: Found) -> Iterator[Item]:
    """Parquet, a folder a subject, and the truths by question.

    Raises:
        RequestError: there is no truth of a question, or it is none of its options.
    """
    (path,) = found.paths[1]
    truths = read_json(path)
    for row in found.rows(KINDS):
        truth = truths.get(row["id"]) if isinstance(truths, Mapping) else None
        if not isinstance(truth, Mapping) or "ground_truth" not in truth:
            raise RequestError(
                f"{path} has no 'ground_truth' of {row['id']}; fetch the answers of the test split again"
            )
        told = checked(f"{path}, question {row['id']}", truth, {"ground_truth": "texts|text"})
        yield mmmu_item(f"{row.where}, with its truth in {path.name}", row | {"answer": told["ground_truth"]},
                        found.folder)  # fmt: skip
