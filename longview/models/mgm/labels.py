"""Labels as the authors' trainer makes them, for `compat.py`: by lengths of pieces that are tokenised alone.

Their trainer splits the rendered text where answers end, tokenises what stands before each answer alone, and corrects
by a token or two, as fits the tokenizers it was written for. Where the lengths do not add up, nothing is learned of the
whole conversation, as there. `MGMProcessor.prepare` needs no such guesses: it has the positions of answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

from longview.errors import RequestError
from longview.models.base import IGNORED
from longview.models.mgm.conversation import Template

Rounds = Iterable[tuple[int, int]]
"""Of each question and answer: how many tokens long both are, and how many of them are not learned."""


def labels_of(
    text: str, ids: list[int], template: Template, count: Callable[[str], int], legacy: bool = True
) -> list[int]:
    """Labels of a rendered conversation: its ids, −100 but for the answers and what ends them.

    Args:
        ids: The conversation, tokenised, a picture as one id.
        count: How many tokens a piece of it has when tokenised alone.
        legacy: The tokenizer has sentencepiece's older treatment of spaces after special tokens.

    Raises:
        RequestError: the authors train with no such template.
    """
    if template.masking == "plain":
        start = count("<image>")
        return [IGNORED] * start + ids[start:]
    if template.masking is None:
        raise RequestError("the authors' trainer has no labels for this template; use prepare(…, train=True)")
    start = 0 if template.masking == "mpt" else 1
    labels = [IGNORED] * start + ids[start:]
    position = start
    for length, unlearned in _rounds(text, template, count, legacy):
        labels[position : position + unlearned] = [IGNORED] * len(labels[position : position + unlearned])
        position += length
    if position != len(ids):
        warnings.warn(f"tokenization mismatch: {position} vs. {len(ids)}; nothing is learned of this", stacklevel=3)
        return [IGNORED] * len(ids)
    return labels


def _rounds(text: str, template: Template, count: Callable[[str], int], legacy: bool) -> Rounds:
    if template.masking in ("two", "inst", "gemma"):
        marker = {"two": " ASSISTANT: ", "inst": "[/INST] ", "gemma": "<start_of_turn>model\n"}[template.masking]
        end, guess = ("<eos>", 1) if template.masking == "gemma" else (template.end.strip(), 2)
        rounds = text.split(end)
    else:
        marker, end, guess = template.end + template.header, template.end, 1
        turns = text.split(end)
        rounds = [end.join(turns[:3]), *(end.join(turns[n : n + 2]) for n in range(3, len(turns), 2))]
    for number, piece in enumerate(rounds):
        halves = piece.split(marker)
        if not piece or len(halves) != 2:
            return
        length, unlearned = count(piece), count(halves[0] + marker) - guess
        shift = -1 if template.masking == "two" and number and not legacy else 0
        shift += template.masking == "mpt" and legacy
        yield length + shift, unlearned + shift
