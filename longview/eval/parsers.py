"""What an answer means: pure functions from an item and an answer to a `Verdict`.

`understood=False` marks an answer that no rule applied to; its share stands in every result.
"""

from __future__ import annotations

import ast
import contextlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from longview.eval.items import Item, Verdict
from longview.eval.metrics import gqa_words, mathvista_normalised, mmmu_choice, owl3_short, says_yes

_FOLLOWS = r"(?! (?!(?:or|and|nor|is|because|since|but)\b)[a-z])"
"""Behind the capital A of "A or B", and not behind that of "A red car"."""
_CAPITAL = rf"([B-Z]|A{_FOLLOWS})(?![A-Za-z'’])"
_ANSWERS = re.compile(rf"(?:(?i:answer)(?: is| would be| should be)?|答案(?:是|为)?)\s*[:：]?\s*[*(\[（]*{_CAPITAL}")
_OPTIONS = re.compile(r"(?:(?i:option|choice)(?: is)?|选项|选择|选)\s*[:：]?\s*[*(\[（]*([A-Z])(?![A-Za-z'’])")
_APART = re.compile(rf"(?<![A-Za-z'’]){_CAPITAL}")
_ANOTHER = re.compile(
    r"[*)\]）]*\s*(?:,|，|、|/|&|(?:or|and)\b|或|和)\s*(?:(?:or|and)\s+)?(?i:option |choice )?[*(\[（]*"
    r"(?:[A-Z](?![A-Za-z'’])|[a-z]\W*$)"
)
"""Behind a letter or its option: a further letter."""


def letter(item: Item, answer: str) -> Verdict:
    """The letter of an option.

    The one that the answer begins with; that behind "answer is"; the only one that stands apart or behind "option"; or
    the words of the one option that is named. Several letters, as in "A or B", are no answer.
    """
    text, letters = answer.strip(" \t\n\r*'\"“”‘’`"), item.letters
    begins = re.match(r"[(\[（]?([A-Za-z])\s*(?:[)\]）.:：,，、。\n]\s*|$)", text)
    if begins and begins[1].upper() in letters and not _ANOTHER.match(text, begins.end(1)):
        said = begins[1].upper()
        if not _ANOTHER.match(text[begins.end() :].removeprefix(item.options[letters.index(said)].strip())):
            return Verdict(said)
    behind = [found for found in _ANSWERS.finditer(text) if found[1] in letters]
    if behind and not _ANOTHER.match(text, behind[-1].end()):
        return Verdict(behind[-1][1])
    named = {each for form in (_OPTIONS, _APART) for each in form.findall(text) if each in letters}
    if named:
        return Verdict(named.pop()) if len(named) == 1 else Verdict(None, False)
    said = text.rstrip(".").lower()
    for fits in (str.__eq__, str.__contains__):
        found = [letters[n] for n, option in enumerate(item.options) if fits(said, option.strip().rstrip(".").lower())]
        if len(found) == 1:
            return Verdict(found[0])
    return Verdict(None, False)


def first_letter(item: Item, answer: str) -> Verdict:
    """VideoMME's rule: the first capital that is a letter of an option, wherever it stands.

    The openings that its authors' program leaves out ("The best answer is", …) have no such capital. "Answer:" is left
    out here alone: their program reads an A there.
    """
    found = re.search(f"[{item.letters}]", answer.replace("Answer:", ""))
    return Verdict(None, False) if found is None else Verdict(found[0])


def owl3_first_letter(item: Item, answer: str) -> Verdict:
    """The same, but an answer without a letter counts as "A"."""
    found = first_letter(item, answer)
    return found if found.understood else Verdict("A", False)


def mme(item: Item, answer: str) -> Verdict:
    """Yes or no: the whole answer, a lone y or n, or among its first four letters."""
    said = answer.lower().strip().replace(".", "")
    short = {"yes": "yes", "no": "no", "y": "yes", "n": "no"}
    if said in short:
        return Verdict(short[said])
    found = next((word for word in ("yes", "no") if word in said[:4]), None)
    return Verdict(found, found is not None)


def yes_or_no(item: Item, answer: str) -> Verdict:
    """VLMEvalKit's rule: yes or no is among the words, and the other one is not."""
    said = {"yes", "no"} & set(re.findall(r"\w+", answer.lower()))
    return Verdict(said.pop()) if len(said) == 1 else Verdict(None, False)


