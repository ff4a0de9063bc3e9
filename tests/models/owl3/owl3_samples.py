"""Tiny models and conversations for the tests of mPLUG-Owl3."""

from __future__ import annotations

from samples import noise

from longview.media import Frame, Medium
from longview.messages import ask, image


def photo(seed: int) -> Medium:
    picture = noise(seed)
    return Medium("image", "photo", [Frame(picture, 0, None)], *picture.size, 1, None, None, "digest")


def prepared(processor, question: str, *seeds: int) -> dict:
    """What `forward` takes for a question about pictures."""
    pictures = [photo(seed) for seed in seeds]
    return processor.prepare([ask(question, *(image(m.frames[0].image) for m in pictures))], pictures).load_pixels()
