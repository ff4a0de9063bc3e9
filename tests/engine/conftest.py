"""An engine over each family's tiny model, and what it answers when it is asked one question only."""

from __future__ import annotations

import pytest
from questions import QUESTIONS, SETTINGS, new_engine


@pytest.fixture
def engine(tiny):
    return new_engine(tiny)


@pytest.fixture(scope="session")
def alone(tiny):
    """Each question's answer from an engine of its own."""
    return {name: new_engine(tiny).answer(question, **SETTINGS) for name, question in QUESTIONS.items()}
