"""What an answer means: pure functions from an item and an answer to a `Verdict`.

`understood=False` marks an answer that no rule applied to; its share stands in every result.
"""

from __future__ import annotations

import re

from longview.eval.items import Item, Verdict

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
