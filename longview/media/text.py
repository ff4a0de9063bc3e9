"""Strings from outside, made fit for one line of a message."""

from __future__ import annotations


def shown(text: str, length: int = 120) -> str:
    """Replace what cannot be printed, and cut the middle out of what is longer than `length` characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= length else f"{clean[: length // 2]}…{clean[1 - length // 2 :]}"
