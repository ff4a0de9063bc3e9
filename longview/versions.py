"""Dependencies and the versions that longview was tested with, read from its own package metadata.

The ranges stand in pyproject.toml and nowhere else. Without metadata (a folder on PYTHONPATH, not installed) no range
is known: nothing is checked, and packages are named without one.
"""

from __future__ import annotations

import functools
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

DISTRIBUTION = "longview-vlm"
_TOOLS = "dev"  # the extra of tools that judge the code; no model meets them


class UntestedWarning(UserWarning):
    """A dependency is installed in a version that the suite has not passed."""


class Tested(NamedTuple):
    """The range of versions of a package that the suite has passed, and whether longview always needs the package."""

    versions: SpecifierSet
    core: bool


def requirement(package: str) -> str:
    """What to ask pip for, quoted for a shell: `'peft>=0.18,<0.22'`; without metadata the name alone."""
    tested = _tested().get(package)
    return shlex.quote(package if tested is None else package + _text(tested.versions))


def missing(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if _installed(package) is None]


def warn_of_untested() -> None:
    """Warn in one line of dependencies in use whose versions are outside the tested range; once for the same ones.

    In use: what longview always needs, and packages of extras that are imported by now.
    """
    strange = []
    for package, tested in _tested().items():
        installed = _installed(package)
        in_use = tested.core or package.replace("-", "_") in sys.modules
        if in_use and installed is not None and not tested.versions.contains(installed, prereleases=True):
            strange.append((package, installed))
    if strange:
        _warn(tuple(strange))


@functools.cache
def _warn(strange: tuple[tuple[str, str], ...]) -> None:
    ranges = {package: _text(tested.versions) for package, tested in _tested().items()}
    found = ", ".join(f"{package} {installed} (but {ranges[package]})" for package, installed in strange)
    mend = " ".join(requirement(package) for package, _ in strange)
    message = f"longview was not tested with {found}; if anything fails: pip install {mend}"
    warnings.warn(message, UntestedWarning, stacklevel=2)


@functools.cache
def _tested() -> dict[str, Tested]:
    """The tested range of each dependency on this Python and system; empty without metadata."""
    from importlib import metadata

    from packaging.requirements import Requirement

    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}
    extras = [extra for extra in about.get_all("Provides-Extra", ()) if extra != _TOOLS]
    found: dict[str, Tested] = {}
    for line in about.get_all("Requires-Dist", ()):
        needed = Requirement(line)
        holds = [extra for extra in ("", *extras) if needed.marker is None or needed.marker.evaluate({"extra": extra})]
        if holds and needed.name != DISTRIBUTION:
            found.setdefault(needed.name, Tested(needed.specifier, core="" in holds))
    return found


def _installed(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(versions: SpecifierSet) -> str:
    """ ">=0.18,<0.22": the lower bound first."""
    return ",".join(sorted(map(str, versions), reverse=True))
