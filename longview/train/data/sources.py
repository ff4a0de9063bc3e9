"""The sources of rows: JSON lines, a JSON list, Parquet, Hugging Face datasets in folders or on the hub.

    rows.jsonl · rows.json · rows.parquet     files, known by what they hold
    info.json:NAME                            an entry of Ovis's dataset info: {NAME: {"meta_file", "image_dir", …}}
    folder · folder:SUBSET                    what `save_to_disk` left behind, or data files as the hub has them
    owner/name · owner/name:SUBSET            on Hugging Face's hub
    modelscope:owner/name                     on ModelScope's, fetched whole
    …#2000                                    so many of the rows

Tables are read as they are stored: pictures inside them stay encoded until a sample is opened.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from longview.errors import MissingExtraError, RecipeError
from longview.hubs import fetch_from_modelscope
from longview.train.data.settings import DatasetSettings

BATCH = 64
"""Rows of a table that are read at a time."""
HUB_NAME = r"[\w.-]+/[\w.-]+"
MODELSCOPE = "modelscope:"


class Place(NamedTuple):
    """A row of a file, as a user finds it."""

    path: Path
    unit: str  # line, or row of a list or table
    number: int  # from 1

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


class RowSource(Protocol):
    """Rows by their number, from 0."""

    unit: str

    def __len__(self) -> int: ...

    def row(self, number: int) -> Any:
        """Raises RecipeError: it is not JSON."""

    def number(self, row: int) -> int:
        """Its number for a user, from 1."""

    def walk(self) -> Iterator[tuple[int, Any]]:
        """All rows in order, each with its number for a user; JSON lines are not parsed yet."""


@dataclass(frozen=True)
class Location:
    """What a dataset's path means."""

    target: str
    name: str | None = None  # of an entry or a subset in it
    count: int = 0  # rows wanted; 0: all

    @property
    def path(self) -> Path:
        return Path(self.target).expanduser()


@dataclass(frozen=True)
class OpenedSource:
    """A source, and what is known about its rows."""

    source: RowSource
    path: Path  # its name in messages
    digest: str
    folder: Path  # where relative paths of media begin
    captions: bool | None = None  # whether its rows are captions; None: each row tells
    caption_template: str | None = None


def split_count(name: str) -> tuple[str, int]:
    """`rows.jsonl#2000` → the file's name, and how many of its rows; 0: all."""
    found = re.fullmatch(r"(.+)#([0-9]{1,12})", name)
    if not found:
        return name, 0
    if not int(found[2]):
        raise RecipeError(f"dataset {name} asks for no rows; write #1 or more, or leave it out")
    return found[1], int(found[2])


def locate(name: str) -> Location:
    """`TARGET[:NAME][#COUNT]`; a colon in the name of a file or folder that exists belongs to it."""
    target, count = split_count(name)
    if target.startswith(MODELSCOPE):
        return Location(target, None, count)
    head, colon, tail = target.rpartition(":")
    there = Path(head).expanduser().exists() or re.fullmatch(HUB_NAME, head)
    if colon and tail and there and not Path(target).expanduser().exists():
        return Location(head, tail, count)
    return Location(target, None, count)


def open_source(settings: DatasetSettings) -> OpenedSource:
    """Open what a dataset's path names.

    Raises:
        RecipeError: it cannot be read, holds no such entry or split, or is not what it should be.
    """
    location = locate(settings.path)
    if location.target.startswith(MODELSCOPE):
        location = Location(str(fetch_modelscope(location.target.removeprefix(MODELSCOPE))), None, location.count)
    path = location.path
    folder = Path(settings.folder).expanduser() if settings.folder is not None else None
    on_hub = re.fullmatch(HUB_NAME, location.target) and path.suffix not in (".json", ".jsonl", ".parquet")
    if path.is_dir() or (on_hub and not path.exists()):
        source, digest = open_table(location, settings)
        return OpenedSource(source, path, digest, folder or (path if path.is_dir() else Path()))
    if settings.split != "train":
        raise RecipeError(f"dataset {settings.path} is a file, which has no splits; leave out split")
    if location.name is not None:
        entry = read_info(path, location.name)
        source, digest = open_file(entry.meta_file, settings.streaming)
        begin = folder or entry.folder or entry.meta_file.parent
        return OpenedSource(source, entry.meta_file, digest, begin, entry.captions, entry.caption_template)
    refuse_info(path)
    source, digest = open_file(path, settings.streaming)
    return OpenedSource(source, path, digest, folder or path.parent)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Lines:
    """JSON lines; the offset of each is in memory, or nothing if they are only iterated."""

    unit = "line"

    def __init__(self, path: Path, index: bool = True) -> None:
        self.path = path
        self._offsets = self._numbers = np.zeros(0, np.int64)
        if index:
            offsets, numbers, begin = [], [], 0
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        offsets.append(begin)
                        numbers.append(number)
                    begin += len(line)
            self._offsets, self._numbers = np.array(offsets, np.int64), np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, number: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(self._offsets[number])
            return parse(file.readline())

    def number(self, row: int) -> int:
        return int(self._numbers[row])

    def walk(self) -> Iterator[tuple[int, Any]]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line


