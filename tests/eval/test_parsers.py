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
    ("A or B", None),
    ("A and B", None),
    ("A, B", None),
    ("a, b", None),
    ("A/B", None),
    ("The answer is A or B", None),
    ("The answer is (A), (B)", None),
    ("Option A or option B", None),
    ("A. Apples. or B. A red car", None),
    ("B\n\nOption A is incorrect, as it is green. Option C is incorrect too.", "B"),
    ("B. A red car\n\nExplanation: Option A is wrong", "B"),
    ("B\n选项A不对", "B"),
    ("Option A is wrong. B is right", None),
    ("Option A shows apples, so it is B", None),
    ("Answer: A red car is shown", "B"),
    ("The answer is A red car", "B"),
    ("'B'", "B"),
    ("Answer: A. Option B is wrong, as it is grey.", "A"),
    ("A is right", "A"),
    ("A, because it is round", "A"),
]


@pytest.mark.parametrize(("answer", "letter"), LETTERS)
def test_the_letter_of_an_answer_is_found(answer, letter):
    found = parsers.letter(Item("0", "?", "A", (), OPTIONS), answer)
    assert (found.value, found.understood) == (letter, letter is not None)


def test_a_letter_in_the_words_of_its_own_option_is_no_further_one():
    item = Item("0", "?", "A", (), ("Vitamin C", "Vitamin", "A Red C"))
    assert [parsers.letter(item, said).value for said in ("A. Vitamin C", "C: A Red C")] == ["A", "C"]


@pytest.mark.parametrize(
    ("answer", "letter", "understood"),
    [
        ("B", "B", True),
        ("The best answer is: C", "C", True),
        ("(D) dark blue", "D", True),
        ("Answer: C", "C", True),
        ("it shows in more than ten words that are all small: C", "C", True),
        ("it is not clear", None, False),
        ("", None, False),
    ],
)
def test_videommes_rule_takes_the_first_letter_and_mplug_owl3s_else_a(answer, letter, understood):
    item = Item("0", "?", "A", (), OPTIONS)
    assert vars(parsers.first_letter(item, answer)) == {"value": letter, "understood": understood}
    assert vars(parsers.owl3_first_letter(item, answer)) == {"value": letter or "A", "understood": understood}


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


@pytest.mark.parametrize(
    ("answer", "verdict"), [("Yes, it is", "yes"), ("no.", "no"), ("A dog is there.", None), ("not", None), ("", None)]
)
def test_mplug_owl3s_rule_for_pope_wants_yes_or_no_before_a_mark(answer, verdict):
    found = parsers.owl3_pope(Item("0", "?", "yes"), answer)
    assert (found.value, found.understood) == (verdict, verdict is not None)


@pytest.mark.parametrize(
    ("answer", "words"),
    [("Yes, it is", "yes"), ("The car is red.", "red"), ("It is a cup of tea", "cup"), ("Red!", "red"), ("", "")],
)
def test_mplug_owl3s_rule_for_gqa_takes_the_word_behind_verbs_and_articles(answer, words):
    assert parsers.owl3_gqa(Item("0", "?", "yes"), answer).value == words


def test_mplug_owl3s_rule_for_vizwiz_takes_what_stands_before_a_mark():
    assert parsers.owl3_vizwiz(Item("0", "?", []), "Unanswerable. The picture is dark").value == "Unanswerable"


def problem(**facts) -> Item:
    usual = {"question_type": "free_form", "choices": None, "precision": None}
    return Item("0", "?", "", facts={"problem": usual | facts})


@pytest.mark.parametrize(
    ("answer", "value", "understood"),
    [
        ("[1, 2, 3]", "[1, 2, 3]", True),
        ("The answer is [1,2]", "[1, 2]", True),
        ("the answer is: [0.5, 2]", "[0.5, 2]", True),
        ("So [1, 2] it must be", "[1, 2]", False),
        ("1, 2", None, False),
        ("[one]", None, False),
    ],
)
def test_mathvistas_lists_are_accepted_where_they_are_lists(answer, value, understood):
    found = parsers.mathvista(problem(answer_type="list"), answer)
    assert (found.value, found.understood) == (value, understood)


def test_mathvistas_number_stands_behind_a_colon():
    assert vars(parsers.mathvista(problem(answer_type="integer"), "so the answer is: 1,400")) == {
        "value": "1400",
        "understood": True,
    }


def test_mathvistas_nearest_choice_is_taken_for_certain_from_a_judge_alone():
    item = problem(answer_type="text", question_type="multi_choice", choices=["3/11", "8/11", "6"])
    assert vars(parsers.mathvista(item, "8/1")) == {"value": "8/11", "understood": False}
    assert vars(parsers.mathvista_judged(item, "8/1")) == {"value": "8/11", "understood": True}
    assert vars(parsers.mathvista_judged(item, "")) == {"value": None, "understood": False}
