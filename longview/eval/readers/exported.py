"""What `longview eval export` writes of an item beside the columns of another evaluator, and how it is read back.

A column `longview` holds, as JSON, what the other evaluator has no column for: the question without its prompt, all
answers of people, the group, every label. Others leave it alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown

COLUMN = "longview"
FIELDS = ("question", "answer", "options", "hint", "group", "labels")


def kept(item: Item) -> dict[str, Any]:
    """What its own columns do not tell."""
    return {name: value for name in FIELDS if (value := getattr(item, name))}


def restored(where: str, row: Mapping[str, Any], id: str, shown: Sequence[Shown], parts: Sequence[Any] = ()) -> Item:
    """The item of an exported row.

    Args:
        parts: The prompt that the row holds, if it does: texts and media.

    Raises:
        RequestError: the column is damaged.
    """
    try:
        found = row[COLUMN] if isinstance(row[COLUMN], Mapping) else json.loads(row[COLUMN])
        question, answer = str(found["question"]), found["answer"]
        options = tuple(str(each) for each in found.get("options", ()))
        labels = {str(name): str(value) for name, value in found.get("labels", {}).items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise RequestError(f"{where}: the column {COLUMN!r} is damaged; export the task again") from None
    facts = {"parts": list(parts)} if parts else {}
    hint, group = str(found.get("hint", "")), str(found.get("group", ""))
    return Item(id, question, answer, tuple(shown), options, hint, group, labels, facts)
