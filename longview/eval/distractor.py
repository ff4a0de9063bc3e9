"""Distractor resistance (mPLUG-Owl3, arXiv 2408.04840): does a model find the picture it is asked about among N?

    Image 1: ▣ Image 2: ▣ … Image N: ▣. In Image X, {question} {options}

Each question is asked four times with its options in another order and among other distractors each time, at another
place X, and is right where all four are. N counts the picture that is asked about. The authors published neither code
nor draws; the rule here is `RULE`, and every draw is written beside the result.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longview.errors import LongviewError, RequestError
from longview.eval.circular import reordered
from longview.eval.items import Item, Shown

PICTURES = (1, 5, 10, 20, 50, 100, 200, 400)
VARIANTS = 4
RULE = (
    "of the source's questions, each with its own picture, for each number of pictures N: four variants (fewer, where "
    "the options have fewer orders). Python's random.Random is seeded with 'distractor SEED N ID'. It draws the orders "
    "of the options, no two the same, the first as it stands; then for each variant N - 1 distractors, without "
    "replacement, from all pictures of the source that are not the question's, none of them again in another variant "
    "as long as there are enough; and the place of the question's picture from 1 to N."
)


@dataclass(frozen=True)
class Drawn:
    """Where a question's picture stands, and what is around it."""

    order: tuple[int, ...]
    place: int
    """From 0."""
    distractors: tuple[Shown, ...]


def draw(item: Item, pool: Sequence[Shown], num_pictures: int, seed: int, variants: int = VARIANTS) -> list[Drawn]:
    """The variants of one question among N pictures, by `RULE`.

    Args:
        pool: The pictures of the source, each once.

    Raises:
        RequestError: there are fewer other pictures than are wanted.
    """
    target = item.shown[0]
    others = [shown for shown in pool if shown.identity != target.identity]
    wanted = num_pictures - 1
    if len(others) < wanted:
        raise RequestError(
            f"{num_pictures} pictures are asked for, and the source has {len(others) + 1} different ones; give "
            "fewer by --pictures, or a larger source"
        )
    rng = random.Random(f"distractor {seed} {num_pictures} {item.id}")
    orders = _orders(rng, len(item.options), variants)
    fresh: list[Shown] = []
    found = []
    for order in orders:
        if len(fresh) < wanted:
            fresh = rng.sample(others, len(others))
        distractors, fresh = fresh[:wanted], fresh[wanted:]
        found.append(Drawn(order, rng.randrange(num_pictures), tuple(distractors)))
    return found


def _orders(rng: random.Random, count: int, variants: int) -> list[tuple[int, ...]]:
    """Different orders of the options, the first as they stand; as many empty ones where there are no options."""
    if count == 0:
        return [()] * variants
    orders = [tuple(range(count))]
    most = len(list(itertools.islice(itertools.permutations(range(count)), variants)))
    while len(orders) < most:
        order = tuple(rng.sample(range(count), count))
        if order not in orders:
            orders.append(order)
    return orders


Ask = Callable[[Item, int], Item]
"""A question about one picture → the question about that picture at a place, from 0, among several."""


def named(item: Item, place: int) -> Item:
    """As the paper asks: "In Image X, …"."""
    return replace(item, question=f"In Image {place + 1}, {item.question}")


def distracted(
    items: Sequence[Item], pool: Sequence[Shown], numbers: Iterable[int], seed: int, ask: Ask = named
) -> Iterator[Item]:
    """All questions, all variants, for each number of pictures."""
    for num_pictures in numbers:
        for item in items:
            for number, drawn in enumerate(draw(item, pool, num_pictures, seed)):
                turned = reordered(item, drawn.order, number) if drawn.order else item
                shown = (*drawn.distractors[: drawn.place], item.shown[0], *drawn.distractors[drawn.place :])
                facts = {"about": drawn.place, "order": list(drawn.order)}
                about = replace(
                    turned,
                    id=f"{num_pictures}/{item.id}/{number}",
                    group=f"{num_pictures}/{item.id}",
                    shown=shown,
                    labels={"pictures": str(num_pictures)},
                    facts=facts,
                )
                yield ask(about, drawn.place)


def once(items: Iterable[Item]) -> list[Item]:
    """The first item of each question about one picture; a file that rotates its options has them several times."""
    found: dict[str, Item] = {}
    for item in items:
        if len(item.shown) == 1 and item.unit not in found:
            found[item.unit] = replace(item, id=item.unit, group="")
    return list(found.values())


def identified(item: Item) -> Item:
    """With a digest of each picture, where it can be read."""
    return replace(item, shown=tuple(map(_identified, item.shown)))


def _identified(shown: Shown) -> Shown:
    try:
        source = shown.load()
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except (OSError, LongviewError):  # said when it is shown
        return shown
    return replace(shown, digest=hashlib.sha256(data).hexdigest()[:24])


def pool_of(items: Iterable[Item]) -> list[Shown]:
    """The pictures of some items, each once."""
    return list({shown.identity: shown for item in items for shown in item.shown}.values())


def check_numbers(numbers: Sequence[int]) -> tuple[int, ...]:
    """
    Raises:
        RequestError: no numbers of pictures.
    """
    if any(number < 1 for number in numbers):
        raise RequestError(f"--pictures is {','.join(map(str, numbers))}; give whole numbers from 1 up, as 1,5,10")
    return tuple(dict.fromkeys(numbers)) or PICTURES


def listed(item: Item) -> dict[str, Any]:
    """A draw as items.jsonl has it, from which it can be repeated anywhere."""
    place = item.facts["about"]
    return {
        "id": item.id,
        "pictures": len(item.shown),
        "place": place + 1,
        "question": item.question,
        "options": list(item.options),
        "truth": item.answer,
        "picture": item.shown[place].name,
        "distractors": [shown.name for number, shown in enumerate(item.shown) if number != place],
    }
