"""The files of an evaluation: what it leaves in its folder, and how they are read again.

journal.jsonl    every answer as it came, with its prompt and frames; a killed run goes on from here
samples.jsonl    the same in order, with what the parser made of each and whether it counts
results.json     the numbers, and all that is needed to repeat them
report.md, report.html
items.jsonl      of distractor resistance: what was drawn, so that others can ask the same
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.errors import RequestError
from longview.eval.distractor import listed
from longview.eval.items import Graded, Item
from longview.files import write_file

JOURNAL, SAMPLES, RESULTS, ITEMS = "journal.jsonl", "samples.jsonl", "results.json", "items.jsonl"


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
        raise RequestError(
            f"a file of {folder} is damaged ({error}); run the evaluation again, which goes on"
        ) from None
    return Result(numbers, samples)
