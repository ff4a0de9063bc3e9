"""Questions about one picture: ten kinds, each asked only where it has one answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from longview.world.questions.question import (
    COUNTS,
    Question,
    cells_of,
    describe,
    matching,
    place_phrase,
    plural,
    yes_or_no,
)
from longview.world.scenes import CELLS, COLOURS, SHAPES, SIZES, Picture, Thing

YES_NO = ("yes", "no")


def _referring_expression(rng: random.Random, things: Sequence[Thing], thing: Thing, hide: str) -> str | None:
    """A description that fits one thing alone and does not mention the attribute `hide`; None if there is none."""
    candidates: list[tuple[dict[str, str], str]] = [
        ({"shape": thing.shape}, thing.shape),
        ({"shape": thing.shape}, thing.shape),
        ({"colour": thing.colour}, f"{thing.colour} {rng.choice(('thing', 'object', 'shape', 'one'))}"),
        ({"colour": thing.colour, "shape": thing.shape}, f"{thing.colour} {thing.shape}"),
        ({"size": thing.size, "shape": thing.shape}, f"{thing.size} {thing.shape}"),
        (
            {"size": thing.size, "colour": thing.colour},
            f"{thing.size} {thing.colour} {rng.choice(('thing', 'object'))}",
        ),
    ]
    fitting = [text for keys, text in candidates if hide not in keys and len(matching(things, **keys)) == 1]
    if hide != "place":
        fitting.append(f"{rng.choice(('thing', 'object', 'shape'))} {place_phrase(thing.place)}")
    return rng.choice(fitting) if fitting else None


def _colour(rng: random.Random, picture: Picture) -> Question | None:
    thing = rng.choice(picture.things)
    name = _referring_expression(rng, picture.things, thing, "colour")
    if not name:
        return None
    phrasings = (
        f"What colour is the {name}?",
        f"What color is the {name}?",
        f"What is the colour of the {name}?",
        f"What is the color of the {name}?",
        f"Which colour is the {name}?",
        f"Which color does the {name} have?",
        f"What colour does the {name} have?",
        f"Tell me the colour of the {name}.",
    )
    return Question("colour", rng.choice(phrasings), thing.colour, COLOURS, cells=(thing.cell,))


def _shape(rng: random.Random, picture: Picture) -> Question | None:
    thing = rng.choice(picture.things)
    name = _referring_expression(rng, picture.things, thing, "shape")
    if not name:
        return None
    phrasings = (
        f"What shape is the {name}?",
        f"Which shape is the {name}?",
        f"What is the shape of the {name}?",
        f"What is the {name}?",
        f"What shape does the {name} have?",
        f"What kind of shape is the {name}?",
        f"Tell me the shape of the {name}.",
    )
    return Question("shape", rng.choice(phrasings), thing.shape, SHAPES, cells=(thing.cell,))


def _size(rng: random.Random, picture: Picture) -> Question | None:
    thing = rng.choice(picture.things)
    name = _referring_expression(rng, picture.things, thing, "size")
    if not name:
        return None
    phrasings = (
        f"What size is the {name}?",
        f"How big is the {name}?",
        f"How large is the {name}?",
        f"Is the {name} large or small?",
        f"Is the {name} small or large?",
        f"What is the size of the {name}?",
    )
    return Question("size", rng.choice(phrasings), thing.size, SIZES, cells=(thing.cell,))


def _count(rng: random.Random, picture: Picture) -> Question:
    way = rng.choice(("all", "shape", "colour"))
    if way == "all":
        name, found = rng.choice(("things", "objects", "shapes")), list(picture.things)
    elif way == "shape":
        shape = rng.choice(SHAPES if rng.random() < 0.3 or not picture.things else [t.shape for t in picture.things])
        name, found = plural(shape), matching(picture.things, shape=shape)
    else:
        colour = rng.choice(COLOURS if rng.random() < 0.3 or not picture.things else [t.colour for t in picture.things])
        name, found = f"{colour} {rng.choice(('things', 'objects', 'shapes'))}", matching(picture.things, colour=colour)
    phrasings = (
        f"How many {name} are there?",
        f"How many {name} do you see?",
        f"How many {name} can you see?",
        f"Count the {name}.",
        f"What is the number of {name}?",
    )
    return Question("count", rng.choice(phrasings), str(len(found)), COUNTS, cells=cells_of(found))


def _position(rng: random.Random, picture: Picture) -> Question | None:
    thing = rng.choice(picture.things)
    name = _referring_expression(rng, picture.things, thing, "place")
    if not name:
        return None
    phrasings = (
        f"Where is the {name}?",
        f"Where do you see the {name}?",
        f"Where can you see the {name}?",
        f"In which place is the {name}?",
        f"What is the position of the {name}?",
    )
    return Question("position", rng.choice(phrasings), thing.place, CELLS, cells=(thing.cell,))


def _content(rng: random.Random, picture: Picture) -> Question | None:
    taken = picture.sign.cells if picture.sign else ()
    full = [thing.cell for thing in picture.things]
    cell = rng.choice(full) if full and rng.random() < 0.75 else rng.choice([c for c in range(9) if c not in taken])
    found = [thing for thing in picture.things if thing.cell == cell]
    answer = f"a {found[0].name}" if found else "nothing"
    where = place_phrase(CELLS[cell])
    phrasings = (
        f"What is {where}?",
        f"What do you see {where}?",
        f"What can you see {where}?",
        f"Which object is {where}?",
    )
    return Question("content", rng.choice(phrasings), answer, cells=(cell,))


def _relation(rng: random.Random, picture: Picture) -> Question | None:
    if len(picture.things) < 2:
        return None
    one, other = rng.sample(picture.things, 2)
    name, name2 = (_referring_expression(rng, picture.things, thing, "place") for thing in (one, other))
    across, down = one.cell % 3 - other.cell % 3, one.cell // 3 - other.cell // 3
    axes = [axis for axis, apart in (("across", across), ("down", down)) if apart]
    if not name or not name2:
        return None
    if rng.choice(axes) == "across":
        side, opposite, is_side = rng.choice((("left of", "right of", across < 0), ("right of", "left of", across > 0)))
        more = f"Is the {name} to the {side} the {name2}?"
    else:
        side, opposite, is_side = rng.choice((("above", "below", down < 0), ("below", "above", down > 0)))
        more = f"Is the {name} {'higher' if side == 'above' else 'lower'} than the {name2}?"
    either = f"Is the {name} {side} or {opposite} the {name2}?"
    if rng.random() < 0.3:
        sides = tuple(name.removesuffix(" of") for name in (side, opposite))
        text, answer, choices = either, sides[0 if is_side else 1], sides
    else:
        text, answer, choices = rng.choice((f"Is the {name} {side} the {name2}?", more)), yes_or_no(is_side), YES_NO
    return Question("relation", text, answer, choices, cells=(one.cell,), other_cells=(other.cell,))


def _exists(rng: random.Random, picture: Picture) -> Question:
    source = rng.choice(picture.things) if picture.things else None
    wanted = {"colour": rng.choice(COLOURS), "shape": rng.choice(SHAPES)}
    if source:
        # Near misses (a red circle where there is a red square) make the question worth asking.
        roll = rng.random()
        if roll < 0.75:
            wanted["colour"] = source.colour
        if roll < 0.45 or roll > 0.75:
            wanted["shape"] = source.shape
    way = rng.random()
    if way > 0.85 and len(matching(picture.things, shape=wanted["shape"])) == 1:
        # "Is the circle red?" of the only circle.
        fits = matching(picture.things, **wanted)
        text = f"Is the {wanted['shape']} {wanted['colour']}?"
        return Question("existence", text, yes_or_no(fits), YES_NO, cells=cells_of(fits))
    if way < 0.1:
        shape = wanted["shape"]
        phrasing = rng.choice((f"Are there any {plural(shape)}?", f"Do you see any {plural(shape)}?"))
        found = matching(picture.things, shape=shape)
        return Question("existence", phrasing, yes_or_no(found), YES_NO, cells=cells_of(found))
    if way < 0.25:
        del wanted["colour"]
        name = wanted["shape"]
    elif way < 0.4:
        del wanted["shape"]
        name = f"{wanted['colour']} {rng.choice(('thing', 'object'))}"
    else:
        name = f"{wanted['colour']} {wanted['shape']}"
    one = f"{'an' if name[0] == 'o' else 'a'} {name}"
    phrasings = (f"Is there {one}?", f"Do you see {one}?", f"Can you see {one}?", f"Is {one} in the picture?")
    found = matching(picture.things, **wanted)
    return Question("existence", rng.choice(phrasings), yes_or_no(found), YES_NO, cells=cells_of(found))


def _reading(rng: random.Random, picture: Picture) -> Question | None:
    if picture.sign is None:
        return None
    if picture.sign.cell is not None:
        phrasings = [
            "What does the small print say?",
            "Read the small print.",
            "What is written in small print?",
            "What do the small letters say?",
            "What is printed in small letters?",
            "What does it say?",
        ]
        return Question("small print", rng.choice(phrasings), picture.sign.text, cells=picture.sign.cells)
    phrasings = [
        "What does the sign say?",
        "What is written on the sign?",
        "What is written here?",
        "Read the sign.",
        "What is printed on the sign?",
        "What does it say?",
        "What text is on the sign?",
    ]
    if picture.sign.is_number:
        phrasings += ["What number is on the sign?", "Which number do you see?", "What number is written?"]
    else:
        phrasings += ["What word is on the sign?", "Which word do you see?", "What word is written?"]
    kind = "number" if picture.sign.is_number else "word"
    return Question(kind, rng.choice(phrasings), picture.sign.text, cells=picture.sign.cells)


def _caption(rng: random.Random, picture: Picture) -> Question:
    phrasings = (
        "Describe the picture.",
        "Describe the image.",
        "What is in the picture?",
        "What do you see?",
        "What can you see?",
        "What is shown?",
        "What is in the image?",
        "Describe what you see.",
        "What is this?",
        "What does the picture show?",
        "What is in this picture?",
        "What objects are there?",
    )
    cells = cells_of(picture.things) + (picture.sign.cells if picture.sign else ())
    return Question("description", rng.choice(phrasings), describe(picture), cells=cells)


PictureKind = Callable[[random.Random, Picture], "Question | None"]
PICTURE_KINDS: dict[str, PictureKind] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "count": _count,
    "position": _position,
    "content": _content,
    "relation": _relation,
    "existence": _exists,
    "reading": _reading,
    "description": _caption,
}


def _ask_of_kind(rng: random.Random, picture: Picture, kind: str) -> Question | None:
    if not picture.things and kind in ("colour", "shape", "size", "position", "relation"):
        return None
    return PICTURE_KINDS[kind](rng, picture)


Shares = Mapping[str, float]
"""How much more often than others a kind of question is asked; 1 where a kind is not named."""


def ask_about_picture(
    rng: random.Random, picture: Picture, kind: str | None = None, shares: Shares | None = None
) -> Question:
    """A question about one picture, of a kind in `PICTURE_KINDS` (or of any kind that the picture allows).

    Raises:
        LookupError: the picture does not allow a question of this kind.
    """
    weights = [(shares or {}).get(kind, 1.0) for kind in PICTURE_KINDS]
    if picture.sign:  # rarer than things, and worth reading
        weights[list(PICTURE_KINDS).index("reading")] *= 3
    for _ in range(40):
        question = _ask_of_kind(rng, picture, kind or rng.choices(list(PICTURE_KINDS), weights)[0])
        if question:
            return question
    raise LookupError(f"no question of kind {kind} about {picture}")
