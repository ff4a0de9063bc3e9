"""What can be asked about scenes, and the true answers.

Each kind of question has several phrasings, so that a person's own wording has a chance; its answers are short. A
question is asked only where it has one answer: "What colour is the circle?" needs exactly one circle.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from longview.world.scenes import (
    CELLS,
    COLOURS,
    DIRECTIONS,
    MAX_FLASHES,
    MAX_THINGS,
    SHAPES,
    SIZES,
    Clip,
    Picture,
    Scene,
    Thing,
    draw_clip,
    draw_picture,
)

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
YES_NO = ("yes", "no")
COUNTS = tuple(str(count) for count in range(MAX_THINGS + 1))
_PLURAL = {"cross": "crosses"}


@dataclass(frozen=True)
class Question:
    """A question with its true answer."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()  # the answers that make sense; empty where they are too many
    number: int = 0  # which picture of several it names; 0 where it names none
    about: int = 0  # which picture of several its answer is found in; 0 where it is found in all
    cells: tuple[int, ...] | None = None  # of the picture it is about: where what it names stands; None: no such thing
    others: tuple[int, ...] | None = None  # where the second thing it names stands
    shown: tuple[int, ...] | None = None  # the pictures or frames, from 0, that show what it seeks


def plural(shape: str) -> str:
    return _PLURAL.get(shape, f"{shape}s")


def somewhere(place: str) -> str:
    """The place as a phrase: `at the top left`, `in the centre`."""
    return f"{'in' if place == 'centre' else 'on' if place in ('left', 'right') else 'at'} the {place}"


def describe(picture: Picture) -> str:
    """Everything in a picture, in reading order; `nothing` for an empty one."""
    phrases = [(thing.cell, f"a {thing.name} {somewhere(thing.place)}") for thing in picture.things]
    if picture.sign:
        what = "a sign that says" if picture.sign.cell is None else "small print that says"
        phrases.append((picture.sign.cells[0], f"{what} {picture.sign.text}"))
    return " and ".join(phrase for _, phrase in sorted(phrases)) or "nothing"


def _only(things: Sequence[Thing], **wanted: str) -> list[Thing]:
    return [thing for thing in things if all(getattr(thing, key) == value for key, value in wanted.items())]


def _cells(things: Sequence[Thing]) -> tuple[int, ...]:
    return tuple(thing.cell for thing in things)


def _yes(is_so: object) -> str:
    return "yes" if is_so else "no"


def _point_out(rng: random.Random, things: Sequence[Thing], thing: Thing, hide: str) -> str | None:
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
    fitting = [text for keys, text in candidates if hide not in keys and len(_only(things, **keys)) == 1]
    if hide != "place":
        fitting.append(f"{rng.choice(('thing', 'object', 'shape'))} {somewhere(thing.place)}")
    return rng.choice(fitting) if fitting else None


def _colour(rng: random.Random, picture: Picture) -> Question | None:
    thing = rng.choice(picture.things)
    name = _point_out(rng, picture.things, thing, "colour")
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
    name = _point_out(rng, picture.things, thing, "shape")
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
    name = _point_out(rng, picture.things, thing, "size")
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
        name, found = plural(shape), _only(picture.things, shape=shape)
    else:
        colour = rng.choice(COLOURS if rng.random() < 0.3 or not picture.things else [t.colour for t in picture.things])
        name, found = f"{colour} {rng.choice(('things', 'objects', 'shapes'))}", _only(picture.things, colour=colour)
    phrasings = (
        f"How many {name} are there?",
        f"How many {name} do you see?",
        f"How many {name} can you see?",
        f"Count the {name}.",
        f"What is the number of {name}?",
    )
    return Question("count", rng.choice(phrasings), str(len(found)), COUNTS, cells=_cells(found))


def _position(rng: random.Random, picture: Picture) -> Question | None:
    thing = rng.choice(picture.things)
    name = _point_out(rng, picture.things, thing, "place")
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
    where = somewhere(CELLS[cell])
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
    name, name2 = (_point_out(rng, picture.things, thing, "place") for thing in (one, other))
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
        text, answer, choices = rng.choice((f"Is the {name} {side} the {name2}?", more)), _yes(is_side), YES_NO
    return Question("relation", text, answer, choices, cells=(one.cell,), others=(other.cell,))


