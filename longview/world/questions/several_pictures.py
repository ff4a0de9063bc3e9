"""Questions about several pictures: about one that is named by its number, which one shows something, how many do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from longview.world.questions.one_picture import Shares, ask_about_picture
from longview.world.questions.question import Question, matching
from longview.world.scenes import Picture

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _decapitalised(text: str) -> str:
    return text[0].lower() + text[1:]


def _picture_phrase(rng: random.Random, number: int) -> str:
    """A phrase that names one picture of several."""
    medium = rng.choice(("image", "image", "picture"))
    if rng.random() < 0.7 or number > len(ORDINALS):
        return f"in {medium} {number}"
    return f"in the {ORDINALS[number - 1]} {medium}"


def ask_about_one_of(
    rng: random.Random, pictures: Sequence[Picture], kind: str | None = None, shares: Shares | None = None
) -> Question:
    """A question about one picture that is addressed by its number among several."""
    number = rng.randint(1, len(pictures))
    question = ask_about_picture(rng, pictures[number - 1], kind, shares)
    where = _picture_phrase(rng, number)
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


def _draw_target(rng: random.Random, pictures: Sequence[Picture]) -> tuple[str, list[int]]:
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
    return name, [number for number, picture in enumerate(pictures, 1) if matching(picture.things, **wanted)]


def _which_image(rng: random.Random, pictures: Sequence[Picture]) -> Question | None:
    name, numbers = _draw_target(rng, pictures)
    if len(numbers) != 1:
        return None
    return which_image(rng, name, numbers[0], len(pictures))


def which_image(rng: random.Random, name: str, number: int, count: int) -> Question:
    """Which of `count` pictures shows what is named ("red circle", "the sign that says stop"): `number`, from 1."""
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
    choices = tuple(str(each) for each in range(1, count + 1))
    return Question("which image", rng.choice(phrasings), str(number), choices, about=number, found_in=(number - 1,))


def _how_many_images(rng: random.Random, pictures: Sequence[Picture]) -> Question | None:
    name, numbers = _draw_target(rng, pictures)
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
    found_in = tuple(number - 1 for number in numbers)
    return Question("how many images", rng.choice(phrasings), str(len(numbers)), choices, found_in=found_in)


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
                picture_kind = None if drawn == "one" else drawn.removesuffix(" of one")
                question = ask_about_one_of(rng, pictures, picture_kind, shares)
        except LookupError:
            continue
        if question:
            return question
    raise LookupError(f"no question of kind {kind} about {len(pictures)} pictures")
