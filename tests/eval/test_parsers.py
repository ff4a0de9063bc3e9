"""What answers mean: the letters of options."""

from __future__ import annotations

import pytest

from longview.eval import parsers
from longview.eval.items import Item

OPTIONS = ("Apples.", "A red car", "blue", "dark blue", "None of the above")
LETTERS = [
    ("B", "B"),
    ("b", "B"),
    ("(C)", "C"),
    ("C.", "C"),
    ("D: dark blue", "D"),
    ("**A**", "A"),
    ("A. Apples.", "A"),
    ("The answer is C.", "C"),
    ("The correct answer is (D), not (C).", "D"),
    ("Answer: B", "B"),
    ("I think it is B because A is wrong. The answer is B", "B"),
    ("答案是C。", "C"),
    ("答案：D", "D"),
    ("选B", "B"),
    ("B、因为", "B"),
    ("A red car", "B"),
    ("a red car.", "B"),
    ("blue", "C"),
    ("Apples", "A"),
    ("It shows dark blue water", None),
    ("the thing is apples", "A"),
    ("Option E", "E"),
    ("E", "E"),
    ("F", None),
    ("I do not know", None),
    ("A car is not shown", None),
    ("", None),
    ("It is (A) or (B)", None),
]


@pytest.mark.parametrize(("answer", "letter"), LETTERS)
def test_the_letter_of_an_answer_is_found(answer, letter):
    found = parsers.letter(Item("0", "?", "A", (), OPTIONS), answer)
    assert (found.value, found.understood) == (letter, letter is not None)
