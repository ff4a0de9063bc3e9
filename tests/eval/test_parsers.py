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


@pytest.mark.parametrize(
    ("answer", "letter", "understood"),
    [
        ("B", "B", True),
        ("The best answer is: C", "C", True),
        ("(D) dark blue", "D", True),
        ("it is not clear", "A", False),
        ("", "A", False),
    ],
)
def test_videommes_rule_takes_the_first_letter_and_else_a(answer, letter, understood):
    found = parsers.first_letter(Item("0", "?", "A", (), OPTIONS), answer)
    assert (found.value, found.understood) == (letter, understood)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, it is", "yes"),
        ("No it", "no"),
        ("y", "yes"),
        ("I say no", None),
        ("", None),
    ],
)
def test_mmes_rule_looks_at_the_first_four_letters(answer, verdict):
    found = parsers.mme(Item("0", "?", "yes"), answer)
    assert (found.value, found.understood) == (verdict, verdict is not None)


@pytest.mark.parametrize(
    ("answer", "verdict", "understood"),
    [("Yes", "yes", True), ("There is not.", "no", True), ("A cat. No dog", "yes", False), ("", "yes", False)],
)
def test_popes_rule_is_kept_and_told_where_it_did_not_fit(answer, verdict, understood):
    found = parsers.pope(Item("0", "?", "yes"), answer)
    assert (found.value, found.understood) == (verdict, understood)
