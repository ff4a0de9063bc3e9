"""Settings: each declared once, checked by one routine, read from mappings, and described to other programs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from longview.engine import Budget
from longview.errors import RequestError
from longview.requests import Limits, MediaOptions, RequestSettings, SamplingParams
from longview.settings import json_schema, parse, setting, settings_of, validate
from longview.train.preferences.remote import JudgeOptions

OWNERS = [SamplingParams, MediaOptions, Limits, RequestSettings]


@dataclasses.dataclass(frozen=True)
class Example:
    """All sorts of settings."""

    count: int = setting(1, "A number of things.", low=1)
    share: float | None = setting(None, "A share.", low=0, above=True, high="count")
    names: tuple[str, ...] = setting((), "Names.")
    places: tuple[int, ...] | None = setting(None, "Places.")
    colour: str = setting("red", "A colour.", choices=("red", "green"))
    loud: bool = setting(False, "Whether it is heard.")
    size: int = setting(10, "Bytes.", low=1, whole=False)

    def __post_init__(self) -> None:
        validate(self)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"count": 0}, "count is 0; give a whole number at least 1"),
        ({"count": True}, "count is True; give a whole number at least 1"),
        ({"count": None}, "count is None; give a whole number at least 1"),
        ({"count": 2, "share": 3}, "share is 3; give a number above 0 and at most 2"),
        ({"share": 0}, "share is 0; give a number above 0 and at most 1"),
        ({"share": float("nan")}, "share is nan"),
        ({"names": [""]}, "names is a list of non-empty strings, not ['']"),
        ({"names": 5}, "names is a list of non-empty strings, not 5"),
        ({"places": [1, -1]}, "places is a list of whole numbers from 0 up, not [1, -1]"),
        ({"places": [True]}, "places is a list of whole numbers from 0 up, not [True]"),
        ({"colour": "gren"}, "unknown colour 'gren'; there are red, green; did you mean 'green'?"),
        ({"loud": "no"}, "loud is 'no'; give True or False"),
        ({"size": 0.5}, "size is 0.5; give a number from 1 up"),
        ({"size": 10**400, "count": -(10**400)}, "count is -1000"),
        ({"sise": 1}, "unknown example option 'sise'; there are count, share, names, places, colour, loud, size; did"),
        ({"xyz": 1}, "unknown example option 'xyz'; there are count, share, names, places, colour, loud, size"),
        (3, "example is 3; give a Example, or its fields as a mapping"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(given, complaint):
    with pytest.raises(RequestError) as caught:
        parse(Example, "example", given)
    assert str(caught.value).startswith(complaint)


def test_settings_are_read_from_a_mapping_an_instance_or_nothing():
    assert parse(Example, "example", None) == Example()
    assert parse(Example, "example", {"count": 3, "names": "a", "size": 1e6}) == Example(3, names=("a",), size=10**6)
    assert Example(names=["a", "b"]).names == ("a", "b")
    assert Example(names=None).names == ()
    own = Example(2)
    assert parse(Example, "example", own) is own


def test_a_json_schema_describes_what_is_declared():
    assert json_schema(Example) == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "count": {"description": "A number of things.", "type": "integer", "minimum": 1, "default": 1},
            "share": {"description": "A share.", "type": ["number", "null"], "exclusiveMinimum": 0},
            "names": {
                "description": "Names.",
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "default": [],
            },
            "places": {
                "description": "Places.",
                "type": ["array", "null"],
                "items": {"type": "integer", "minimum": 0},
            },
            "colour": {
                "description": "A colour.",
                "type": "string",
                "minLength": 1,
                "enum": ["red", "green"],
                "default": "red",
            },
            "loud": {"description": "Whether it is heard.", "type": "boolean", "default": False},
            "size": {"description": "Bytes.", "type": "integer", "minimum": 1, "default": 10},
        },
    }
    request = json_schema(RequestSettings)["properties"]
    assert request["n"]["maximum"] == 64
    assert request["media"] == json_schema(MediaOptions)
    assert request["params"]["properties"]["seed"]["type"] == ["integer", "null"]


@pytest.mark.parametrize("owner", OWNERS)
def test_every_field_declares_its_help(owner):
    nested = {"params", "media", "limits"} if owner is RequestSettings else set()
    assert {field.name for field in dataclasses.fields(owner)} - nested == set(settings_of(owner))
    assert all(declared.help.endswith((".", ".)")) for declared in settings_of(owner).values())
    owner()


@pytest.mark.parametrize("owner", [*OWNERS, Budget, JudgeOptions])
def test_a_default_that_no_instance_checks_is_right(owner):
    for declared in settings_of(owner).values():
        if declared.default_is_right and not (declared.optional and declared.default is None):
            declared.check(declared.default, declared.low, declared.high)


def test_keywords_of_a_request_are_its_own_and_those_of_its_sampling():
    found = RequestSettings.of(n=2, ocr=True, temperature=0.5, media={"frames": 3})
    assert (found.n, found.ocr, found.params, found.media) == (
        2,
        True,
        SamplingParams(temperature=0.5),
        MediaOptions(3),
    )
    assert RequestSettings.of(params={"seed": 1}) == RequestSettings.of(seed=1)
    with pytest.raises(RequestError, match=r"unknown setting 'temprature'.*did you mean 'temperature'"):
        RequestSettings.of(temprature=1)
    with pytest.raises(RequestError, match="n is 65; give a whole number from 1 to 64"):
        RequestSettings.of(n=65)


def test_the_settings_are_read_without_torch_and_numpy():
    program = (
        "import sys, longview.requests; print([n for n in ('torch', 'numpy', 'transformers') if n in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
