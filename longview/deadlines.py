"""Waiting no longer than so many seconds, and ending tasks, so that whoever waits can be told to end at any moment.

Before Python 3.12, `asyncio.wait_for` loses a cancellation that comes together with what it waits for; so does a
block that awaits a task and suppresses `CancelledError`, at all times. A task that was told to end then goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: float) -> T:
    """What an awaitable gives, which is cancelled when it takes longer.

    A result that comes together with a cancellation is dropped. One that has to be closed is to be closed by whoever
    asked: give a task, and look at it.

    Raises:
        asyncio.TimeoutError: it gives nothing so soon.
    """
    upcoming = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([upcoming], timeout=seconds)
        if not upcoming.done():
            raise asyncio.TimeoutError
    finally:
        await end(upcoming)
    return upcoming.result()


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait until they have ended; how they end is nobody's business."""
    waiting = [task for task in tasks if task.cancel()]
    if waiting:
        await asyncio.wait(waiting)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, so that it is not reported as lost
