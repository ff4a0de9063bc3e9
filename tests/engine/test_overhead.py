"""What the engine adds in Python to each token: counted, because a clock tells little on a busy machine."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from questions import QUESTIONS, new_engine
from samples import tiny_model

import longview
from longview.models.families import families

OURS = str(Path(longview.__file__).parent)
TOKENS = 32


def calls(engine, question, tokens: int) -> Counter[str]:
    """Python functions that are called for an answer of so many tokens, by name; those in the package as `ours`."""
    found: Counter[str] = Counter()

    def count(frame, event: str, _) -> None:
        if event == "call":
            found[frame.f_code.co_name] += 1
            found["ours"] += frame.f_code.co_filename.startswith(OURS)

    sys.setprofile(count)
    try:
        engine.answer(question, max_tokens=tokens, min_tokens=tokens)
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize(("question", "most"), [("no picture", 90), ("one picture", 138)])
def test_a_token_costs_few_calls_and_one_search_for_the_device(tokenizer, question, most):
    """Raise the number for a reason. The device is searched for among all parameters, so once a pass.

    Beside a picture text is attended to by the fused kernel: two calls a layer, and less time at all lengths.
    """
    engine = new_engine(tiny_model(families()["owl3"], "241101", tokenizer))
    # the first answer fills caches
    _, short, long = (calls(engine, QUESTIONS[question], tokens) for tokens in (8, 8, 8 + TOKENS))
    each = {name: (number - short[name]) / TOKENS for name, number in long.items()}
    assert each["ours"] <= most
    assert each["device"] <= 1
