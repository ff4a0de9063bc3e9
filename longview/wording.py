"""Numbers and nouns in sentences."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str = "") -> str:
    """1 picture, 1,200 pictures."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def with_article(noun: str) -> str:
    """A picture, an image."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
