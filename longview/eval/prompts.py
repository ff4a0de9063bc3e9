"""How the authors put a benchmark's questions: an item → texts and media, in order. Pure functions.

The names say whose they are: `owl3_…` as in mPLUG-Owl3's evaluation programs, `ovis2_…` as VLMEvalKit asks Ovis2,
`mgm_…` as MGM's. The apostrophe of mPLUG-Owl3's suffix is U+2019, as published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from longview.eval.items import LETTERS, Item, Shown

OWL3_LETTER = "Answer with the option’s letter from the given choices directly."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
SHORT = "Answer the question using a single word or phrase."
Parts = Sequence["str | Shown"]


def lettered(item: Item, form: str = "{}. {}") -> str:
    """The options, a line each."""
    return "\n".join(form.format(letter, option) for letter, option in zip(LETTERS, item.options, strict=False))


def owl3_mmbench(item: Item) -> Parts:
    """MMBench, English and Chinese."""
    head = f"Context: {item.hint or 'N/A'}\nQuestion: {item.question}\nOptions: {lettered(item)}\n"
    return [*item.shown, head + OWL3_LETTER]


def with_letters(item: Item) -> Parts:
    """Hint, question and options a line each, and how to answer in the language of the question; Ovis2 and MGM."""
    text = "\n".join(filter(None, [item.hint, item.question, lettered(item)]))
    return [*(part for shown in item.shown for part in (shown, "\n")), f"{text}\n{letter_suffix(text)}"]


def letter_suffix(text: str) -> str:
    return LETTER_CN if re.search("[\u4e00-\u9fff]", text) else LETTER


def numbered(item: Item) -> Parts:
    """As `longview.messages.ask` puts a question: one medium on a line before it, several with their numbers."""
    if len(item.shown) < 2:
        return [*item.shown, f"\n{item.question}" if item.shown else item.question]
    parts: list[str | Shown] = []
    for number, medium in enumerate(item.shown, 1):
        parts += [f"{medium.kind.capitalize()} {number}: ", medium, "\n"]
    return [*parts, item.question]