def _exists(rng: random.Random, picture: Picture) -> Question:
    seen = rng.choice(picture.things) if picture.things else None
    asked = {"colour": rng.choice(COLOURS), "shape": rng.choice(SHAPES)}
    if seen:
        # Near misses (a red circle where there is a red square) make the question worth asking.
        roll = rng.random()
        if roll < 0.75:
            asked["colour"] = seen.colour
        if roll < 0.45 or roll > 0.75:
            asked["shape"] = seen.shape
    way = rng.random()
    if way > 0.85 and len(_only(picture.things, shape=asked["shape"])) == 1:
        # "Is the circle red?" of the only circle.
        fits = _only(picture.things, **asked)
        text = f"Is the {asked['shape']} {asked['colour']}?"
        return Question("existence", text, _yes(fits), YES_NO, cells=_cells(fits))
    if way < 0.1:
        shape = asked["shape"]
        phrasing = rng.choice((f"Are there any {plural(shape)}?", f"Do you see any {plural(shape)}?"))
        found = _only(picture.things, shape=shape)
        return Question("existence", phrasing, _yes(found), YES_NO, cells=_cells(found))
    if way < 0.25:
        del asked["colour"]
        name = asked["shape"]
    elif way < 0.4:
        del asked["shape"]
        name = f"{asked['colour']} {rng.choice(('thing', 'object'))}"
    else:
        name = f"{asked['colour']} {asked['shape']}"
    one = f"{'an' if name[0] == 'o' else 'a'} {name}"
    phrasings = (f"Is there {one}?", f"Do you see {one}?", f"Can you see {one}?", f"Is {one} in the picture?")
    found = _only(picture.things, **asked)
    return Question("existence", rng.choice(phrasings), _yes(found), YES_NO, cells=_cells(found))


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
    cells = _cells(picture.things) + (picture.sign.cells if picture.sign else ())
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


def _ask_kind(rng: random.Random, picture: Picture, kind: str) -> Question | None:
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
        question = _ask_kind(rng, picture, kind or rng.choices(list(PICTURE_KINDS), weights)[0])
        if question:
            return question
    raise LookupError(f"no question of kind {kind} about {picture}")


# -- several pictures --------------------------------------------------------------------------------------------------


def _decapitalised(text: str) -> str:
    return text[0].lower() + text[1:]


def _locate(rng: random.Random, number: int) -> str:
    """A phrase that names one picture of several."""
    medium = rng.choice(("image", "image", "picture"))
    if rng.random() < 0.7:
        return f"in {medium} {number}"
    return f"in the {ORDINALS[number - 1]} {medium}"


def ask_about_one_of(
    rng: random.Random, pictures: Sequence[Picture], kind: str | None = None, shares: Shares | None = None
) -> Question:
    """A question about one picture that is addressed by its number among several."""
    number = rng.randint(1, len(pictures))
    question = ask_about_picture(rng, pictures[number - 1], kind, shares)
    where = _locate(rng, number)
    text = question.text
    if question.kind == "description":
        medium = where.removeprefix("in ")
        text = rng.choice(
            (f"What is {where}?", f"Describe {medium}.", f"What do you see {where}?", f"What does {medium} show?")
        )
    elif "in the picture" in text:
        text = text.replace("in the picture", where)
    elif rng.random() < 0.6:
        text = f"{where[0].upper()}{where[1:]}, {_decapitalised(text)}"
    else:
        text = f"{text[:-1]} {where}{text[-1]}"
    return replace(question, kind=f"{question.kind} of one", text=text, number=number, about=number)


