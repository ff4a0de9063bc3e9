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
import io
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError, LongviewError, RecipeError, RequestError
from longview.eval.items import LETTERS, Shown, picture
from longview.eval.readers.columns import Columns, Fields, check_columns, checked

csv.field_size_limit(1 << 30)
PICTURE = "image"
"""The column that is left on the disk, but for the index of a row that has the picture."""
EMPTY = ("", "nan", "none", "n/a", "NaN", "None", "N/A")
"""What tables write for a cell without a value."""
NO_OPTION = ("", "nan", "NaN")
"""The same for options, which may be "None"."""


class Row(Fields):
    """A row of a TSV without its pictures, and where it begins."""

    def __init__(self, cells: Mapping[str, Any], path: Path, offset: int, number: int, listed: int | None) -> None:
        super().__init__(cells, f"{path}, row {number}")
        self.path, self.offset, self.number = path, offset, number
        self.listed = listed
        """How many pictures its cell lists; None where it is one picture, or none."""

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
            header = next(rows, [])
            check_columns(path, header, needed)
            light = [number for number, name in enumerate(header) if name != PICTURE]
            begin = file.tell()
            for number, cells in enumerate(rows, 1):
                if not cells:
                    begin = file.tell()
                    continue
                if len(cells) != len(header):
                    raise RequestError(f"{path}, row {number} {_uneven(cells, header)}")
                found: dict[str, Any] = {header[place]: cells[place] for place in light}
                count = None
                if PICTURE in header:
                    cell = cells[header.index(PICTURE)]
                    count = len(listed(cell)) if cell.startswith("[") else None
                    found[PICTURE] = cell if len(cell) <= 64 and count is None else None
                yield Row(found, path, begin, number, count)
                begin = file.tell()
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text ({error.reason}); fetch it again") from None
    except csv.Error as error:
        raise RequestError(f"{path} is no TSV ({error}); fetch it again") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); check the file") from None


def _lines(file: Any) -> Iterator[str]:
    """Lines, without the mark of UTF-8, read so that `file.tell()` is where the next one begins."""
    while line := file.readline():
        yield line.decode("utf-8-sig")


def read_rows(path: Path | str, needed: Columns = (), split: str = "train") -> Iterator[Fields]:
    """The rows of JSON lines, a JSON list, a Parquet file, or a Hugging Face dataset in a folder or on the hub.

    Raises:
        LongviewError: it cannot be read, a row is no object, or a column is missing or of another kind.
    """
    from longview.train.data.settings import DatasetSettings
    from longview.train.data.sources import open_source, parse

    _check_parquet(Path(path))
    try:
        source = open_source(DatasetSettings(str(path), split=split)).source
    except (RecipeError, CheckpointError) as error:
        name = str(path).partition(":")[0]
        if Path(name).exists():
            raise
        raise RequestError(f"there is no folder {name} here; {error}") from None
    for number, row in source.walk():
        where = f"{path}, {source.unit} {number}"
        try:
            found = parse(row)
        except LongviewError as error:
            raise RequestError(
                f"{where} is {error}; expected an object a line, or a list of objects; mend it"
            ) from None
        yield checked(where, found, needed)


def _check_parquet(path: Path) -> None:
    """
    Raises:
        RequestError: a file of that name holds something else.
    """
    if path.suffix == ".parquet" and path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                raise RequestError(f"{path} is no Parquet file; fetch it again")


def read_text(path: Path) -> str:
    """
    Raises:
        RequestError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); check the file") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text ({error.reason}); fetch it again") from None


def read_json(path: Path) -> Any:
    """
    Raises:
        RequestError: it cannot be read, or is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is no JSON ({' '.join(str(error).split())[:120]}); fetch it again") from None


def read_csv(path: Path, needed: Sequence[str]) -> Iterator[Fields]:
    """The rows of a CSV.

    Raises:
        RequestError: it cannot be read, a column is missing, or a row has more or fewer cells than its head.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        header = next(rows, [])
        check_columns(path, header, needed)
        for number, cells in enumerate(rows, 1):
            if not cells:
                continue
            if len(cells) != len(header):
                raise RequestError(f"{path}, row {number} {_uneven(cells, header)}")
            yield Fields(dict(zip(header, cells, strict=True)), f"{path}, row {number}")
    except csv.Error as error:
        raise RequestError(f"{path} is no CSV ({error}); fetch it again") from None


def _uneven(cells: Sequence[str], header: Sequence[str]) -> str:
    return f"has {len(cells)} cells, and its head names {len(header)}; fetch the file again"


# ── cells ──


def filled(row: Mapping[str, Any], column: str) -> str:
    """A cell as text; "" where it has none."""
    value = row.get(column)
    text = "" if value is None else str(value)
    return "" if text.strip() in EMPTY else text


def options_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options A, B, … up to the first that is empty."""
    cells = ("" if row.get(letter) is None else str(row[letter]) for letter in LETTERS)
    return tuple(itertools.takewhile(lambda cell: cell.strip() not in NO_OPTION, cells))


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


def listed_options(where: Any, value: Any) -> list[Any]:
    """The options of a multiple choice, as a list or as its text.

    Raises:
        RequestError: they are fewer than two.
    """
    found = listed(value)
    if len(found) < 2:
        raise RequestError(f"{where}: 'options' is {value!r:.40}; expected a list of two or more; mend it")
    return found


def below(folder: Path, name: str, *folders: str) -> Path:
    """A file in one of some folders below another, or in that one; the first of these, if it is in none."""
    places = [folder / each / name for each in (*folders, "")]
    return next((place for place in places if place.is_file()), places[0])


def stored_picture(where: Any, value: Any, folder: Path, name: str) -> Shown:
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
    raise RequestError(f"{where}: {name} is {value!r:.40}; expected a picture: its bytes, base64, or a path; mend it")


def decoded(text: str, where: str) -> bytes:
    """
    Raises:
        RequestError: the text is no base64.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"the picture of {where} is no base64; fetch the file again") from None
