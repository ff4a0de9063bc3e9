"""Numbers and nouns: one picture, two pictures, an image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longview.errors import RequestError
from longview.messages import Part
from longview.wording import counted, with_article

ROOT = Path(__file__).parents[1]


def test_one_is_singular():
    assert [counted(n, "picture") for n in (0, 1, 1200)] == ["0 pictures", "1 picture", "1,200 pictures"]
    assert [counted(n, "medium", "media") for n in (1, 2)] == ["1 medium", "2 media"]


def test_an_article_fits_its_noun():
    assert [with_article(noun) for noun in ("image_url", "video")] == ["an image_url", "a video"]
    for kind in ("image", "image_url"):
        with pytest.raises(RequestError, match=f"^an {kind} part needs exactly one"):
            Part.from_dict({"type": kind})


def test_no_document_counts_one_as_several():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.json")]:
        assert not re.search(r"(?<![\d.,])1 (pictures|frames|tokens|rows|steps|videos)\b", path.read_text()), path
