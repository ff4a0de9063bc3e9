"""A server with its page and two models, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Server, running
from visiting import Visit


@pytest.fixture(scope="session")
def with_page() -> Iterator[Server]:
    with running("--model", "demo-owl3", "--model", "demo-ovis2", page=True) as started:
        yield started


@pytest.fixture
def visit(browser, with_page) -> Iterator[Visit]:
    found = Visit(browser, with_page.address)
    yield found
    found.context.close()
