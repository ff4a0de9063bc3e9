"""One line on a terminal that says what is happening, until there is something to print. Cheap to import."""

from __future__ import annotations

import sys

_shown = False


def show(text: str) -> None:
    """Show a text in the place of what the line said before; nothing where stderr is no terminal."""
    global _shown
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
        _shown = True


def clear() -> None:
    """Remove the line, if there is one."""
    global _shown
    if _shown:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
        _shown = False
