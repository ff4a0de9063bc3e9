"""Rows of tables, whatever their file: TSV, JSON, JSONL, Parquet, Hugging Face's folders and names.

A TSV holds its pictures as base64, and may be larger than memory: a `Row` knows where its line begins, and a picture is
read from there when it is shown.
"""

from __future__ import annotations

import ast
import base64
import binascii
import contextlib
import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from longview.errors import LongviewError, RequestError
from longview.eval.items import LETTERS, Shown, picture

csv.field_size_limit(1 << 30)
PICTURE = "image"
"""The column that is left on the disk, but for the index of a row that has the picture."""
EMPTY = ("", "nan", "none", "n/a", "NaN", "None", "N/A")
"""What tables write for a cell without a value."""


class Fields(dict[str, Any]):
    """An object of a file; a key that is asked for and is not there is the file's mistake."""

    __slots__ = ("where",)

    def __init__(self, fields: Iterable[tuple[str, Any]], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def __missing__(self, key: str) -> Any:
        has = ", ".join(self) or "nothing"
        raise RequestError(
            f"{self.where}: an object has no {key!r} (it has {has:.200}); fetch the file again, or mend it"
        )


class Row(dict[str, Any]):
    """A row of a TSV without its pictures, and where it begins."""

    def __init__(
        self, cells: Mapping[str, Any], path: Path, offset: int, number: int, listed: int | None, digest: str
    ) -> None:
        super().__init__(cells)
        self.digest = digest
        """Of its picture's cell."""
        self.path, self.offset, self.number = path, offset, number
        self.listed = listed
        """How many pictures its cell lists; None where it is one picture, or none."""

    def __str__(self) -> str:
        return f"{self.path}, row {self.number}"

    def cell(self, column: str) -> str:
        """A cell that was left on the disk."""
        with self.path.open("rb") as file:
            header = next(csv.reader(_lines(file), delimiter="\t"))
            file.seek(self.offset)
            return next(csv.reader(_lines(file), delimiter="\t"))[header.index(column)]


def read_tsv(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    """The rows of a TSV.

    Raises:
        RequestError: a column is missing, the file is not UTF-8 text, or a row has more or fewer cells than its head.
    """
    try:
        with path.open("rb") as file:
            rows = csv.reader(_lines(file), delimiter="\t")
            header = [name.lstrip("\ufeff") for name in next(rows, [])]
            check_columns(path, header, needed)
            light = [number for number, name in enumerate(header) if name != PICTURE]
            begin = file.tell()
            for number, cells in enumerate(rows, 1):
                if len(cells) != len(header):
                    raise RequestError(
                        f"{path}, row {number} has {len(cells)} cells, and its head names {len(header)}; fetch the "
                        "file again"
                    )
                found: dict[str, Any] = {header[place]: cells[place] for place in light}
                count, digest = None, ""
                if PICTURE in header:
                    cell = cells[header.index(PICTURE)]
                    count = len(listed(cell)) if cell.startswith("[") else None
                    found[PICTURE] = cell if len(cell) <= 64 and count is None else None
                    digest = hashlib.sha256(cell.encode()).hexdigest()[:24]
                yield Row(found, path, begin, number, count, digest)
                begin = file.tell()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text ({error.reason}); fetch it again") from None
    except csv.Error as error:
        raise RequestError(f"{path} is no TSV ({error}); fetch it again") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); check the file") from None


def _lines(file: Any) -> Iterator[str]:
    """Lines, read so that `file.tell()` is where the next one begins."""
    while line := file.readline():
        yield line.decode("utf-8")


def check_columns(path: Any, columns: Sequence[str], needed: Sequence[str]) -> None:
    """
    Raises:
        RequestError: a needed column is missing; `a|b` is either.
    """
    for name in needed:
        if not set(name.split("|")) & set(columns):
            raise RequestError(
                f"{path} has no column {' or '.join(map(repr, name.split('|')))}; it has {', '.join(columns) or 'none'}"
            )


def read_rows(path: Path | str, needed: Sequence[str] = (), split: str = "train") -> Iterator[dict[str, Any]]:
    """The rows of JSON lines, a JSON list, a Parquet file, or a Hugging Face dataset in a folder or on the hub.

    Raises:
        LongviewError: it cannot be read, a row is no object, or a column is missing.
    """
    from longview.train.data.settings import DatasetSettings
    from longview.train.data.sources import open_source, parse

    source = open_source(DatasetSettings(str(path), split=split)).source
    for number, row in source.walk():
        try:
            found = parse(row)
        except LongviewError as error:
            raise RequestError(f"{path}, {source.unit} {number} is {error}; mend it") from None
        if not isinstance(found, dict):
            raise RequestError(f"{path}, {source.unit} {number} is no object; give one a {source.unit}")
        where = f"{path}, {source.unit} {number}"
        check_columns(where, list(found), needed)
        yield Fields(found.items(), where)


def read_json(path: Path) -> Any:
    """A file's JSON, whose objects name the file where they lack a key.

    Raises:
        RequestError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=partial(Fields, where=str(path)))
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); check the file") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON ({' '.join(str(error).split())[:120]}); fetch it again") from None


# ── cells ──


def filled(row: Mapping[str, Any], column: str) -> str:
    """A cell as text; "" where it has none."""
    value = row.get(column)
    text = "" if value is None else str(value)
    return "" if text.strip() in EMPTY else text


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options A, B, … up to the first that is empty."""
    found: list[str] = []
    for letter in LETTERS:
        if letter not in row or not filled(row, letter):
            break
        found.append(filled(row, letter))
    return tuple(found)


def listed(value: Any) -> list[Any]:
    """A list that a table may hold as text, in JSON or as Python writes it."""
    if not isinstance(value, str):
        return [value] if isinstance(value, (int, float)) else list(value or ())
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            found = read(value)
            if isinstance(found, (list, tuple)):
                return list(found)
    return [value]


def stored_picture(value: Any, folder: Path, name: str) -> Shown:
    """A picture as datasets store it: {"bytes", "path"}, a path below the folder, or base64.

    Raises:
        RequestError: it is none of these.
    """
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if data:
            return Shown("image", lambda: data, value.get("path") or name)
        value = value.get("path")
    if isinstance(value, str) and value:
        if len(value) < 1024 and (folder / value).suffix:
            return picture(folder / value, value)
        return Shown("image", lambda: decoded(value, name), name)
    raise RequestError(f"{name} holds no picture; expected its bytes, base64, or a path")


def decoded(text: str, where: str) -> bytes:
    """
    Raises:
        RequestError: the text is no base64.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"the picture of {where} is no base64; fetch the file again") from None
