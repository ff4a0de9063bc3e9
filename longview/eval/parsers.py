"""What an answer means: pure functions from an item and an answer to a `Verdict`.

`understood=False` marks an answer that no rule applied to; its share stands in every result.
"""

from __future__ import annotations

import random
import re
from typing import Any

from longview.eval.items import Item, Verdict
from longview.eval.metrics import mathvista_normalised, mmmu_choice, says_yes

_BEHIND = re.compile(
    r"(?:answer|option|choice)(?: is| would be| should be)?\s*[:：]?\s*[*(\[（]*([A-Z])(?![A-Za-z'’])"
    r"|(?:答案|选项|选择|选)(?:是|为)?\s*[:：]?\s*[(（]?([A-Z])(?![A-Za-z])"
)


def letter(item: Item, answer: str) -> Verdict:
    """The letter of an option.

    Alone or before a mark; behind "answer is"; in brackets; the only letter that stands apart; or the words of the one
    option that is named. The article in "A red car" is no letter.
    """
    text, letters = answer.strip().strip("*").strip(), item.letters
    alone = re.match(r"[(\[（]?([A-Za-z])\s*(?:[)\]）.:：,，、。\n]|$)", text)
    if alone and alone[1].upper() in letters:
        return Verdict(alone[1].upper())
    behind = [found[1] or found[2] for found in _BEHIND.finditer(text)]
    bracketed = re.findall(r"[(\[（]([A-Z])[)\]）]", text)
    apart = re.findall(r"(?<![A-Za-z'’])([B-Z]|A(?! [a-z]))(?![A-Za-z'’])", text)
    for named in (behind[-1:], bracketed, apart):
        fitting = {each for each in named if each in letters}
        if len(fitting) == 1:
            return Verdict(fitting.pop())
    said = text.rstrip(".").lower()
    for fits in (str.__eq__, str.__contains__):
        found = [letters[n] for n, option in enumerate(item.options) if fits(said, option.strip().rstrip(".").lower())]
        if len(found) == 1:
            return Verdict(found[0])
    return Verdict(None, False)


_PREFIXES = re.compile(r"(?:the )?(?:best|correct)?\s*(?:answer|option)(?: is)?\s*:?", re.IGNORECASE)


def first_letter(item: Item, answer: str) -> Verdict:
    """VideoMME's rule: the first capital that is a letter of an option; mPLUG-Owl3 counts "A" where there is none."""
    said = _PREFIXES.sub("", answer.strip())
    found = re.search(f"[{item.letters}]", said)
    if found is None or (len(said.split()) > 10 and not re.match(r"[(\[]?[A-Z]\b", said.strip())):
        return Verdict("A", False)
    return Verdict(found[0])


def mme(item: Item, answer: str) -> Verdict:
    """Yes or no: the whole answer, a lone y or n, or among its first four letters."""
    said = answer.lower().strip().replace(".", "")
    short = {"yes": "yes", "no": "no", "y": "yes", "n": "no"}
    if said in short:
        return Verdict(short[said])
    found = next((word for word in ("yes", "no") if word in said[:4]), None)
    return Verdict(found, found is not None)


def pope(item: Item, answer: str) -> Verdict:
    """POPE's rule: no word of denial in the first sentence is a yes. Understood where yes or no is said at all."""
    first = answer.partition(".")[0].replace(",", "")
    said = {word.lower() for word in first.split()} & {"yes", "no", "not"}
    return Verdict("yes" if says_yes(answer) else "no", bool(said))


def text(item: Item, answer: str) -> Verdict:
    """The answer itself."""
    return Verdict(answer.strip(), bool(answer.strip()))


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
_ANSWER_IS = re.compile(r"answer(?: is|:)\s*(.+?)(?:\.\s|\.?$|\n)", re.IGNORECASE)


def mathvista(item: Item, answer: str) -> Verdict:
    """What a judge would extract, by rules: a choice, a number, or what stands behind "answer is".

    The last number in a text is taken, and counts as not understood, for a judge to look at.
    """
    problem, said = item.facts["problem"], answer.strip()
    choices, kind = problem["choices"], problem["question_type"]
    behind = [found.strip(" \"'*$") for found in _ANSWER_IS.findall(said)]
    if kind == "multi_choice":
        lettered = Item(item.id, "", "", options=tuple(str(choice) for choice in choices))
        found = next((v for each in (said, *behind[::-1]) if (v := letter(lettered, each)).understood), None)
        chosen = None if found is None else str(choices[lettered.letters.index(found.value)])
        return Verdict(chosen, chosen is not None)
    for each, sure in ((said, True), *((one, True) for one in behind[::-1]), (_last_number(said), False)):
        value = mathvista_normalised(each.replace(",", "") if kind != "list" else each, None, kind,
                                     problem["answer_type"], problem["precision"])  # fmt: skip
        if value is not None and (problem["answer_type"] not in ("text", "list") or each):
            return Verdict(value, sure)
    return Verdict(None, False)


def _last_number(text: str) -> str:
    found = _NUMBER.findall(text)
    return found[-1] if found else ""
