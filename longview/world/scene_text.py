"""Scenes as text, cell by cell: what a language model is trained on before it is given pictures.

Image 1: top left: small red circle; centre: large blue star
Image 2: bottom: sign that says stop
"""

from __future__ import annotations

from typing import NamedTuple

from longview.world.scenes import CELLS, ROWS, Clip, Picture, Scene


class Mention(NamedTuple):
    """A thing or a sign that a text mentions."""

    end: int
    """Characters of the text up to the end of the mention."""
    picture: int
    """Which of the pictures or frames, from 0."""
    cell: int | None
    """Where the thing is; None: it is a sign."""


class SceneText(NamedTuple):
    """Scenes as text."""

    text: str
    mentions: list[Mention]


def scene_text(*scenes: Scene) -> SceneText:
    """Some pictures, or the frames of a clip, one a line; a single picture has no number."""
    frames = [frame for scene in scenes for frame in (scene.frames if isinstance(scene, Clip) else (scene,))]
    text, mentions = "", []
    for number, frame in enumerate(frames):
        text += "\n" if number else ""
        text += f"Image {number + 1}: " if len(frames) > 1 else ""
        phrases = _phrases(frame)
        text += "" if phrases else "nothing"
        for position, (_, phrase, cell) in enumerate(phrases):
            text += f"; {phrase}" if position else phrase
            mentions.append(Mention(len(text), number, cell))
    return SceneText(text, mentions)


def _phrases(picture: Picture) -> list[tuple[int, str, int | None]]:
    """What is in a picture, in reading order: its first cell, a phrase, and the cell of a thing."""
    phrases: list[tuple[int, str, int | None]] = [
        (thing.cell, f"{thing.place}: {thing.name}", thing.cell) for thing in picture.things
    ]
    sign = picture.sign
    if sign and sign.cell is None:
        phrases.append((sign.cells[0], f"{ROWS[sign.row]}: sign that says {sign.text}", None))
    elif sign and sign.cell is not None:
        phrases.append((sign.cell, f"{CELLS[sign.cell]}: small print that says {sign.text}", None))
    return sorted(phrases, key=lambda each: each[0])
