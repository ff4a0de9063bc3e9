"""Which of the forms that a task reads a folder holds; or what is missing, and what was expected."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.readers.tables import read_rows

ROOT = "LMUData"
"""The environment variable by which VLMEvalKit finds its files; its default is ~/LMUData."""


@dataclass(frozen=True)
class Found:
    """A form's files."""

    folder: Path
    paths: tuple[tuple[Path, ...], ...]
    """For each pattern of the form, all that it matches."""
    table: str = ""
    """A Hugging Face dataset, in a folder or on the hub, in the place of files."""
    split: str = "train"

    @property
    def path(self) -> Path:
        """The first file of the first pattern."""
        return self.paths[0][0]

    def rows(self, needed: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """The rows of all files of the first pattern, or of the dataset.

        Raises:
            LongviewError: one cannot be read, or lacks a column.
        """
        if self.table:
            yield from read_rows(self.table, needed, self.split)
            return
        for path in self.paths[0]:
            yield from read_rows(path, needed)


Read: TypeAlias = Callable[[Found], Iterable[Item]]


@dataclass(frozen=True)
class Form:
    """One form in which a benchmark's files come."""

    read: Read
    files: tuple[str, ...]
    """Patterns below the folder, each of which must be there; `a | b` is either."""
    about: str
    folders: tuple[str, ...] = ("",)
    """Where below --data they may be."""
    split: str | None = None
    """Of rows that may also be a Hugging Face dataset: its split."""

    def find(self, folder: Path) -> Found | None:
        """The files, if they are all there."""
        for below in self.folders:
            paths = tuple(tuple(matches(folder / below, pattern)) for pattern in self.files)
            if all(paths):
                return Found(folder / below, paths)
        return None

    def missing(self, folder: Path) -> str:
        """The first pattern that nothing matches, where most of the others match something."""
        lacks = [[pattern for pattern in self.files if not matches(folder / below, pattern)] for below in self.folders]
        return min(lacks, key=len)[0]


def matches(folder: Path, pattern: str) -> list[Path]:
    """What matches `a | b` below a folder, of its first alternative that matches anything."""
    for each in pattern.split(" | "):
        hits = sorted(glob.glob(os.path.join(glob.escape(str(folder)), each), recursive=True))
        if hits:
            return [Path(hit) for hit in hits]
    return []


def find_form(task: str, forms: Sequence[Form], data: Path | None) -> tuple[Form, Found]:
    """The first form whose files are all in a folder; or that of a single file, or of a Hugging Face dataset.

    Raises:
        RequestError: there is none; says for each what is missing.
    """
    folder = data.expanduser() if data is not None else Path(os.environ.get(ROOT, "~/LMUData")).expanduser()
    tables = [form for form in forms if form.split is not None]
    if not folder.exists():
        if data is None:
            raise RequestError(
                f"{task} reads files; give their folder with --data (longview eval --describe {task} says which)"
            )
        if tables and re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", str(data)):  # on the hub
            return tables[0], Found(Path(), (), str(data), tables[0].split or "train")
        raise RequestError(f"there is no {folder}; give the folder of {task}'s files with --data")
    if folder.is_file():
        return _named(task, forms, folder)
    for form in forms:
        found = form.find(folder)
        if found is not None:
            return form, found
    if tables and any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        split = tables[0].split if (folder / "dataset_dict.json").exists() else "train"
        return tables[0], Found(folder, (), str(folder), split or "train")
    lacks = "; or ".join(f"{form.missing(folder)} ({form.about}: {', '.join(form.files)})" for form in forms)
    raise RequestError(
        f"{folder} holds no files of {task}; missing is {lacks.replace(' | ', ' or ')}; "
        f"longview eval --describe {task} says where to get them"
    )


def _named(task: str, forms: Sequence[Form], file: Path) -> tuple[Form, Found]:
    """The first form of a single file with this suffix."""
    for form in forms:
        if len(form.files) == 1 and any(each.endswith(file.suffix) for each in form.files[0].split(" | ")):
            return form, Found(file.parent, ((file,),))
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
