"""The letter of a multiple choice's truth, which files give in different ways."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from longview.errors import RequestError
from longview.eval.items import LETTERS


def by_index(where: Any, answer: Any, options: Sequence[str]) -> str:
    """Of a number from 0.

    Raises:
        RequestError: there is no such option.
    """
    text = str(answer).strip().removesuffix(".0")
    if not text.isascii() or not text.isdigit() or int(text) >= len(options):
        raise _none(where, answer, options, f"a number from 0 to {len(options) - 1}")
    return LETTERS[int(text)]


def by_letter(where: Any, answer: Any, options: Sequence[str]) -> str:
    """Of a letter, alone or as in "(A)" and "A.".

    Raises:
        RequestError: there is no such option.
    """
    named = re.fullmatch(r"\(?([A-Za-z])[.):]?", str(answer).strip())
    if not named or named[1].upper() not in LETTERS[: len(options)]:
        raise _none(where, answer, options, "a letter")
    return named[1].upper()


def by_words(where: Any, answer: Any, options: Sequence[str]) -> str:
    """Of the option's words; of a whole number that a table holds as a float, with its point or without.

    Raises:
        RequestError: no option has them.
    """
    words, text = [option.strip() for option in options], str(answer).strip()
    if text not in words and isinstance(answer, float):
        text = text.removesuffix(".0")
    if text not in words:
        raise _none(where, answer, options, "the words of one")
    return LETTERS[words.index(text)]


def guessed(where: Any, answer: Any, options: Sequence[str], given: Sequence[Any] = ()) -> str:
    """Of a user's own file, which may have any of these: an option's words, a letter, a number from 0.

    A number, and no text of digits, is first one from 0, unless the options are numbers, too.

    Args:
        given: The options as the file holds them: texts or numbers.

    Raises:
        RequestError: it is no option.
    """
    reads = [by_words, by_letter, by_index]
    if _is_number(answer) and not any(map(_is_number, given)):
        reads.insert(0, by_index)
    for read in reads:
        try:
            return read(where, answer, options)
        except RequestError:
            continue
    raise _none(where, answer, options, "the words of one, its letter, or a number from 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _none(where: Any, answer: Any, options: Sequence[str], expected: str) -> RequestError:
    return RequestError(
        f"{where}: the answer is {answer!r:.40}, which is none of the {len(options)} options; expected {expected}; "
        "mend it"
    )
