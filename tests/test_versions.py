"""Dependencies outside the tested range are told in one line, and missing ones are named with their range."""

from __future__ import annotations

import re
import sys
import warnings
from email.message import Message
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import longview
from longview import versions
from longview.cli import main
from longview.errors import MissingExtraError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
REQUIRED = [
    "transformers<5.25,>=5.23",
    "numpy<3,>=2.0",
    "rich<16,>=13; python_version < '3'",
    "peft<0.22,>=0.18; extra == 'train'",
    "datasets<6,>=5; extra == 'train'",
    "onnxruntime<2,>=1.20; extra == 'ocr'",
    "rapidocr<4,>=3.5; extra == 'ocr'",
    "ruff==0.17.6; extra == 'dev'",
    "longview-vlm[train]; extra == 'dev'",
]


@pytest.fixture
def installed(monkeypatch):
    """What is installed, and its versions, as the metadata of packages would say it; to be changed by a test."""
    about = Message()
    for line in REQUIRED:
        about["Requires-Dist"] = line
    for extra in ("train", "ocr", "dev"):
        about["Provides-Extra"] = extra
    found = {"longview-vlm": "0.1.0", "transformers": "5.24.1", "numpy": "2.4.6", "ruff": "0.1", "rich": "1.0"}

    def read(package, answer):
        if package not in found:
            raise metadata.PackageNotFoundError(package)
        return answer

    monkeypatch.setattr(metadata, "version", lambda package: read(package, found.get(package)))
    monkeypatch.setattr(metadata, "metadata", lambda package: read(package, about))
    for function in (versions._tested, versions._warn):
        function.cache_clear()
    yield found
    for function in (versions._tested, versions._warn):
        function.cache_clear()


def warned() -> list[str]:
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        versions.warn_of_untested()
    return [str(each.message) for each in record]


def test_the_tested_range_is_silent(installed):
    assert warned() == []
    installed |= {"transformers": "5.24.0rc1", "numpy": "2.0.0+local"}
    assert warned() == []


def test_what_is_outside_the_range_is_told_once_with_the_command_that_mends_it(installed):
    installed |= {"transformers": "5.30.0", "numpy": "1.26.4"}
    assert warned() == [
        "longview was not tested with transformers 5.30.0 (but >=5.23,<5.25), numpy 1.26.4 (but >=2.0,<3); if anything "
        "fails: pip install 'transformers>=5.23,<5.25' 'numpy>=2.0,<3'"
    ]
    assert warned() == []


def test_packages_of_extras_count_when_they_are_in_use(installed, monkeypatch):
    installed["peft"] = "0.30"
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    assert warned() == []
    monkeypatch.setitem(sys.modules, "peft", ModuleType("peft"))
    (line,) = warned()
    assert line.startswith("longview was not tested with peft 0.30 (but >=0.18,<0.22)")


def test_without_metadata_nothing_is_said(installed):
    del installed["longview-vlm"]
    installed["transformers"] = "4.0"
    assert warned() == []
    assert versions.requirement("peft") == "peft"


def test_opening_a_model_warns(installed):
    installed["transformers"] = "5.30.0"
    with pytest.warns(versions.UntestedWarning, match=r"not tested with transformers 5\.30\.0"):
        longview.load("demo")


def test_the_command_line_prints_it_as_one_line(installed, capsys):
    installed["transformers"] = "5.30.0"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *told: print(warnings.formatwarning(*told[:4]), end="", file=sys.stderr)
        with pytest.raises(SystemExit):
            main(["info", "demo", "--device", "cpu"])
    assert capsys.readouterr().err == (
        "warning: longview was not tested with transformers 5.30.0 (but >=5.23,<5.25); if anything fails: "
        "pip install 'transformers>=5.23,<5.25'\n"
    )


def test_a_missing_extra_names_the_packages_that_are_missing_with_their_ranges(installed):
    assert str(MissingExtraError("an adapter", "peft")) == (
        "an adapter needs peft, which is not installed: pip install 'peft>=0.18,<0.22'"
    )
    assert str(MissingExtraError("--ocr", "rapidocr", "onnxruntime")) == (
        "--ocr needs rapidocr and onnxruntime, which are not installed: "
        "pip install 'rapidocr>=3.5,<4' 'onnxruntime>=1.20,<2'"
    )
    installed["rapidocr"] = "3.6"
    assert str(MissingExtraError("--ocr", "rapidocr", "onnxruntime")).endswith("pip install 'onnxruntime>=1.20,<2'")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def dependencies() -> list[Requirement]:
    """All that pyproject.toml names, but itself."""
    about = project()["project"]
    lines = about["dependencies"] + sum(about["optional-dependencies"].values(), project()["build-system"]["requires"])
    return [needed for needed in map(Requirement, lines) if needed.name != about["name"]]


def test_every_dependency_has_a_lower_and_an_upper_bound():
    for needed in dependencies():
        operators = sorted(each.operator for each in needed.specifier)
        assert operators in (["<", ">="], ["=="]), str(needed)


def test_the_lock_holds_every_dependency_within_its_bounds_and_names_no_place():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "+" not in text  # a local version would be found in one place only
    pinned: dict[str, list[Requirement]] = {}
    for line in text.splitlines()[1:]:
        pin = Requirement(line)
        assert [each.operator for each in pin.specifier] == ["=="], line
        pinned.setdefault(pin.name, []).append(pin)
    for needed in dependencies():
        pins = pinned[needed.name.lower().replace("_", "-")]
        for pin in pins:
            assert needed.specifier.contains(next(iter(pin.specifier)).version), f"{needed} is locked at {pin}"
        for minor in range(10, 14):  # one version for each Python
            here = {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1", "sys_platform": "linux"}
            assert sum(pin.marker is None or pin.marker.evaluate(here) for pin in pins) == 1, f"{needed.name} on {here}"


def test_the_distribution_is_named_once():
    assert project()["project"]["name"] == versions.DISTRIBUTION


def test_no_text_installs_longview_by_name():
    shown = [
        path for ending in ("md", "py", "yaml", "sh") for path in ROOT.rglob(f"*.{ending}") if "tests" not in path.parts
    ]
    assert len(shown) > 200
    for path in shown:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"longview(-vlm)?\[|pip install [^\n&]*longview", text), (
            path
        )  # that name is somebody else's
