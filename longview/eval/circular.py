"""CircularEval (MMBench, arXiv 2307.06281): a multiple choice is asked once for each rotation of its options.

    A red  B blue  C green      A blue  B green  C red      A green  B red  C blue

It is right where all are, so that always saying "A" scores nothing, and guessing among k options (1/k)^k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from longview.eval.items import LETTERS, Item


def reordered(item: Item, order: Sequence[int], number: int) -> Item:
    """An item with its options in another order: place → the number of the option that stood there before."""
    truth = LETTERS[order.index(item.letters.index(item.answer))]
    options = tuple(item.options[place] for place in order)
    return replace(item, id=f"{item.id}/{number}", options=options, answer=truth, group=item.unit)


def rotations(item: Item) -> list[Item]:
    """An item once for each rotation of its options; the first is the item as it was."""
    count = len(item.options)
    return [reordered(item, [(place + shift) % count for place in range(count)], shift) for shift in range(count)]


def circular(items: Iterable[Item]) -> list[Item]:
    """The items of a benchmark, each in all rotations; those that a file has rotated already are left as they are."""
    found = list(items)
    sizes: dict[str, int] = {}
    for item in found:
        sizes[item.unit] = sizes.get(item.unit, 0) + 1
    return [turned for item in found for turned in ([item] if sizes[item.unit] > 1 else rotations(item))]


def chance(groups: Iterable[Sequence[Item]]) -> float:
    """What guessing scores: the mean of (1/k)^variants over groups."""
    shares = [1 / max(1, len(group[0].options)) ** len(group) for group in groups]
    return sum(shares) / max(1, len(shares))
