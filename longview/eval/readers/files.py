"""Which of the forms that a task reads a folder holds; or what is missing, and what was expected."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from longview.errors import RequestError
from longview.eval.items import Item
from longview.eval.readers.columns import Columns, Fields
from longview.eval.readers.tables import read_rows
from longview.wording import counted

ROOT = "LMUData"
"""The environment variable by which VLMEvalKit finds its files; its default is ~/LMUData."""
ABOVE = ("dataset", "data", "MGM-Eval", "data/MGM-Eval")
"""Where mPLUG-Owl's and MGM's programs have the folders of benchmarks, below the folder that they run in."""
TABLES = (".json", ".jsonl", ".tsv", ".csv", ".parquet")


@dataclass(frozen=True)
class Found:
    """A form's files."""

    folder: Path
    paths: tuple[tuple[Path, ...], ...]
    """For each pattern of the form, all that it matches."""
    table: str = ""
    """A Hugging Face dataset, in a folder or on the hub, in the place of files."""
    split: str = "train"
    subsets: tuple[str, ...] = ()
    """Of that dataset, those that are read one after the other; none: its only one."""

    @property
    def path(self) -> Path:
        """The first file of the first pattern."""
        return self.paths[0][0]

    def rows(self, needed: Columns = ()) -> Iterator[Fields]:
        """The rows of all files of the first pattern, or of the dataset.

        Raises:
            LongviewError: one cannot be read, or lacks a column.
        """
        if not self.table:
            for path in self.paths[0]:
                yield from read_rows(path, needed)
            return
        for table in [f"{self.table}:{subset}" for subset in self.subsets] or [self.table]:
            yield from read_rows(table, needed, self.split)

    def __str__(self) -> str:
        return self.table or str(self.path)


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
    subsets: tuple[str, ...] = ()
    """Of such a dataset, where a name alone does not say which are meant."""

    def items(self, found: Found) -> Iterator[Item]:
        """The questions of its files.

        Raises:
            LongviewError: a file is damaged, or is not what it should be.
        """
        count = 0
        try:
            for item in self.read(found):
                count += 1
                yield item
        except (TypeError, LookupError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise RequestError(
                f"{found}, behind its first {counted(count, 'question')}, is not as expected ({reason}); expected "
                f"{self.about}; fetch it again, or mend it"
            ) from error

    def find(self, folder: Path) -> Found | None:
        """The files, if they are all there."""
        for place in self._places(folder):
            paths = tuple(tuple(matches(place, pattern)) for pattern in self.files)
            if all(paths):
                return Found(place, paths)
        return None

    def missing(self, folder: Path) -> str:
        """The first pattern that nothing matches, where most of the others match something."""
        lacks = [[name for name in self.files if not matches(place, name)] for place in self._places(folder)]
        return min(lacks, key=len)[0]

    def _places(self, folder: Path) -> list[Path]:
        named = [folder / above / below for above in ABOVE for below in self.folders if below]
        return [*(folder / below for below in self.folders), *named]


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
        if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", str(data)) and data.suffix not in TABLES:
            return _on_hub(task, forms, str(data))
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


def _on_hub(task: str, forms: Sequence[Form], name: str) -> tuple[Form, Found]:
    """The form of a task that a name on the hub is enough for.

    Raises:
        RequestError: there is none.
    """
    tables = [form for form in forms if form.split is not None]
    if not tables:
        kinds = " or ".join(form.about for form in forms)
        fetch = f"hf download {name.partition(':')[0]} --repo-type dataset --local-dir FOLDER"
        raise RequestError(
            f"there is no {name}, and {task} takes no dataset's name: it reads {kinds}; get these as "
            f"longview eval --describe {task} says (from the hub: {fetch}), unpack what is packed, and give the folder "
            "with --data"
        )
    subsets = () if ":" in name else tables[0].subsets
    return tables[0], Found(Path(), (), name, tables[0].split or "train", subsets)


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
