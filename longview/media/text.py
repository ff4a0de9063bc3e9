"""Untrusted strings, made printable in one line of a message."""

from __future__ import annotations


def printable(text: str, length: int = 120) -> str:
    """Replace characters that cannot be printed, and cut out the middle beyond `length` characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return clean if len(clean) <= length else f"{clean[: length // 2]}…{clean[1 - length // 2 :]}"
