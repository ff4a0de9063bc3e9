"""A file of an answer's evidence and its check, in the form that its name says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.errors import RequestError
from longview.files import write_file
from longview.messages import Answer, Message
from longview.names import listed

if TYPE_CHECKING:
    from longview.evidence.deletion import Deletion


@dataclass(frozen=True)
class Report:
    """What a file shows."""

    messages: tuple[Message, ...]
    """The conversation that was answered."""
    answer: Answer
    """With evidence."""
    deletion: Deletion | None = None
    """None: it was not checked."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data: the question, the answer with its receipt and evidence, and the check."""
        checked = None if self.deletion is None else self.deletion.as_dict()
        return {"question": self.messages[-1].text.strip(), **self.answer.as_dict(), "deletion": checked}


def as_json(report: Report) -> bytes:
    return json.dumps(report.as_dict(), ensure_ascii=False).encode() + b"\n"


FORMS: dict[str, Callable[[Report], bytes]] = {".json": as_json}
"""What is written, by the end of the file's name."""


def check_name(path: Path) -> None:
    """
    Raises:
        RequestError: no form is written under such a name, or the folder is missing.
    """
    if path.suffix.lower() not in FORMS:
        raise RequestError(
            f"evidence cannot be written as {path.name!r:.60}; choose a name that ends in {listed(list(FORMS))}"
        )
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent} for {path.name}; make it, or choose another")


def write(path: Path, report: Report) -> None:
    """
    Raises:
        RequestError: as `check_name`, and where it cannot be written.
    """
    check_name(path)
    write_file(path, FORMS[path.suffix.lower()](report))