class Rows:
    """A list of rows, or a Hugging Face table, which reads them from the disk."""

    unit = "row"

    def __init__(self, rows: Any, name: str) -> None:
        self._rows, self._name = rows, name
        self._is_table = not isinstance(rows, list)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Any:
        found = self._rows[number]
        return found.to_pylist()[0] if self._is_table else found

    def number(self, row: int) -> int:
        return row + 1

    def walk(self) -> Iterator[tuple[int, Any]]:
        if not self._is_table:
            yield from enumerate(self._rows, 1)
            return
        with _tables(self._name):
            tables = self._rows.iter(batch_size=BATCH)
            yield from enumerate((row for table in tables for row in table.to_pylist()), 1)


def parse(row: Any) -> Any:
    """A line → a row; rows are returned as they are."""
    if not isinstance(row, bytes):
        return row
    try:
        return json.loads(row.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"not JSON ({' '.join(str(error).split())[:200]})") from error


def open_file(path: Path, streaming: bool = False) -> tuple[RowSource, str]:
    """A file of rows, and its digest: its SHA-256, or that of its size and time where it is not read whole."""
    try:
        with path.open("rb") as file:
            begin = file.read(1 << 16)
        digest = digest_of([path], path.parent, whole=not streaming)
        if begin[:4] == b"PAR1":
            return _open_parquet(path, streaming), digest
        if begin.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
            return Lines(path, index=not streaming), digest
        if streaming:
            raise RecipeError(f"dataset {path} is a JSON list, which cannot be streamed; write its rows as JSON lines")
        return Rows(json.loads(path.read_bytes().decode("utf-8-sig")), str(path)), digest
    except OSError as error:
        raise RecipeError(
            f"dataset {path} cannot be read ({error.strerror or error}); give a JSON, JSONL or Parquet file, a folder "
            "of them, or a name on the hub"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"dataset {path} is not JSON: {' '.join(str(error).split())[:200]}") from error


def digest_of(paths: list[Path], root: Path, whole: bool = True) -> str:
    """SHA-256 of files, with their names where there are several; or of names, sizes and times of change alone."""
    digest = hashlib.sha256()
    for path in paths:
        if len(paths) > 1 or not whole:
            digest.update(f"{path.relative_to(root)}\n".encode())
        if not whole:
            found = path.stat()
            digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
            continue
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# ── Ovis's dataset info ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class InfoEntry:
    """One dataset of an info file."""

    meta_file: Path
    folder: Path | None
    captions: bool
    caption_template: str | None


ENTRY_KEYS = ("meta_file", "image_dir", "data_format", "caption_template", "storage_type")
"""Keys of an entry. `storage_type`, how its pictures are stored, is ignored: they are files."""


