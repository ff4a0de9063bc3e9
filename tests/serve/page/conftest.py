"""A server with its page and two models, and a browser, for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Server, running
from visiting import FLAGS, Visit


@pytest.fixture(scope="session")
def with_page() -> Iterator[Server]:
    with running("--model", "demo-owl3", "--model", "demo-ovis2", page=True) as started:
        yield started


@pytest.fixture(scope="module")  # while it is open, a loop of asyncio runs in this thread
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, with_page) -> Iterator[Visit]:
    found = Visit(browser, with_page.address)
    yield found
    found.context.close()
