"""What rows must hold: columns, and the kind of each. One line says which row lacks what.

Tables as pandas writes them have NaN where a cell is missing, and floats where whole numbers stood beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from longview.errors import RequestError

Columns: TypeAlias = "Sequence[str] | Mapping[str, str]"
"""Names, or names with their kinds. `a|b` is either; `a?` may be missing or empty; `list|text` is either kind."""

_TYPES: dict[str, Any] = {
    "any": object,
    "text": str,
    "value": (str, int, float),
    "number": (int, float),
    "list": (list, tuple),
    "texts": (list, tuple),
    "objects": (list, tuple),
    "object": Mapping,
}
_WORDS = {
    "text": "text",
    "value": "text or a number",
    "number": "a number",
    "list": "a list",
    "texts": "a list of texts",
    "objects": "a list of objects",
    "object": "an object",
}


class Fields(dict[str, Any]):
    """A row of a file, and where it is; a column that is asked for and is not there is the file's mistake."""

    __slots__ = ("where",)

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def __str__(self) -> str:
        return self.where

    def __missing__(self, key: str) -> Any:
        check_columns(self.where, list(self), (key,))


def check_columns(where: Any, columns: Iterable[str], needed: Iterable[str]) -> None:
    """
    Raises:
        RequestError: a needed column is missing.
    """
    has, wanted = list(columns), [name for name in needed if not name.endswith("?")]
    for name in wanted:
        if not set(name.split("|")) & set(has):
            every = f"; needed are {', '.join(wanted).replace('|', ' or ')}" if len(wanted) > 1 else ""
            raise RequestError(
                f"{where} has no column {' or '.join(map(repr, name.split('|')))}; it has "
                f"{', '.join(map(str, has)) or 'none':.200}{every}; mend it, or fetch the file again"
            )


def checked(where: str, row: Any, columns: Columns) -> Fields:
    """A row that has these columns; NaN is None, and 1.0 in a column of the kind "value" is 1.

    Raises:
        RequestError: it is no object, or a column is missing or of another kind.
    """
    if not isinstance(row, Mapping):
        raise RequestError(f"{where} is {row!r:.40}; expected an object; mend it, or fetch the file again")
    check_columns(where, row, columns)
    row = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
    for names, kinds in columns.items() if isinstance(columns, Mapping) else ():
        found = {name: row[name] for name in names.removesuffix("?").split("|") if name in row}
        if names.endswith("?") or (len(found) > 1 and any(value is not None for value in found.values())):
            found = {name: value for name, value in found.items() if value is not None}
        for name, value in found.items():
            if not any(_is(value, kind) for kind in kinds.split("|")):
                expected = " or ".join(_WORDS[kind] for kind in kinds.split("|"))
                raise RequestError(
                    f"{where}: {name!r} is {value!r:.40}; expected {expected}; mend it, or fetch the file again"
                )
            if kinds == "value" and isinstance(value, float) and value.is_integer():
                row[name] = int(value)
    return Fields(row, where)


def _is(value: Any, kind: str) -> bool:
    if not isinstance(value, _TYPES[kind]):
        return False
    if kind in ("texts", "objects"):
        return all(isinstance(each, Mapping if kind == "objects" else (str, int, float)) for each in value)
    return True


def either(row: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """What the first of some columns holds that holds anything."""
    return next((row[name] for name in names if row.get(name) is not None), default)


def rows_of(path: Any, data: Any, columns: Columns, unit: str = "row") -> Iterator[Fields]:
    """The objects of a list.

    Raises:
        RequestError: it is no list, or one of them is not as `checked` expects.
    """
    if not isinstance(data, (list, tuple)):
        raise RequestError(f"{path} holds {_kind(data)}; expected a list of objects; fetch it again")
    for number, row in enumerate(data, 1):
        yield checked(f"{path}, {unit} {number}", row, columns)


def entries_of(path: Any, data: Any, columns: Columns) -> Iterator[tuple[str, Fields]]:
    """The objects of an object, by their ids.

    Raises:
        RequestError: it is none, or one of them is not as `checked` expects.
    """
    if not isinstance(data, Mapping):
        raise RequestError(f"{path} holds {_kind(data)}; expected an object of questions by their ids; fetch it again")
    for id, row in data.items():
        yield str(id), checked(f"{path}, question {id}", row, columns)


def under(path: Any, data: Any, key: str, columns: Columns) -> Iterator[Fields]:
    """The objects of the list that an object holds under a key.

    Raises:
        RequestError: there is no such list, or one of them is not as `checked` expects.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get(key), list):
        raise RequestError(f"{path} has no list under {key!r}; give the file of {key}, or fetch it again")
    yield from rows_of(f"{path}, {key}", data[key], columns)


def _kind(data: Any) -> str:
    if isinstance(data, (list, tuple)):
        return "a list"
    return "an object" if isinstance(data, Mapping) else f"{data!r:.40}"
