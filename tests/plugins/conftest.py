"""A tiny random SDXL pipeline in a folder of its own, and pictures with text in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from samples import sign, tiny_painter


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    return tiny_painter(tmp_path_factory.mktemp("painter"))


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A real JPEG with two lines of text."""
    path = tmp_path_factory.mktemp("signs") / "sign.jpg"
    sign("STOP 42", "Platform 9, Track B").save(path, quality=85)
    return path
