"""A server with the embedded demo, for all tests of this folder, and OpenAI's own client for it."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from serving import Server, running


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def client(server) -> openai.OpenAI:
    return server.client()