def read_info(path: Path, name: str) -> InfoEntry:
    """The entry of an info file.

    Raises:
        RecipeError: the file has no such entry, or the entry lacks what is needed.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"dataset info {path} cannot be read ({error.strerror}); give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"dataset info {path} is not JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(entries, dict) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise RecipeError(f"{path} is no dataset info, an object of {{name: {{meta_file, …}}}}; leave out :{name}")
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1, cutoff=0)
        hint = f"; the nearest one is {near[0]!r}" if near else ""
        raise RecipeError(f"{path} names no dataset {name!r}{hint}")
    entry, where = entries[name], f"{path}, {name!r}"
    for key in entry:
        if key not in ENTRY_KEYS:
            near = difflib.get_close_matches(str(key), ENTRY_KEYS, n=1, cutoff=0)
            raise RecipeError(f"{where}: unknown key {key!r}; the nearest known one is {near[0]!r}")
    wrong = [key for key in ENTRY_KEYS if not isinstance(entry.get(key, ""), str)]
    if wrong or not entry.get("meta_file"):
        raise RecipeError(f"{where}: {(wrong or ['meta_file'])[0]} is to be text, and meta_file must be there")
    form = entry.get("data_format", "conversation")
    if form not in ("caption", "conversation"):
        raise RecipeError(f"{where}: data_format is {form!r}; expected caption or conversation")
    template = entry.get("caption_template")
    if template is not None and (form != "caption" or template.count("<image>") != 1):
        raise RecipeError(f"{where}: caption_template is for data_format caption, and holds <image> once: {template!r}")
    folder = path.parent / entry["image_dir"] if entry.get("image_dir") else None
    return InfoEntry(path.parent / entry["meta_file"], folder, form == "caption", template)


def refuse_info(path: Path) -> None:
    """Refuse a dataset info of which no dataset is named; lines and lists of rows are accepted."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes()) if path.stat().st_size < 1 << 22 else None
        entries = found if isinstance(found, dict) else {}
        if entries and all(isinstance(entry, Mapping) and "meta_file" in entry for entry in entries.values()):
            names = ", ".join(list(entries)[:8])
            raise RecipeError(f"{path} is a dataset info; name one of its datasets, as in {path}:NAME: {names}")


# ── Hugging Face datasets ────────────────────────────────────────────────────────────────────────────────────────────


def open_table(location: Location, settings: DatasetSettings) -> tuple[RowSource, str]:
    """A dataset in a folder or on the hub, and its digest: that of its files, or the hub's commit."""
    path = location.path
    with _tables(settings.path) as datasets:
        if (path / "dataset_dict.json").exists():
            path = path / settings.split
            if not path.is_dir():
                names = ", ".join(sorted(each.name for each in location.path.iterdir() if each.is_dir()))
                raise RecipeError(f"dataset {settings.path} has no split {settings.split!r}; it has {names}")
        elif (path / "state.json").exists() and settings.split != "train":
            raise RecipeError(f"dataset {settings.path} is a single table, which has no splits; leave out split")
        if (path / "state.json").exists():
            rows = datasets.load_from_disk(str(path))
            rows = rows.to_iterable_dataset() if settings.streaming else rows
            digest = ""
        else:
            builder = datasets.load_dataset_builder(location.target if not path.is_dir() else str(path), location.name)
            digest = str(builder.hash)
            rows = _rows(builder, settings.split, settings.streaming)
        if path.is_dir():
            files = sorted(each for each in path.rglob("*") if each.is_file())
            digest = digest_of(files, path, whole=not settings.streaming)
        return Rows(rows.with_format("arrow"), settings.path), digest


def fetch_modelscope(name: str) -> Path:
    """The folder that a dataset on ModelScope's hub was fetched into.

    Raises:
        RecipeError: it cannot be fetched.
    """
    try:
        from modelscope import dataset_snapshot_download
    except ImportError as error:
        raise MissingExtraError("modelscope: names", "modelscope") from error
    download = functools.partial(dataset_snapshot_download, name)
    return Path(fetch_from_modelscope(f"dataset {name!r}", download, RecipeError))


def _open_parquet(path: Path, streaming: bool) -> RowSource:
    with _tables(str(path)) as datasets:
        builder = datasets.load_dataset_builder("parquet", data_files=str(path))
        return Rows(_rows(builder, "train", streaming).with_format("arrow"), str(path))


def _rows(builder: Any, split: str, streaming: bool) -> Any:
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


@contextlib.contextmanager
def _tables(name: str) -> Iterator[Any]:
    """The library `datasets`; its errors as one line."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("reading tables", "datasets") from error
    datasets.disable_progress_bars()
    try:
        yield datasets
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise RecipeError(
            f"dataset {name} cannot be read ({reason}); give a file, a folder of data files, or a name on the hub"
        ) from error
