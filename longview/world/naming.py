"""Facts that a text names and facts that a picture holds, in the same form, to decide which pictures a text fits.

    "How big is the red circle?"    names    red circle
    a picture                       holds    circle, red thing, large thing, red circle, large red circle, …

A text fits a picture that holds everything it names. Places are left out: a question asks for
them more often than it names them.
"""

from __future__ import annotations

import itertools
import random
import re

from longview.world.questions import ask_about_picture, plural
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


def draw_text(rng: random.Random, picture: Picture) -> str:
    """A question about a picture, or a short description of some of it; it names something, unless nothing is there."""
    for _ in range(40):
        text = _describe(rng, picture) if rng.random() < 0.35 else ask_about_picture(rng, picture).text
        if rng.random() < 0.15:
            text = text.rstrip("?.")
        named = facts_named(text)
        if named and named <= facts_held(picture):
            return text
    return "nothing"


def _describe(rng: random.Random, picture: Picture) -> str:
    """One to three of the things of a picture, each by some of what it is; perhaps the sign."""
    things = rng.sample(picture.things, min(len(picture.things), rng.randint(1, 3)))
    phrases = []
    for thing in things:
        words = (rng.choice(("", thing.size)), rng.choice(("", thing.colour, thing.colour)), thing.shape)
        phrases.append(rng.choice(("a ", "")) + " ".join(word for word in words if word))
    if picture.sign and rng.random() < 0.5:
        phrases = [*phrases[:2], f"a sign that says {picture.sign.text}"]
    return " and ".join(phrases)


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
