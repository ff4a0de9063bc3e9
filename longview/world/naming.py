"""Facts that a text names and facts that a picture holds, in the same form, to decide which pictures a text fits.

    "How big is the red circle?"    names    red circle
    a picture                       holds    circle, red thing, large thing, red circle, large red circle, …

A text fits a picture that holds everything it names. Places are left out: a question asks for
them more often than it names them.
"""

from __future__ import annotations

import itertools
import re

from longview.world.questions import plural
from longview.world.scenes import COLOURS, SHAPES, SIZES, WORDS, Picture, Thing

THING = "thing"
_NOUNS = {form: shape for shape in SHAPES for form in (shape, plural(shape))} | {
    form: THING for noun in ("thing", "object", "shape") for form in (noun, f"{noun}s")
} | {"one": THING}  # fmt: skip
_PHRASE = re.compile(rf"(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLOURS)}) )?\b({'|'.join(_NOUNS)})\b")
_SIGN = re.compile(r"\b(sign|written|printed|says?|read|(?:what|which) (?:number|word))\b")


def facts_held(picture: Picture) -> frozenset[str]:
    """Everything that a text could truly name of a picture; small print, which is easily overlooked, is left out."""
    facts = {fact for thing in picture.things for fact in _descriptions(thing)}
    if picture.sign and picture.sign.cell is None:
        facts |= {"sign", f"sign {picture.sign.text}", f"sign of a {'number' if picture.sign.is_number else 'word'}"}
    return frozenset(facts)


def facts_named(text: str) -> frozenset[str]:
    """What a question or a description names; empty where it names nothing in particular."""
    lowered = text.lower()
    facts = {
        " ".join(word for word in (size, colour, _NOUNS[noun]) if word)
        for size, colour, noun in _PHRASE.findall(lowered)
        if size or colour or _NOUNS[noun] != THING
    }
    if _SIGN.search(lowered):
        said = re.search(r"\bsays? (\w+)", lowered)
        kind = re.search(r"\b(number|word)\b", lowered)
        if said and (said[1] in WORDS or said[1].isdigit()):
            facts.add(f"sign {said[1]}")
        else:
            facts.add(f"sign of a {kind[1]}" if kind else "sign")
    return frozenset(facts)


def all_facts() -> list[str]:
    """Every fact there is, in a fixed order."""
    things = [
        " ".join(word for word in words if word)
        for words in itertools.product(("", *SIZES), ("", *COLOURS), (THING, *SHAPES))
    ]
    signs = [f"sign {text}" for text in (*WORDS, *map(str, range(100)))]
    return [*things[1:], "sign", "sign of a number", "sign of a word", *signs]


def _descriptions(thing: Thing) -> set[str]:
    """Every way to name a thing by its size, colour and shape."""
    return {
        " ".join(word for word in words if word)
        for words in itertools.product(("", thing.size), ("", thing.colour), (THING, thing.shape))
    } - {THING}
