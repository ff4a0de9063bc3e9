"""Memory of large requests goes back to the system once for all that end together."""

from __future__ import annotations

import asyncio

import pytest

from longview.serve import memory
from longview.serve.memory import LARGE, Trimmer


@pytest.mark.parametrize(("sizes", "trims"), [([LARGE], 1), ([LARGE, 3 * LARGE, 0], 1), ([0, LARGE - 1], 0)])
def test_it_is_given_back_after_large_requests_alone(monkeypatch, sizes, trims):
    monkeypatch.setattr(memory, "SECONDS", 0.01)
    given = []

    async def run() -> None:
        trimmer = Trimmer()
        trimmer._trim = given.append
        for _ in range(2):
            for size in sizes:
                trimmer.note(size)
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert given == [0] * (2 * trims)


def test_a_system_without_glibc_keeps_its_memory():
    async def run() -> None:
        trimmer = Trimmer()
        trimmer._trim = None
        trimmer.note(LARGE)
        assert not trimmer._waiting

    asyncio.run(run())
