"""A file of an answer's evidence and its check, or of two answers', in the form that its name says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longview.errors import RequestError
from longview.files import write_file
from longview.messages import Answer, Message
from longview.names import listed
from longview.requests import Limits

if TYPE_CHECKING:
    from longview.evidence.deletion import Deletion
    from longview.evidence.view import View

NUMBER = re.compile(r"^(Image|Video) \d+: *$\n?", re.MULTILINE)
"""A line of `messages.ask` that numbers a medium."""


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
        return {"question": question_of(self.messages), **self.answer.as_dict(), "deletion": checked}


def question_of(messages: Sequence[Message]) -> str:
    """The text of the last message, without the lines that number its media."""
    return NUMBER.sub("", messages[-1].text).strip()


def as_json(reports: Sequence[Report], limits: Limits) -> bytes:
    """An object; of several answers, a list of them."""
    plain = [report.as_dict() for report in reports]
    return json.dumps(plain if len(plain) > 1 else plain[0], ensure_ascii=False).encode() + b"\n"


def as_html(reports: Sequence[Report], limits: Limits) -> bytes:
    from longview.evidence.page import html

    return html(views_of(reports, limits)).encode()


def as_png(reports: Sequence[Report], limits: Limits) -> bytes:
    from longview.evidence.plot import png

    return png(views_of(reports, limits))


def views_of(reports: Sequence[Report], limits: Limits) -> list[View]:
    """
    Raises:
        MediaError: a picture can no longer be read.
    """
    from longview.evidence.pictures import jpegs
    from longview.evidence.view import View

    assert all(report.answer.evidence is not None for report in reports)
    return [
        View(each.as_dict(), jpegs(each.messages, evidence, limits))
        for each in reports
        if (evidence := each.answer.evidence) is not None
    ]


FORMS: dict[str, Callable[[Sequence[Report], Limits], bytes]] = {".html": as_html, ".png": as_png, ".json": as_json}
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


def write(path: Path, reports: Sequence[Report], limits: Limits | None = None) -> None:
    """Write one answer's evidence, or that of several beside one another.

    Raises:
        RequestError: as `check_name`, and where it cannot be written.
        MediaError: a picture can no longer be read.
        MissingExtraError: a .png without matplotlib.
    """
    check_name(path)
    write_file(path, FORMS[path.suffix.lower()](reports, limits or Limits()))
