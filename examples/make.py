"""Paint the example files again: python examples/make.py [FOLDER]

Scenes of `longview.world` that the embedded model was not trained on (`is_held_out`), so that what it answers is what
it sees. The same scene and seed give the same pixels.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from longview.world import Clip, Picture, Sign, Thing, is_held_out, write_clip, write_picture
from longview.world.needle import draw_needle_video
from longview.world.render import write_needle_video

PLACES = {"top left": (1, 1), "top": (3, 1), "top right": (5, 1), "left": (1, 3), "centre": (3, 3), "right": (5, 3)}
PLACES |= {"bottom left": (1, 5), "bottom": (3, 5), "bottom right": (5, 5)}


def thing(colour: str, shape: str, size: str, place: str) -> Thing:
    x, y = PLACES[place]
    return Thing(colour, shape, size, x / 6, y / 6)


SHAPES = Picture(
    (
        thing("blue", "star", "large", "top left"),
        thing("red", "circle", "large", "centre"),
        thing("pink", "square", "small", "bottom right"),
    )
)
SIGN = Picture((thing("orange", "cross", "large", "top"),), Sign("open", 2))
PAIR = Picture((thing("purple", "triangle", "large", "left"), thing("yellow", "square", "large", "right")))


def moving(mover: Thing) -> Clip:
    """A clip in which a thing crosses the picture from left to right."""
    steps = [(1 + 4 * second / 7) / 6 for second in range(8)]
    return Clip("move", tuple(Picture((mover.at(x, mover.y),)) for x in steps), (mover,), direction="right")


CLIP = moving(thing("red", "triangle", "large", "centre"))
FILM = draw_needle_video(random.Random(7), "position")
"""Four minutes, of which a heart is seen for two seconds."""


def make(folder: Path) -> None:
    """Write every example file."""
    assert all(is_held_out(scene) for scene in (SHAPES, SIGN, PAIR, CLIP))
    write_picture(SHAPES, folder / "shapes.jpg", seed=1)
    write_picture(SIGN, folder / "sign.png", seed=2)
    write_picture(PAIR, folder / "pair.webp", seed=3)
    write_clip(CLIP, folder / "clip.mp4", seed=4)
    write_needle_video(FILM, folder / "film.mp4", seed=5)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
