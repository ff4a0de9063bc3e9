"""Scenes told in words, place by place: what a language model can read before it sees anything.

Image 1: top left: small red circle; centre: large blue star
Image 2: bottom: sign that says stop
"""

from __future__ import annotations

from longview.world.scenes import CELLS, ROWS, Clip, Picture, Scene


def retell(*scenes: Scene) -> str:
    """Some pictures, or the frames of a clip, a line each; one picture alone has no number."""
    frames = [frame for scene in scenes for frame in (scene.frames if isinstance(scene, Clip) else (scene,))]
    if len(frames) == 1:
        return _line(frames[0])
    return "\n".join(f"Image {number}: {_line(frame)}" for number, frame in enumerate(frames, 1))


def _line(picture: Picture) -> str:
    """What stands in a picture, in reading order."""
    told = [(thing.cell, f"{thing.place}: {thing.name}") for thing in picture.things]
    sign = picture.sign
    if sign and sign.cell is None:
        told.append((sign.cells[0], f"{ROWS[sign.row]}: sign that says {sign.text}"))
    elif sign and sign.cell is not None:
        told.append((sign.cell, f"{CELLS[sign.cell]}: small print that says {sign.text}"))
    return "; ".join(text for _, text in sorted(told)) or "nothing"
