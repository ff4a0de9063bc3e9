"""The program: `longview`, and `python -m longview`."""

from __future__ import annotations

import contextlib
import sys

from longview import interrupts, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SLOW = frozenset(("ask", "bench", "chat", "eval", "export", "frames", "info", "merge", "prefer", "report", "train"))
"""Verbs that import torch, which takes seconds."""
SILENT = frozenset(("-h", "--help", "--json", "--quiet", "-q"))


def main() -> NoReturn:
    """Run the command line."""
    try:
        _run()
    except KeyboardInterrupt:  # in a moment that is nobody's
        interrupts.leave()


def _run() -> NoReturn:
    interrupts.heed()
    if sys.argv[1:2] and sys.argv[1] in SLOW and not SILENT.intersection(sys.argv):
        status.show("starting…")
    from longview.cli import main as run

    try:
        run()
    except SystemExit as ended:
        interrupts.end_at_once()
        if ended.code == interrupts.CODE:
            with contextlib.suppress(OSError):  # nobody reads it
                sys.stdout.flush()
            interrupts.leave()
        raise


if __name__ == "__main__":
    main()
