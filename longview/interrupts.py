"""Ctrl-C: exit code 130 at any moment, without a traceback.

While a module is imported the program ends at once: native code half way through its own start may abort when an
exception passes through it, and nothing has begun. At any other moment Ctrl-C is a KeyboardInterrupt. Nothing that
takes time to import is imported here.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

CODE = 130
_has_state = False  # there is something to lose: a module is imported to its end first


def heed() -> None:
    """Handle Ctrl-C so from now on."""
    signal.signal(signal.SIGINT, _interrupted)


def end_at_once() -> None:
    """From now on Ctrl-C ends the program wherever it is: nothing is left to be done but to end."""
    signal.signal(signal.SIGINT, leave)


def keep_state() -> None:
    """From now on a module is imported to its end before Ctrl-C is a KeyboardInterrupt, as there is state to lose."""
    global _has_state
    _has_state = True


def leave(*_: object) -> NoReturn:
    """End the process now: no clean-up by the interpreter, in which threads of native libraries may abort."""
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\r\x1b[K\x1b[?25h")  # the line of progress goes, the cursor comes back
    os._exit(CODE)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        raise KeyboardInterrupt
    if not _has_state:
        leave()
    import threading

    threading.Timer(0.05, signal.pthread_kill, [threading.main_thread().ident, number]).start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
