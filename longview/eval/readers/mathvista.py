"""MathVista: testmini.json with images/; Parquet with the pictures inside; VLMEvalKit's MathVista_MINI.tsv."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from longview.errors import RequestError
from longview.eval.items import Item, Shown, picture
from longview.eval.readers.columns import Fields, entries_of
from longview.eval.readers.files import Found
from longview.eval.readers.tables import filled, listed, read_json, stored_picture
from longview.eval.readers.tsv import rows_with_pictures

KINDS = {
    "question": "text",
    "choices": "any",
    "unit": "any",
    "precision": "any",
    "question_type": "text",
    "answer_type": "text",
    "answer": "text|number",
    "metadata?": "object",
}
_FREE = ("integer", "float", "list")
_PLACES = {"one": 1, "two": 2}


def read_mathvista(found: Found) -> Iterator[Item]:
    """The authors' JSON, problems by their id."""
    path = found.paths[0][0]
    for id, row in entries_of(path, read_json(path), {"image": "text", **KINDS}):
        yield _problem(row, id, row, picture(found.folder / row["image"], row["image"]))


def read_mathvista_table(found: Found) -> Iterator[Item]:
    """Parquet as on the hub."""
    for row in found.rows({"pid": "value", "decoded_image": "any", **KINDS}):
        shown = stored_picture(row, row["decoded_image"], found.folder, str(row.get("image") or row["pid"]))
        yield _problem(row, str(row["pid"]), row, shown)


def read_mathvista_tsv(found: Found) -> Iterator[Item]:
    """VLMEvalKit's, whose questions may have the hint before them and the choices behind them."""
    needed = ("question", "answer", "question_type", "answer_type", "choices", "image|image_path")
    for row, shown in rows_with_pictures(found.path, needed):
        question, unit, places = _asked(row["question"])
        given = {
            "question": question,
            "choices": listed(row["choices"]) if filled(row, "choices") else None,
            "unit": filled(row, "unit") or unit,
            "precision": filled(row, "precision") or places,
            **{name: row[name] for name in ("question_type", "answer_type", "answer")},
            "metadata": {name: filled(row, name) for name in ("task", "category", "source")},
        }
        if len(shown) != 1:
            raise RequestError(f"{row} has {len(shown)} pictures; expected one; fetch the file again")
        yield _problem(row, filled(row, "pid") or filled(row, "index"), given, shown[0])


def _asked(text: str) -> tuple[str, str | None, int | None]:
    """The question, its unit and the decimal places, of a question alone or of all that is asked."""
    hint, found, question = text.partition("Question: ")
    if not found or not hint.startswith("Hint: "):
        return text, None, None
    question = re.split(r"\nChoices:\s*\n?\(A\)", question)[0].strip()
    places = re.search(r"with (one|two) decimal place", hint)
    unit = re.search(r"^(.*) \(Unit: ([^()]*)\)$", question, re.DOTALL)
    return unit[1] if unit else question, unit[2] if unit else None, _PLACES[places[1]] if places else None


def _problem(row: Fields, id: str, given: Mapping[str, Any], shown: Shown) -> Item:
    """
    Raises:
        RequestError: the kind of the question or of its answer is unknown, or a choice has no choices.
    """
    choices, kind, answer_type = given["choices"], given["question_type"], given["answer_type"]
    if kind not in ("multi_choice", "free_form") or (kind == "free_form" and answer_type not in _FREE):
        raise RequestError(
            f"{row}: a question of type {kind!r:.40} with an answer of type {answer_type!r:.40}; expected "
            f"multi_choice, or free_form with {', '.join(_FREE)}; fetch the file again"
        )
    if kind == "multi_choice" and not (isinstance(choices, list) and choices):
        raise RequestError(f"{row}: the choices are {choices!r:.40}; expected a list of texts; fetch the file again")
    truth = _truth(given)
    if kind == "multi_choice" and truth.strip() not in (str(choice).strip() for choice in choices):
        raise RequestError(
            f"{row}: the answer is {given['answer']!r:.40}, which is none of the {len(choices)} choices; expected the "
            "words of one; fetch the file again"
        )
    meta = given.get("metadata") or {}
    labels = {name: str(meta[name]) for name in ("task", "category", "source") if meta.get(name)}
    problem = {name: given[name] for name in KINDS if name != "metadata?"}
    problem |= {"choices": choices or None, "precision": _precision(row, given["precision"])}
    return Item(id, given["question"], truth, (shown,), labels=labels, facts={"problem": problem})


def _truth(given: Mapping[str, Any]) -> str:
    """The answer; of a whole number that a table holds as a float, without its point."""
    answer = given["answer"]
    whole = isinstance(answer, float) and answer.is_integer() and given["answer_type"] != "float"
    return str(int(answer) if whole else answer)


def _precision(row: Fields, value: Any) -> int | None:
    if value is None:
        return None
    try:
        return int(float(value))
    except (TypeError, ValueError):
        raise RequestError(f"{row}: 'precision' is {value!r:.40}; expected a whole number, or nothing") from None
