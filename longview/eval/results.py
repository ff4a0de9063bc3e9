"""The files of an evaluation: what it leaves in its folder, and how they are read again.

journal.jsonl    every answer as it came, with its prompt and frames; a killed run goes on from here
samples.jsonl    the same in order, with what the parser made of each and whether it counts
results.json     the numbers, and all that is needed to repeat them
report.md, report.html
items.jsonl      of distractor resistance: what was drawn, so that others can ask the same
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.distractor import listed
from longview.eval.items import Graded, Item
from longview.files import write_file

JOURNAL, SAMPLES, RESULTS, ITEMS = "journal.jsonl", "samples.jsonl", "results.json", "items.jsonl"

NUMBER = (int, float)
NUMBERS: Mapping[str, Any] = {
    **dict.fromkeys(("task", "title", "model", "where", "mode", "metric", "scale", "date", "longview"), str),
    **dict.fromkeys(("score", "low", "high", "questions", "answers", "unparsed", "of", "failed"), NUMBER),
    **dict.fromkeys(("protocol", "options", "by"), dict),
    "guessing": (*NUMBER, type(None)),
    "published": (dict, type(None)),
    "questions_digest": str,
}
"""What every results.json has."""
SAMPLE: Mapping[str, Any] = {
    **dict.fromkeys(("id", "unit", "question"), str),
    **dict.fromkeys(("truth", "parsed"), object),
    "labels": dict,
    "media": list,
    "understood": bool,
    "score": NUMBER,
}
"""What every line of samples.jsonl has."""


@dataclass(frozen=True)
class Result:
    """One task's evaluation."""

    numbers: dict[str, Any]
    """What results.json says."""
    samples: list[dict[str, Any]]
    """A line of samples.jsonl each."""
    graded: Sequence[Graded] = ()
    """Not of a result that was read from its files."""

    @property
    def task(self) -> str:
        return self.numbers["task"]


def sample_of(graded: Graded, line: dict[str, Any]) -> dict[str, Any]:
    """An answer with its question, its truth, and what was made of it."""
    item = graded.item
    found = {
        "id": item.id,
        "unit": item.unit,
        "question": item.question,
        **({"options": list(item.options)} if item.options else {}),
        "truth": item.answer,
        "labels": dict(item.labels),
        "media": [shown.name for shown in item.shown],
    }
    parsed = {"parsed": graded.verdict.value, "understood": graded.verdict.understood, "score": graded.score}
    return found | {name: value for name, value in line.items() if name != "id"} | parsed


def write_result(folder: Path, result: Result) -> None:
    """Write results.json and samples.jsonl."""
    lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in result.samples)
    write_file(folder / SAMPLES, lines.encode())
    write_file(folder / RESULTS, (json.dumps(result.numbers, ensure_ascii=False, indent=1) + "\n").encode())


def write_draws(folder: Path, items: Sequence[Item]) -> None:
    """Write items.jsonl."""
    lines = "".join(json.dumps(listed(item), ensure_ascii=False) + "\n" for item in items)
    write_file(folder / ITEMS, lines.encode())


def read_result(folder: Path) -> Result:
    """
    Raises:
        RequestError: the folder holds no finished evaluation.
    """
    try:
        numbers = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        samples = [json.loads(line) for line in (folder / SAMPLES).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise RequestError(
            f"{folder} holds no finished evaluation ({Path(str(error.filename)).name}: {error.strerror}); give the "
            "folder of a task, as longview eval --output made it"
        ) from None
    except ValueError as error:
        raise _damaged(folder, str(error)) from None
    _check(folder, RESULTS, numbers, NUMBERS)
    _check(folder, RESULTS, numbers["protocol"], {"name": str})
    for number, sample in enumerate(samples, 1):
        _check(folder, f"{SAMPLES}, line {number}", sample, SAMPLE)
    return Result(numbers, samples)


def _check(folder: Path, where: str, found: Any, needed: Mapping[str, Any]) -> None:
    """
    Raises:
        RequestError: it is no JSON object with what is needed.
    """
    if not isinstance(found, dict):
        raise _damaged(folder, f"{where} holds no JSON object")
    for name, kind in needed.items():
        if name not in found:
            raise _damaged(folder, f"{where} has no {name!r}")
        if not isinstance(found[name], kind):
            raise _damaged(folder, f"{where} has {name} {found[name]!r:.40}")


def _damaged(folder: Path, why: str) -> RequestError:
    return RequestError(
        f"a file of {folder} is damaged, or of no evaluation ({why}); run the evaluation again, which goes on"
    )
