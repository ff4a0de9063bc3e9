"""Settings as frozen dataclasses: built from nested mappings, and held to the bounds that stand beside each field."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from longview.errors import RecipeError

INFINITE = math.inf


def bounded(default: Any, low: float, high: float = INFINITE, above: bool = False) -> Any:
    """A number with its least and its most, neither of them infinite.

    Args:
        above: `low` itself is too little.
    """
    return field(default=default, metadata={"bounds": (low, high, above)})


def section(settings: str) -> dict[str, str]:
    """Metadata of a field with settings that another room declares, as `module:Class`; it is imported when needed."""
    return {"settings": settings}


def load(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def nearest(key: Any, known: Iterable[str]) -> str:
    """The known name that is spelt most like a key."""
    return difflib.get_close_matches(str(key), list(known), n=1, cutoff=0)[0]


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_number(where: str, value: float, low: float, high: float = INFINITE, above: bool = False) -> None:
    """
    Raises:
        RecipeError: a number is outside its bounds, infinite, or no number.
    """
    if not (low <= value <= high) or value == INFINITE or (above and value == low):
        least = f"a number above {low}" if above else f"{low} or more"
        raise RecipeError(f"{where} is {value}; give {least}{f', at most {high}' if high < INFINITE else ''}")


def check_bounds(settings: Any, where: str) -> None:
    """Hold every bounded number of some settings, and of those inside them, to its bounds.

    Raises:
        RecipeError: names the first that is outside.
    """
    prefix = f"{where}." if where else ""
    for entry in dataclasses.fields(settings):
        value, path = getattr(settings, entry.name), f"{prefix}{entry.name}"
        if "bounds" in entry.metadata:
            check_number(path, value, *entry.metadata["bounds"])
        elif dataclasses.is_dataclass(value):
            check_bounds(value, path)


# ── trees ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def build(kind: Any, value: Any, where: str) -> Any:
    """A value of an annotated type from a tree of mappings and lists, as YAML or JSON hold them.

    Raises:
        RecipeError: says where the tree does not fit, and names the nearest known key.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return build(next(option for option in arguments if option is not type(None)), value, where)
    if origin is list:
        if not isinstance(value, list):
            raise RecipeError(f"{where} is {value!r:.60}; expected a list")
        return [build(arguments[0], element, f"{where}.{index}") for index, element in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where} is {value!r:.60}; expected keys and values")
        return {str(key): build(arguments[1], element, f"{where}.{key}") for key, element in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{where} is {value!r:.60}; expected one of {', '.join(map(str, arguments))}")
        return value
    if kind is Any:
        return value
    if kind is float:
        # YAML 1.1 reads 1e-3 as text, because it lacks a dot.
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise RecipeError(f"{where} is {value!r:.60}; expected a number") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {int: "a whole number", str: "text", bool: "true or false"}
        raise RecipeError(f"{where} is {value!r:.60}; expected {names[kind]}")
    return value


def _build_dataclass(kind: Any, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise RecipeError(f"{where or 'the recipe'} is {tree!r:.60}; expected keys and values")
    entries, hints = {entry.name: entry for entry in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    for key in tree:
        if key not in entries:
            raise RecipeError(
                f"unknown key {key!r} in {where or 'the recipe'}; the nearest known key is {nearest(key, entries)!r}"
            )
    lacking = sorted(name for name, entry in entries.items() if _is_required(entry) and name not in tree)
    if lacking:
        raise RecipeError(f"{where or 'the recipe'} lacks {', '.join(lacking)}")
    prefix = f"{where}." if where else ""
    built = {}
    for key, value in tree.items():
        declared = entries[key].metadata.get("settings")
        wanted = hints[key] if declared is None or value is None else load(declared)
        built[key] = build(wanted, value, prefix + key)
    return kind(**built)


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