def pope(item: Item, answer: str) -> Verdict:
    """POPE's rule: no word of denial in the first sentence is a yes. Understood where yes or no is said at all."""
    first = answer.partition(".")[0].replace(",", "")
    said = {word.lower() for word in first.split()} & {"yes", "no", "not"}
    return Verdict("yes" if says_yes(answer) else "no", bool(said))


def owl3_pope(item: Item, answer: str) -> Verdict:
    """mPLUG-Owl3's rule: what stands before the first full stop or comma is yes or no, and nothing else."""
    said = owl3_short(answer).lower()
    return Verdict(said if said in ("yes", "no") else None, said in ("yes", "no"))


def text(item: Item, answer: str) -> Verdict:
    """The answer itself."""
    return Verdict(answer.strip(), bool(answer.strip()))


def owl3_vizwiz(item: Item, answer: str) -> Verdict:
    """What stands before the first full stop or comma."""
    return text(item, owl3_short(answer))


def owl3_gqa(item: Item, answer: str) -> Verdict:
    """The word behind a verb or an article: "It is a red car." is "red car"."""
    return text(item, gqa_words(answer))


class _NoChance(random.Random):
    """In the place of chance: what would be drawn is nothing."""

    def choice(self, seq: Any) -> Any:
        return ""


def mmmu(item: Item, answer: str) -> Verdict:
    """MMMU's rules; where none applies to a choice, an option by chance, as its authors do, the same in every run."""
    if not item.options:
        return text(item, answer.strip("\n"))
    named = dict(zip(item.letters, item.options, strict=True))
    found = mmmu_choice(answer, named, _NoChance())
    if found:
        return Verdict(found)
    return Verdict(random.Random(f"42 {item.id}").choice(item.letters), False)


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_LIST = re.compile(r"\[[^\[\]]*\]")
_ANSWER_IS = re.compile(r"answer(?: is:?|:)\s*(.+?)(?:\.\s|\.?$|\n)", re.IGNORECASE)


def mathvista(item: Item, answer: str) -> Verdict:
    """What a judge would extract, by rules: a choice, a number, a list, or what stands behind "answer is".

    Where no rule fits, the last number, the last list or the nearest choice is taken, and counts as not understood, for
    a judge to look at.
    """
    problem, said = item.facts["problem"], answer.strip()
    behind = [found.strip(" \"'*$") for found in _ANSWER_IS.findall(said)][::-1]
    if problem["question_type"] == "multi_choice":
        return _mathvista_choice(item, [said, *behind])
    last = _last(_LIST if problem["answer_type"] == "list" else _NUMBER, said)
    for each, sure in ((said, True), *((one, True) for one in behind), (last, False)):
        value = _mathvista_value(problem, each)
        if value:
            return Verdict(value, sure)
    return Verdict(None, False)


def mathvista_judged(item: Item, reply: str) -> Verdict:
    """What a judge extracted; of choices the nearest by letters, as the authors take it."""
    found = mathvista(item, reply)
    chosen = item.facts["problem"]["question_type"] == "multi_choice" and found.value is not None
    return Verdict(found.value, found.understood or chosen)


def _mathvista_choice(item: Item, said: Sequence[str]) -> Verdict:
    problem = item.facts["problem"]
    choices = [str(choice) for choice in problem["choices"]]
    lettered = Item(item.id, "", "", options=tuple(choices))
    for each in said:
        found = letter(lettered, each)
        if found.understood:
            return Verdict(choices[lettered.letters.index(found.value)])
    if not said[0]:
        return Verdict(None, False)
    nearest = mathvista_normalised(said[min(1, len(said) - 1)], choices, "multi_choice", "text", None)
    return Verdict(nearest, False)


def _mathvista_value(problem: Mapping[str, Any], said: str) -> str | None:
    """A number or a list in the form of the right answer; None where it is none."""
    if problem["answer_type"] == "list":
        with contextlib.suppress(ValueError, SyntaxError):
            found = ast.literal_eval(said)
            return str(found) if isinstance(found, list) else None
        return None
    return mathvista_normalised(said.replace(",", ""), None, problem["question_type"], problem["answer_type"],
                                problem["precision"])  # fmt: skip


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return found[-1] if found else ""
