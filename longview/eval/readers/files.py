"""Which of the forms that a task reads a folder holds; or what is missing, and what was expected."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from longview.errors import RequestError
from longview.eval.items import Item

ROOT = "LMUData"
"""The environment variable by which VLMEvalKit finds its files; its default is ~/LMUData."""


@dataclass(frozen=True)
class Found:
    """A form's files."""

    folder: Path
    paths: tuple[Path, ...]
    """For each pattern of the form, what it matches first."""

    @property
    def path(self) -> Path:
        return self.paths[0]

    def all(self, pattern: str) -> list[Path]:
        """What matches a pattern, in order."""
        return matches(self.folder, pattern)


Read: TypeAlias = Callable[[Found], Iterable[Item]]


@dataclass(frozen=True)
class Form:
    """One form in which a benchmark's files come."""

    read: Read
    files: tuple[str, ...]
    """Patterns below the folder, each of which must be there; `a | b` is either."""
    about: str = ""

    def find(self, folder: Path) -> Found | str:
        """The files, or the first pattern that is missing."""
        paths = []
        for pattern in self.files:
            hits = matches(folder, pattern)
            if not hits:
                return pattern
            paths.append(hits[0])
        return Found(folder, tuple(paths))


def matches(folder: Path, pattern: str) -> list[Path]:
    """What matches `a | b` below a folder, of its first alternative that matches anything."""
    for each in pattern.split(" | "):
        hits = sorted(glob.glob(os.path.join(glob.escape(str(folder)), each)))
        if hits:
            return [Path(hit) for hit in hits]
    return []


def find_form(task: str, forms: Sequence[Form], data: Path | None) -> tuple[Form, Found]:
    """The first form whose files are all in a folder; a file that is named itself counts as the only one there.

    Raises:
        RequestError: none is; says for each what is missing.
    """
    folder = data.expanduser() if data is not None else Path(os.environ.get(ROOT, "~/LMUData")).expanduser()
    if not folder.exists():
        if data is None:
            raise RequestError(
                f"{task} reads files; give their folder with --data (longview eval --describe {task} says which)"
            )
        raise RequestError(f"there is no {folder}; give the folder of {task}'s files with --data")
    if folder.is_file():
        return _named(task, forms, folder)
    missing = []
    for form in forms:
        found = form.find(folder)
        if isinstance(found, Found):
            return form, found
        missing.append(f"{found.replace(' | ', ' or ')} ({form.about}: {', '.join(form.files)})".replace(" | ", " or "))
    raise RequestError(
        f"{folder} holds no files of {task}; missing is {'; or '.join(missing)}; longview eval --describe {task} says "
        "where to get them"
    )


def _named(task: str, forms: Sequence[Form], file: Path) -> tuple[Form, Found]:
    """The first form of a single file with this suffix."""
    for form in forms:
        if len(form.files) == 1 and any(each.endswith(file.suffix) for each in form.files[0].split(" | ")):
            return form, Found(file.parent, (file,))
    kinds = ", ".join(sorted({form.about for form in forms}))
    raise RequestError(f"{file} is no file that {task} reads ({kinds}); give a folder, or another file")


def numbered(items: Iterable[Item]) -> Iterator[Item]:
    """Items, of which no two have one id.

    Raises:
        RequestError: two have.
    """
    known: set[str] = set()
    for item in items:
        if item.id in known:
            raise RequestError(f"two rows have the index {item.id}; give each its own")
        known.add(item.id)
        yield item
