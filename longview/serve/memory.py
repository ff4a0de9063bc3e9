"""Memory that was freed goes back to the system: glibc keeps tens of megabytes of large blocks that it has had."""

from __future__ import annotations

import asyncio
import ctypes
from typing import Any

LARGE = 1 << 20
"""Bytes of a request from which on memory is given back after it."""
SECONDS = 0.5
"""After which it is: by then the request's last pieces are freed, and others that come with it are too."""


class Trimmer:
    """Gives back what the large requests of one event loop have left."""

    def __init__(self) -> None:
        self._trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        self._waiting = False

    def note(self, num_bytes: int) -> None:
        """A request of so many bytes has ended."""
        if num_bytes >= LARGE and self._trim is not None and not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_later(SECONDS, self._give_back)

    def _give_back(self) -> None:
        self._waiting = False
        asyncio.get_running_loop().run_in_executor(None, self._trim, 0)  # outside of Python's lock
