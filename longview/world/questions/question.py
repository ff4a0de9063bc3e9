"""A question with its true answer, and the phrases that questions and answers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longview.world.scenes import MAX_THINGS, Picture, Thing

COUNTS = tuple(str(count) for count in range(MAX_THINGS + 1))
_PLURAL = {"cross": "crosses"}


@dataclass(frozen=True)
class Question:
    """A question with its true answer."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()  # the answers that make sense; empty where they are too many
    number: int = 0  # of the picture that it names, from 1; 0 where it names none
    about: int = 0  # number of the picture that its answer is found in, from 1; 0 where all are needed
    cells: tuple[int, ...] | None = None  # where in that picture the thing is that it names; None: there is none
    other_cells: tuple[int, ...] | None = None  # where the second thing is that it names
    found_in: tuple[int, ...] | None = None  # the pictures or frames, from 0, that show what it asks for


def plural(shape: str) -> str:
    return _PLURAL.get(shape, f"{shape}s")


def place_phrase(place: str) -> str:
    """The place as a phrase: `at the top left`, `in the centre`."""
    return f"{'in' if place == 'centre' else 'on' if place in ('left', 'right') else 'at'} the {place}"


def describe(picture: Picture) -> str:
    """Everything in a picture, in reading order; `nothing` for an empty one."""
    phrases = [(thing.cell, f"a {thing.name} {place_phrase(thing.place)}") for thing in picture.things]
    if picture.sign:
        what = "a sign that says" if picture.sign.cell is None else "small print that says"
        phrases.append((picture.sign.cells[0], f"{what} {picture.sign.text}"))
    return " and ".join(phrase for _, phrase in sorted(phrases)) or "nothing"


def matching(things: Sequence[Thing], **wanted: str) -> list[Thing]:
    return [thing for thing in things if all(getattr(thing, key) == value for key, value in wanted.items())]


def cells_of(things: Sequence[Thing]) -> tuple[int, ...]:
    return tuple(thing.cell for thing in things)


def yes_or_no(is_so: object) -> str:
    return "yes" if is_so else "no"