def _sought(rng: random.Random, pictures: Sequence[Picture]) -> tuple[str, list[int]]:
    """The name of something and the numbers of the pictures that show it."""
    roll = rng.random()
    source = rng.choice(pictures)
    if source.sign and roll < 0.5:
        numbers = [
            number
            for number, picture in enumerate(pictures, 1)
            if picture.sign and picture.sign.text == source.sign.text
        ]
        what = "the sign" if source.sign.cell is None else "the small print"
        return f"{what} that says {source.sign.text}", numbers
    if not source.things:
        return "", []
    thing = rng.choice(source.things)
    if roll < 0.7:
        wanted, name = {"colour": thing.colour, "shape": thing.shape}, f"{thing.colour} {thing.shape}"
    elif roll < 0.9:
        wanted, name = {"shape": thing.shape}, thing.shape
    else:
        wanted, name = {"colour": thing.colour}, f"{thing.colour} thing"
    return name, [number for number, picture in enumerate(pictures, 1) if _only(picture.things, **wanted)]


def _which_image(rng: random.Random, pictures: Sequence[Picture]) -> Question | None:
    name, numbers = _sought(rng, pictures)
    if len(numbers) != 1:
        return None
    the = name if name.startswith("the ") else f"the {name}"
    one = name if name.startswith("the ") else f"{'an' if name[0] == 'o' else 'a'} {name}"
    medium = rng.choice(("image", "image", "picture"))
    phrasings = (
        f"In which {medium} is {the}?",
        f"Which {medium} shows {one}?",
        f"Which {medium} has {one}?",
        f"In which {medium} do you see {one}?",
        f"Where is {the}, in which {medium}?",
    )
    choices = tuple(str(number) for number in range(1, len(pictures) + 1))
    shown = (numbers[0] - 1,)
    return Question("which image", rng.choice(phrasings), str(numbers[0]), choices, about=numbers[0], shown=shown)


def _how_many_images(rng: random.Random, pictures: Sequence[Picture]) -> Question | None:
    name, numbers = _sought(rng, pictures)
    if not name or name.startswith("the "):
        return None
    one = f"{'an' if name[0] == 'o' else 'a'} {name}"
    media = rng.choice(("images", "images", "pictures"))
    phrasings = (
        f"How many {media} show {one}?",
        f"How many {media} have {one}?",
        f"In how many {media} is there {one}?",
    )
    choices = tuple(str(number) for number in range(1, len(pictures) + 1))
    shown = tuple(number - 1 for number in numbers)
    return Question("how many images", rng.choice(phrasings), str(len(numbers)), choices, shown=shown)


SET_KINDS = {"one": 6.0, "which image": 3.0, "how many images": 1.0}
"""Kinds of questions about several pictures, and how often each is asked."""


def ask_about_pictures(
    rng: random.Random, pictures: Sequence[Picture], kind: str | None = None, shares: Shares | None = None
) -> Question:
    """A question about two or more pictures, of a kind in `SET_KINDS` or `<picture kind> of one`."""
    weights = [weight * (shares or {}).get(kind, 1.0) for kind, weight in SET_KINDS.items()]
    for _ in range(40):
        drawn = kind or rng.choices(list(SET_KINDS), weights)[0]
        try:
            if drawn == "which image":
                question = _which_image(rng, pictures)
            elif drawn == "how many images":
                question = _how_many_images(rng, pictures)
            else:
                asked = None if drawn == "one" else drawn.removesuffix(" of one")
                question = ask_about_one_of(rng, pictures, asked, shares)
        except LookupError:
            continue
        if question:
            return question
    raise LookupError(f"no question of kind {kind} about {len(pictures)} pictures")


# -- clips -------------------------------------------------------------------------------------------------------------


def narrate(clip: Clip) -> str:
    """What happens in a clip, in one phrase."""
    subject = clip.subjects[0]
    if clip.event == "move":
        return f"a {subject.name} moves {clip.direction}"
    if clip.event == "order":
        return " and then ".join(f"a {thing.name}" for thing in clip.subjects)
    return f"a {subject.name} flashes {clip.flashes} {'time' if clip.flashes == 1 else 'times'}"


