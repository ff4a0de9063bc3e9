"""Judges that compare an answer with the true one. A verdict is True (right), False (wrong) or None (unknown)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Protocol

from longview.train.preferences.settings import Style

Verdict = bool | None


class Judge(Protocol):
    """Gives a verdict on answers to one question. From any thread."""

    name: str
    """By which a journal knows whose verdicts it has."""

    def __call__(self, question: str, truth: str, answers: Sequence[str], style: Style) -> list[Verdict]:
        """Raises RequestError: the judge cannot be asked."""


class TruthJudge:
    """Compares each answer with the row's own, by one of the functions below."""

    def __init__(self, name: str, compare: Callable[[str, str, Style], Verdict]) -> None:
        self.name, self._compare = name, compare

    def __call__(self, question: str, truth: str, answers: Sequence[str], style: Style) -> list[Verdict]:
        return [self._compare(answer, truth, style) for answer in answers]


def is_true_answer(answer: str, truth: str, style: Style = "direct") -> Verdict:
    """Whether an answer is the true one letter for letter, but for the space around it.

    Of a step-by-step answer that holds for what it gives as its final one; None if it gives none.
    """
    if style == "direct":
        return answer.strip() == truth.strip()
    final = final_answer(answer)
    return None if final is None else final == truth.strip().rstrip(".")


def means_true_answer(answer: str, truth: str, style: Style = "direct") -> Verdict:
    """Whether an answer means the true one: the same option, number, or yes or no; of other answers the same words.

    None: it holds nothing of that kind, or several numbers.
    """
    final = final_answer(answer)
    if final is None:
        if style == "cot":
            return None
        final = answer.strip()
    for read in (_option, _yes_or_no, _number):
        expected = read(truth)
        if expected is not None:
            found = read(final)
            return None if found is None else found == expected
    return _words(final) == _words(truth)


TRUTH_JUDGES = {"parse": TruthJudge("parse", means_true_answer), "exact": TruthJudge("exact", is_true_answer)}

_FINAL = re.compile(r"\\boxed\{|\banswer(?:\s+is\b|\s*:)[\s:]*", re.IGNORECASE)
_OPTIONS = (
    r"\(([A-J])\)",
    r"\W*([A-J])\W*$",
    r"\W*([A-J])[.:)]",
    r"(?:.*\W)?(?:[Oo]ption|[Cc]hoice)\W+([A-J])\b",
)
_NUMBER = r"[-+]?(?:\d+(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+)?"


def final_answer(answer: str) -> str | None:
    """What stands last behind "the answer is" or in a box, without its full stop; None if nothing does."""
    found = list(_FINAL.finditer(answer))
    if not found:
        return None
    final = answer[found[-1].end() :].partition("}" if found[-1][0].endswith("{") else "\n")[0]
    return final.strip().strip("*$\"'“”").strip().rstrip(".").strip("* ") or None


def _option(text: str) -> str | None:
    """The letter of an option, as in `B`, `(B)`, `B. a cat` and `option B`."""
    return next((found[1] for form in _OPTIONS if (found := re.match(form, text.strip()))), None)


def _yes_or_no(text: str) -> str | None:
    found = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return found[1].lower() if found else None


def _number(text: str) -> Fraction | None:
    """The only number of a text that has few other words, as in `1,200`, `0.5`, `1/2`, `12 cm` and `$3`."""
    found = {_fraction(each) for each in re.findall(rf"(?<![\w.]){_NUMBER}", text) if each.strip()}
    return found.pop() if len(found) == 1 and len(text.split()) <= 8 else None


def _fraction(text: str) -> Fraction | None:
    above, _, below = text.replace(",", "").replace(" ", "").partition("/")
    return None if below and not int(below) else Fraction(above) / int(below or 1)


def _words(text: str) -> list[str]:
    """Words as they are compared: without letter case, articles, and marks around them."""
    words = (word.strip(".,;:!?\"'“”()*$") for word in text.casefold().split())
    return [word for word in words if word and word not in ("a", "an", "the")]
