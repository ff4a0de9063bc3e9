"""ANLS against the package `anls`, which was written from the program of the Robust Reading Competition."""

from __future__ import annotations

import pytest
from anls import anls_score
from hypothesis import example, given
from hypothesis import strategies as st

from longview.eval.metrics import anls

WORDS = st.text(alphabet="aAbB 1.%é中", max_size=8)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
@example("John  Smith", ["john smith", "J. Smith"])
@example("", [""])
@example(" ", ["a"])
def test_anls_is_that_of_the_package(answer, truths):
    ours = anls(answer, truths)
    # at a distance of just one half the package gives 0; the competition's text says "equal or bigger than 0.5" counts
    assert anls_score(answer, truths) == pytest.approx(0 if ours == 0.5 else ours)


def test_an_answer_that_is_half_right_counts():
    assert (anls("abcd", ["ab"]), anls("abcde", ["ab"])) == (0.5, 0)
