"""Who imports whom: the trainer knows what is above it by name alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LONGVIEW = Path(__file__).parents[2] / "longview"
ABOVE = {"train": {"cli", "serve", "eval", "bench", "curriculum"}, "curriculum": {"cli", "serve", "eval", "bench"}}


def imported(path: Path) -> set[str]:
    """The rooms of longview that a file imports, at whatever place in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("longview.")}


@pytest.mark.parametrize("room", ABOVE)
def test_a_room_imports_no_room_above_it(room):
    for path in (LONGVIEW / room).rglob("*.py"):
        assert not imported(path) & ABOVE[room], path
