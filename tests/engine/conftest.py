"""An engine over each family's tiny model, and what it answers when it is asked one question only."""

from __future__ import annotations

import pytest
from questions import QUESTIONS, SETTINGS, new_engine
from samples import tiny_model

from longview.models.families import families

SAME_TO_AN_ENGINE = {("ovis2", "siglip"), ("ovis2", "st_argmax")}
"""Variants that differ from another in how pictures become features only, which tests/models holds."""
VARIANTS = [(name, variant) for name, family in sorted(families().items()) for variant in family.Config.variants]


@pytest.fixture(scope="session", params=[each for each in VARIANTS if each not in SAME_TO_AN_ENGINE], ids="-".join)
def tiny(request, tokenizer):
    """Each family's variants in turn, as those of all tests, but for those that are the same to an engine."""
    name, variant = request.param
    return tiny_model(families()[name], variant, tokenizer)


@pytest.fixture
def engine(tiny):
    return new_engine(tiny)


@pytest.fixture(scope="session")
def alone(tiny):
    """Each question's answer from an engine of its own."""
    return {name: new_engine(tiny).answer(question, **SETTINGS) for name, question in QUESTIONS.items()}