def ask_about_clip(rng: random.Random, clip: Clip) -> Question:
    """A question about what happens in a clip."""
    if rng.random() < 0.2:
        phrasings = (
            "What happens?",
            "What happens in the video?",
            "Describe the video.",
            "What does the video show?",
            "What do you see?",
            "What is happening?",
        )
        return Question("what happens", rng.choice(phrasings), narrate(clip))
    subject = clip.subjects[0]
    name = rng.choice((subject.shape, f"{subject.colour} {subject.shape}", f"{subject.colour} thing"))
    return {"move": _ask_about_move, "order": _ask_about_order, "flash": _ask_about_flash}[clip.event](rng, clip, name)


def _ask_about_move(rng: random.Random, clip: Clip, name: str) -> Question:
    if rng.random() < 0.25:
        what = ("What moves?", "What is moving?", "Which thing moves?", "Which object is moving?")
        return Question("what moves", rng.choice(what), f"a {clip.subjects[0].name}")
    phrasings = (
        f"Which way does the {name} move?",
        f"Which way is the {name} moving?",
        f"In which direction does the {name} move?",
        f"Where does the {name} go?",
        f"In which direction is the {name} moving?",
        f"Which way does the {name} go?",
    )
    return Question("direction", rng.choice(phrasings), clip.direction, tuple(DIRECTIONS))


def _ask_about_order(rng: random.Random, clip: Clip, name: str) -> Question:
    subject, last = clip.subjects[0], clip.subjects[-1]
    if rng.random() < 0.4:
        pair = sorted((subject.shape, rng.choice(clip.subjects[1:]).shape))
        one, other = rng.sample(pair, 2)
        first = rng.choice(("comes first", "appears first", "is shown first", "do you see first"))
        text, choices = f"What {first}, the {one} or the {other}?", tuple(f"the {shape}" for shape in pair)
        return Question("order", text, f"the {subject.shape}", choices)
    when, answer = rng.choice((("first", subject), ("last", last)))
    phrasings = tuple(f"What {verb} {when}?" for verb in ("comes", "appears", "is shown", "do you see"))
    return Question("order", rng.choice(phrasings), f"a {answer.name}")


def _ask_about_flash(rng: random.Random, clip: Clip, name: str) -> Question:
    subject = clip.subjects[0]
    phrasings = (
        f"How many times does the {name} flash?",
        f"How many times does the {name} appear?",
        f"How often does the {name} flash?",
        f"How often does the {name} appear?",
        f"How many times do you see the {name}?",
        f"How many times is the {name} shown?",
    )
    lit = tuple(second for second, frame in enumerate(clip.frames) if subject in frame.things)
    return Question("flashes", rng.choice(phrasings), str(clip.flashes), COUNTS[1 : MAX_FLASHES + 1], shown=lit)


def ask_about(rng: random.Random, *media: Scene, shares: Shares | None = None) -> Question:
    """A random question about one picture, several pictures, or one clip."""
    if len(media) == 1 and isinstance(media[0], Clip):
        return ask_about_clip(rng, media[0])
    pictures = [medium for medium in media if isinstance(medium, Picture)]
    if len(pictures) != len(media) or not media:
        raise ValueError("ask about one picture, several pictures, or one clip")
    if len(media) == 1:
        return ask_about_picture(rng, pictures[0], shares=shares)
    return ask_about_pictures(rng, pictures, shares=shares)


@functools.cache
def vocabulary(small_print: bool = False) -> frozenset[str]:
    """The words of many questions and answers, to build a tokenizer from; with those about small print, or without."""
    rng = random.Random(0)
    words: set[str] = set()
    share = 0.25 if small_print else 0.0
    for turn in range(6000):
        count = (1, 8, 0)[turn % 3]
        media: list[Scene] = [draw_picture(rng, print_share=share) for _ in range(count)] or [draw_clip(rng)]
        question = ask_about(rng, *media)
        for text in (question.text, question.answer):
            words.update("".join(letter if letter.isalpha() else " " for letter in text).split())
    return frozenset(words)


__all__ = [
    "PICTURE_KINDS",
    "SET_KINDS",
    "Question",
    "ask_about",
    "ask_about_clip",
    "ask_about_one_of",
    "ask_about_picture",
    "ask_about_pictures",
    "describe",
    "narrate",
    "vocabulary",
]
