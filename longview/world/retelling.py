"""Scenes told in words, place by place: what a language model can read before it sees anything.

Image 1: top left: small red circle; centre: large blue star
Image 2: bottom: sign that says stop
"""

from __future__ import annotations

from typing import NamedTuple

from longview.world.scenes import CELLS, ROWS, Clip, Picture, Scene


class Spot(NamedTuple):
    """Where a text has told of a thing, or of a sign."""

    end: int
    """Characters of the text up to there."""
    picture: int
    """Which of the pictures or frames, from 0."""
    cell: int | None
    """Where the thing stands; None: it is a sign."""


class Retelling(NamedTuple):
    """Scenes in words."""

    text: str
    spots: list[Spot]


def retell(*scenes: Scene) -> Retelling:
    """Some pictures, or the frames of a clip, a line each; one picture alone has no number."""
    frames = [frame for scene in scenes for frame in (scene.frames if isinstance(scene, Clip) else (scene,))]
    text, spots = "", []
    for number, frame in enumerate(frames):
        text += "\n" if number else ""
        text += f"Image {number + 1}: " if len(frames) > 1 else ""
        told = _told(frame)
        text += "" if told else "nothing"
        for position, (_, words, cell) in enumerate(told):
            text += f"; {words}" if position else words
            spots.append(Spot(len(text), number, cell))
    return Retelling(text, spots)


def _told(picture: Picture) -> list[tuple[int, str, int | None]]:
    """What stands in a picture, in reading order: its first cell, words for it, and the cell of a thing."""
    told: list[tuple[int, str, int | None]] = [
        (thing.cell, f"{thing.place}: {thing.name}", thing.cell) for thing in picture.things
    ]
    sign = picture.sign
    if sign and sign.cell is None:
        told.append((sign.cells[0], f"{ROWS[sign.row]}: sign that says {sign.text}", None))
    elif sign and sign.cell is not None:
        told.append((sign.cell, f"{CELLS[sign.cell]}: small print that says {sign.text}", None))
    return sorted(told, key=lambda each: each[0])
