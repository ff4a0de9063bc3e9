"""Passages of knowledge: JSON lines of a text, its pictures, and where it comes from.

    {"text": "An Irish terrier is …", "image": "terrier.jpg", "source": "dogs.org/terriers"}

`images` may be a list; a passage may have no picture, or no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.errors import RequestError

SUFFIX = ".jsonl"
COLUMNS = ("text", "image", "images", "source", "id")
MAX_BYTES = 1 << 20
"""Of a line."""


@dataclass(frozen=True)
class Passage:
    text: str
    pictures: tuple[Path, ...] = ()
    source: str = ""


def read_passages(path: Path) -> Iterator[Passage]:
    """The passages of a file, in order.

    Raises:
        RequestError: a line is none; names it.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _passage(line, path, number)


def _passage(line: bytes, path: Path, number: int) -> Passage:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line) if len(line) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise RequestError(f'{where} is no passage; expected an object such as {{"text": …, "image": …, "source": …}}')
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown:
        raise RequestError(f"{where}: a passage has no {unknown[0]!r:.40}; there are {', '.join(COLUMNS)}")
    text, source = row.get("text") or "", row.get("source", row.get("id")) or ""
    images = _images(row)
    if not isinstance(text, str) or images is None or not (text.strip() or images):
        raise RequestError(f"{where}: a passage needs a text, or an image with its path")
    pictures = tuple(Path(image) if Path(image).is_absolute() else path.parent / image for image in images)
    return Passage(text.strip(), pictures, str(source))


def _images(row: dict[str, Any]) -> list[str] | None:
    given = [*([row["image"]] if row.get("image") else []), *(row.get("images") or [])]
    return given if all(isinstance(each, str) for each in given) else None
