"""Settings: dataclass fields that declare their help and bounds beside their type and default, each of them once.

    @dataclass(frozen=True)
    class SamplingParams:
        temperature: float = setting(0.0, "0 takes the likeliest token; higher is more varied.", low=0, high=100)

        def __post_init__(self) -> None:
            validate(self)

`validate` checks the values, `parse` reads a mapping, `settings_of` lists the fields (the command line makes its
options of them), `json_schema` describes them to other programs. No torch and no numpy here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from longview.errors import RequestError

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """How one field is checked and described. `settings_of` fills in the name, type and default of the field."""

    help: str
    low: float | str | None = None
    """The least value, or the name of the field that holds it."""
    high: float | str | None = None
    """The greatest value, or the name of the field that holds it."""
    above: bool = False
    """Whether `low` is exclusive."""
    whole: bool = True
    """Whether an `int` must be one; otherwise 1e6 will do for a million."""
    choices: tuple[str, ...] = ()
    expected: str = ""
    """What the error asks for, `{low}` being the bound; default: made of the type and the bounds."""
    option: bool = True
    """Whether it is an option of the command line, too."""
    plugin: str | None = None
    """The module of `longview.plugins` whose hook it switches on."""
    name: str = ""
    type: Any = str
    optional: bool = False
    """Whether None is a value."""
    default: Any = None

    @functools.cached_property
    def element(self) -> Any:
        """The type of each value of a list; None where it is no list."""
        return get_args(self.type)[0] if get_origin(self.type) is tuple else None

    @functools.cached_property
    def default_is_right(self) -> bool:
        """Whether the default needs no check, whatever the other fields hold."""
        return self.element is None and not isinstance(self.low, str) and not isinstance(self.high, str)

    def check(self, value: Any, low: float | None, high: float | None) -> None:
        """
        Raises:
            RequestError: the value is of another type, or out of bounds; says what is expected.
        """
        if self.element is not None:
            if not isinstance(value, tuple) or not all(map(self._admits_element, value)):
                shown = list(value) if isinstance(value, tuple) else value
                wanted = "whole numbers from 0 up" if self.element is int else "non-empty strings"
                raise RequestError(f"{self.name} is a list of {wanted}, not {shown!r:.80}")
        elif self.choices:
            if value not in self.choices:
                near = get_close_matches(str(value), self.choices, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise RequestError(f"unknown {self.name} {value!r:.40}; there are {', '.join(self.choices)}{hint}")
        elif not self._admits(value, low, high):
            raise RequestError(f"{self.name} is {value!r:.40}; give {self._wanted(low, high)}")

    def _admits_element(self, value: Any) -> bool:
        if self.element is int:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return isinstance(value, (str, Path) if self.element is Path else str) and value != ""

    def _admits(self, value: Any, low: float | None, high: float | None) -> bool:
        if self.type is bool or self.type is str:
            return isinstance(value, self.type) and value != ""
        kinds = int if self.type is int and self.whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if low is not None and not (low < value if self.above else low <= value):
            return False
        return high is None or value <= high

    def _wanted(self, low: float | None, high: float | None) -> str:
        if self.expected:
            return self.expected.format(low=f"{low or 0:g}")
        if self.type is bool or self.type is str:
            return "True or False" if self.type is bool else "a non-empty string"
        whole = self.type is int and self.whole
        if high is None and not whole:
            return f"a number from {low:g} up"
        least = f"above {low:g}" if self.above else f"at least {low:g}"
        most = "" if high is None else f" and at most {high:g}"
        return f"{'a whole number' if whole else 'a number'} {least}{most}"


def setting(default: Any, help: str, **declared: Any) -> Any:
    """A dataclass field with its help and, as keywords, further fields of `Setting`."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, **declared)})


def settings_of(owner: Any) -> Mapping[str, Setting]:
    """The settings that a class declares, by name, in order; fields without a declaration are left out."""
    return _settings_of(owner)


@functools.cache
def _settings_of(owner: Any) -> Mapping[str, Setting]:
    hints = get_type_hints(owner)
    found = {}
    for field in fields(owner):
        if "setting" not in field.metadata:
            continue
        hint = hints[field.name]
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        (kind,) = (each for each in kinds if each is not type(None))
        found[field.name] = replace(
            field.metadata["setting"], name=field.name, type=kind, optional=len(kinds) > 1, default=field.default
        )
    return types.MappingProxyType(found)


def validate(instance: Any) -> None:
    """Check every setting of an instance. What is given for a list becomes a tuple: one string, a list, or None.

    Raises:
        RequestError: names the first value that is wrong, and what is expected.
    """
    for name, declared in settings_of(type(instance)).items():
        value = getattr(instance, name)
        if (value is declared.default and declared.default_is_right) or (value is None and declared.optional):
            continue
        if declared.element is not None and (value is None or isinstance(value, (str, Sequence))):
            value = (value,) if isinstance(value, str) else tuple(value or ())
            object.__setattr__(instance, name, value)
        low, high = (getattr(instance, b) or 0 if isinstance(b, str) else b for b in (declared.low, declared.high))
        declared.check(value, low, high)


def parse(owner: type[T], name: str, given: Any, noun: str = "") -> T:
    """Settings as an instance of their class, from one, from a mapping of its fields, or from None.

    Args:
        noun: What an unknown key is called in the error; default: an option of that name.

    Raises:
        RequestError: it is none of these, or names a field that does not exist.
    """
    if given is None:
        return owner()
    if isinstance(given, owner):
        return given
    if not isinstance(given, Mapping):
        raise RequestError(f"{name} is {given!r:.60}; give a {owner.__name__}, or its fields as a mapping")
    known = [field.name for field in fields(owner)]  # type: ignore[arg-type]
    check_names(given, known, noun or f"{name} option")
    return owner(**given)


def check_names(given: Mapping[str, Any], known: Sequence[str], noun: str) -> None:
    """
    Raises:
        RequestError: a name that is not known; says which are, and which is nearest.
    """
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        near = get_close_matches(str(unknown), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RequestError(f"unknown {noun} {unknown!r}; there are {', '.join(known)}{hint}")


JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", Path: "string"}


def json_schema(owner: type) -> dict[str, Any]:
    """A JSON schema of the settings of a class, and of classes of settings that its fields hold.

    A bound that another field holds is not in it: `validate` checks that.
    """
    properties: dict[str, Any] = {}
    declared, hints = settings_of(owner), get_type_hints(owner)
    for field in fields(owner):
        if field.name in declared:
            properties[field.name] = _property(declared[field.name])
        elif is_dataclass(hints[field.name]):
            properties[field.name] = json_schema(hints[field.name])
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _property(declared: Setting) -> dict[str, Any]:
    element = declared.element
    kind: Any = "array" if element is not None else JSON_TYPES[declared.type]
    found: dict[str, Any] = {"description": declared.help, "type": [kind, "null"] if declared.optional else kind}
    if element is not None:
        least = {"minimum": 0} if element is int else {"minLength": 1}
        found["items"] = {"type": JSON_TYPES[element], **least}
    elif declared.type is str:
        found["minLength"] = 1
    if declared.choices:
        found["enum"] = [*declared.choices, None] if declared.optional else list(declared.choices)
    if isinstance(declared.low, (int, float)):
        found["exclusiveMinimum" if declared.above else "minimum"] = declared.low
    if isinstance(declared.high, (int, float)):
        found["maximum"] = declared.high
    if not declared.optional:
        found["default"] = list(declared.default) if element is not None else declared.default
    return found
