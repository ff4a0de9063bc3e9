"""Scenes: a picture of a few things and perhaps a sign, or a clip in which something happens.

A scene holds everything that a question can ask about; `render` adds the rest (the exact tint, the background). Scenes
are drawn from a `random.Random`, so that a seed gives the same ones on every machine.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = ("small", "large")
CELLS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
ROWS = ("top", "centre", "bottom")
WORDS = (
    "bank", "beach", "bread", "bus", "cafe", "exit", "fish", "go", "hello", "hotel", "ice", "love",
    "milk", "music", "open", "park", "pizza", "sale", "school", "shop", "stop", "taxi", "tea", "zoo",
)  # fmt: skip
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MAX_THINGS = 4
MAX_FLASHES = 4
CLIP_SECONDS = 8

Event = Literal["move", "order", "flash"]
EVENTS: tuple[Event, ...] = ("move", "order", "flash")


@dataclass(frozen=True)
class Thing:
    """A coloured shape. `x` and `y` are its centre, from 0 (left, top) to 1 (right, bottom) of the picture."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    @property
    def cell(self) -> int:
        """The place in the 3 × 3 layout that holds the centre, row by row."""
        return min(2, int(self.y * 3)) * 3 + min(2, int(self.x * 3))

    @property
    def place(self) -> str:
        return CELLS[self.cell]

    @property
    def name(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"

    def at(self, x: float, y: float) -> Thing:
        return Thing(self.colour, self.shape, self.size, x, y)


@dataclass(frozen=True)
class Sign:
    """A printed word or number: it fills one row (0 top, 1 centre, 2 bottom), or is small print in a cell.

    Small print is as large as letters on a scanned page: a picture made small does not show it any more.
    """

    text: str
    row: int
    cell: int | None = field(default=None, repr=False)  # of small print

    @property
    def cells(self) -> tuple[int, ...]:
        """The cells that it takes, so that no thing is drawn there."""
        return tuple(range(self.row * 3, self.row * 3 + 3)) if self.cell is None else (self.cell,)

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()


@dataclass(frozen=True)
class Picture:
    """A still picture; its things are in reading order and no two share a cell."""

    things: tuple[Thing, ...]
    sign: Sign | None = None


@dataclass(frozen=True)
class Clip:
    """A silent clip: one picture a second. `subjects` are the things it is about, in the order in which they matter."""

    event: Event
    frames: tuple[Picture, ...]
    subjects: tuple[Thing, ...]
    direction: str = ""  # of a move
    flashes: int = 0  # of a flash


Scene: TypeAlias = "Picture | Clip"


def is_held_out(scene: Scene) -> bool:
    """Whether a scene is kept for evaluation: one in ten, by a hash of what it shows (not of its exact coordinates)."""
    if isinstance(scene, Clip):
        content = f"{scene.event} {scene.direction} {scene.flashes} " + ";".join(
            f"{thing.name} {thing.cell}" for thing in scene.subjects
        )
    else:
        content = ";".join(f"{thing.name} {thing.cell}" for thing in scene.things) + f" {scene.sign}"
    return hashlib.sha256(content.encode()).digest()[0] < 26


def draw_thing(rng: random.Random, cell: int) -> Thing:
    """A random thing, whole inside a cell."""
    size = rng.choice(SIZES)
    slack = 0.05 if size == "small" else 0.02
    x = (cell % 3 + 0.5) / 3 + rng.uniform(-slack, slack)
    y = (cell // 3 + 0.5) / 3 + rng.uniform(-slack, slack)
    return Thing(rng.choice(COLOURS), rng.choice(SHAPES), size, x, y)


def draw_picture(
    rng: random.Random,
    held_out: bool = False,
    max_things: int = MAX_THINGS,
    sign_share: float = 0.25,
    print_share: float = 0.0,
) -> Picture:
    """A random picture from one side of the split: up to `max_things` things, and a sign or small print in some."""
    while True:
        cells = list(range(9))
        sign = None
        small = print_share > 0 and rng.random() < print_share
        if small or rng.random() < sign_share:
            text = rng.choice(WORDS) if rng.random() < 0.5 else str(rng.randrange(100))
            cell = rng.randrange(9) if small else None
            sign = Sign(text, rng.randrange(3) if cell is None else cell // 3, cell)
            cells = [cell for cell in cells if cell not in sign.cells]
        count = rng.randint(0 if sign or rng.random() < 0.03 else 1, max_things)
        # Half of the pictures repeat a colour or a shape, so that counting and telling apart are worth learning.
        things = [draw_thing(rng, cell) for cell in sorted(rng.sample(cells, count))]
        if count > 1 and rng.random() < 0.5:
            source, copy = rng.sample(range(count), 2)
            kept = things[source]
            old = things[copy]
            if rng.random() < 0.5:
                things[copy] = Thing(kept.colour, old.shape, old.size, old.x, old.y)
            else:
                things[copy] = Thing(old.colour, kept.shape, old.size, old.x, old.y)
        picture = Picture(tuple(things), sign)
        if is_held_out(picture) == held_out:
            return picture


def draw_clip(rng: random.Random, held_out: bool = False, event: Event | None = None) -> Clip:
    """A random clip of `CLIP_SECONDS` pictures from one side of the split."""
    while True:
        drawn = rng.choice(EVENTS) if event is None else event
        clip = {"move": _draw_move, "order": _draw_order, "flash": _draw_flash}[drawn](rng)
        if is_held_out(clip) == held_out:
            return clip


def _draw_others(rng: random.Random, subject: Thing, cells: list[int], most: int = 1) -> tuple[Thing, ...]:
    """Things that stand still beside the subject and have another shape and another colour."""
    others: list[Thing] = []
    for cell in rng.sample(cells, rng.randint(0, most)):
        other = draw_thing(rng, cell)
        if other.shape != subject.shape and other.colour != subject.colour:
            others.append(other)
    return tuple(others)


def _still(*things: Thing) -> Picture:
    return Picture(tuple(sorted(things, key=lambda thing: thing.cell)))


def _draw_move(rng: random.Random) -> Clip:
    direction = rng.choice(tuple(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    lane = rng.randrange(3)
    middle = lane * 3 + 1 if dx else 3 + lane
    mover = draw_thing(rng, middle)
    cells = [cell for cell in range(9) if (cell // 3 if dx else cell % 3) != lane]
    others = _draw_others(rng, mover, cells)
    start, end = rng.uniform(-0.36, -0.30), rng.uniform(0.30, 0.36)
    frames = []
    for second in range(CLIP_SECONDS):
        offset = start + (end - start) * second / (CLIP_SECONDS - 1)
        x = 0.5 + dx * offset if dx else mover.x
        y = 0.5 + dy * offset if dy else mover.y
        frames.append(_still(mover.at(x, y), *others))
    return Clip("move", tuple(frames), (mover, *others), direction=direction)


def _draw_order(rng: random.Random) -> Clip:
    """Two or three things are shown one after the other; no two have a colour or a shape in common."""
    count = rng.choice((2, 2, 3))
    colours, shapes = rng.sample(COLOURS, count), rng.sample(SHAPES, count)
    things = []
    for colour, shape in zip(colours, shapes, strict=True):
        drawn = draw_thing(rng, rng.randrange(9))
        things.append(Thing(colour, shape, drawn.size, drawn.x, drawn.y))
    cuts = sorted(rng.sample(range(2, CLIP_SECONDS - 1, 2), count - 1))
    frames = [_still(things[sum(second >= cut for cut in cuts)]) for second in range(CLIP_SECONDS)]
    return Clip("order", tuple(frames), tuple(things))


def _draw_flash(rng: random.Random) -> Clip:
    """A thing is seen for one second at a time, 1 … `MAX_FLASHES` times, with darkness between."""
    flashes = rng.randint(1, MAX_FLASHES)
    cell = rng.randrange(9)
    thing = draw_thing(rng, cell)
    others = _draw_others(rng, thing, [other for other in range(9) if other != cell])
    # Non-adjacent seconds: choose from a shorter row, then spread by one for each flash before.
    chosen = sorted(rng.sample(range(CLIP_SECONDS - flashes + 1), flashes))
    lit = {second + before for before, second in enumerate(chosen)}
    frames = [_still(*(thing,) * (second in lit), *others) for second in range(CLIP_SECONDS)]
    return Clip("flash", tuple(frames), (thing, *others), flashes=flashes)
