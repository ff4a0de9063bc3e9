"""A pool of painted scenes, from which the samples of stages over the synthetic world are composed.

    pictures    stills …        frames of clips …        close stills …
    pixels      each whole, (N, R, R, 3)                 each as its family cuts it, `close` (M, V, 3, R, R)

Pictures are painted, sent through JPEG and resized once, before training; several processes paint at a time.
"""

from __future__ import annotations

import contextlib
import gc
import io
import mmap
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longview.curriculum.labels import labels_of
from longview.curriculum.reading import cell_of_print
from longview.curriculum.settings import PoolSettings
from longview.errors import RecipeError
from longview.media.medium import Frame, Medium
from longview.messages import Progress
from longview.world.render import SIDE, render
from longview.world.scenes import COLOURS, SHAPES, Clip, Picture, draw_clip, draw_picture

Views = Callable[[Image.Image], np.ndarray]
"""A picture → what a family cuts it into, (V, 3, R, R) uint8."""
PAINTED_AT_ONCE = 64
"""Pictures that a painting process takes at a time."""


@dataclass
class Pool:
    """Painted scenes: stills first, then the frames of each clip, then stills that are shown close, in crops."""

    pictures: list[Picture]
    pixels: np.ndarray  # (N, R, R, 3) uint8, of all but the close ones
    labels: Tensor  # of all, (N + M, 31) int64, see labels.py
    stills: int
    clips: list[tuple[Clip, int]]  # and the index of its first frame
    close: np.ndarray = field(default_factory=lambda: np.empty((0, 1, 3, 1, 1), np.uint8))  # (M, V, 3, R, R) uint8

    def __post_init__(self) -> None:
        self.simple = [i for i in range(self.stills) if len(self.pictures[i].things) + bool(self.pictures[i].sign) == 1]
        self.held = [bits_held(picture) for picture in self.pictures[: self.stills]]
        """What stands in each still, see `bits_held`."""
        self.printed = [
            i for i, picture in enumerate(self.pictures[: self.stills]) if cell_of_print(picture) is not None
        ]
        """Stills that hold small print."""
        self.alone: dict[tuple[str, str], list[int]] = {}
        """Stills that hold one thing and no sign, by its colour and shape."""
        for index in self.simple:
            for thing in self.pictures[index].things:
                self.alone.setdefault((thing.colour, thing.shape), []).append(index)

    @property
    def first_close(self) -> int:
        """The index of the first picture that is shown close."""
        return len(self.pictures) - len(self.close)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def medium(self, *indices: int) -> Medium:
        """Some pixels as `longview.media` would have opened them; several frames make a video of one a second.

        A picture that is shown close has the size that it was painted in, and no pixels: they are in `close`.
        """
        side, length = self.pixels.shape[1], len(indices)
        if length == 1 and indices[0] >= self.first_close:
            blank = [Frame(Image.new("RGB", (SIDE, SIDE)), 0, None)]
            return Medium("image", "world", blank, SIDE, SIDE, 1, None, None, digest="")
        seconds = [None] if length == 1 else [float(second) for second in range(length)]
        frames = [
            Frame(self.image(index), number, moment)
            for number, (index, moment) in enumerate(zip(indices, seconds, strict=True))
        ]
        kind, duration, fps = ("image", None, None) if length == 1 else ("video", float(length), 1.0)
        return Medium(kind, "world", frames, side, side, length, duration, fps, digest="")  # type: ignore[arg-type]


def bits_of(colour: str | None, shape: str | None) -> int:
    """A number with one bit for a colour, a shape, or a shape of a colour; 0 for neither."""
    if colour and shape:
        return 1 << (COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape))
    if colour:
        return 1 << (len(COLOURS) * len(SHAPES) + COLOURS.index(colour))
    return 1 << (len(COLOURS) * (len(SHAPES) + 1) + SHAPES.index(shape)) if shape else 0


def bits_held(picture: Picture) -> int:
    """All colours, shapes and shapes of a colour in a picture, as `bits_of` numbers them."""
    held = 0
    for thing in picture.things:
        held |= bits_of(thing.colour, thing.shape) | bits_of(thing.colour, None) | bits_of(None, thing.shape)
    return held


def paint_pool(
    settings: PoolSettings,
    side: int,
    seed: int,
    held_out: bool = False,
    progress: Progress | None = None,
    views: Views | None = None,
    workers: int = 0,
) -> Pool:
    """Draw and paint scenes from one side of the split; the seed decides every pixel.

    Args:
        side: Of the pixels; 0: nothing is painted, as scenes that are described in text need no pixels.
        views: How the family cuts a picture; for `settings.close`.
        workers: Processes that paint; 0: this one.

    Raises:
        RecipeError: pictures are to be shown close to a family that does not cut them.
    """
    rng = random.Random(f"pool {seed}")
    scenes: list[tuple[Picture, int]] = []
    prints = 0.0 if settings.close else settings.prints
    for _ in range(settings.pictures):
        simple = rng.random() < settings.simple
        if simple:
            picture = draw_picture(rng, held_out, max_things=1, sign_share=0.0)
        else:
            picture = draw_picture(rng, held_out, sign_share=settings.signs, print_share=prints)
        scenes.append((picture, rng.randrange(1 << 30)))
    clips = []
    for _ in range(settings.clips):
        clip, paint = draw_clip(rng, held_out), rng.randrange(1 << 30)
        clips.append((clip, len(scenes)))
        scenes += [(frame, paint) for frame in clip.frames]
    qualities = [rng.randint(50, 95) for _ in scenes]
    whole = len(scenes)
    close = settings.close if side else 0
    for _ in range(close):
        picture = draw_picture(rng, held_out, sign_share=settings.signs, print_share=settings.prints)
        scenes.append((picture, rng.randrange(1 << 30)))
        qualities.append(rng.randint(50, 95))
    cut: tuple[int, ...] = (1, 3, 1, 1)
    if close:
        if views is None:
            raise RecipeError("pool.close is for families that cut pictures into crops; leave it out")
        cut = views(Image.new("RGB", (SIDE, SIDE))).shape
    pixels, crops = _shared((whole, side, side, 3), workers), _shared((close, *cut), workers)

    def paint_some(begin: int, end: int) -> None:
        for index in range(begin, end):
            file = io.BytesIO()
            render(*scenes[index]).save(file, "JPEG", quality=qualities[index])
            image = Image.open(file).convert("RGB")
            if index < whole:
                pixels[index] = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
            else:
                assert views is not None
                crops[index - whole] = views(image)

    for done in _in_processes(paint_some, len(scenes) if side else 0, workers):
        if progress and done < len(scenes):
            progress(done, len(scenes), "painting the pool")
    if progress:
        progress(len(scenes), len(scenes), "painting the pool")
    pictures = [picture for picture, _ in scenes]
    labels = torch.tensor([labels_of(p) for p in pictures])
    return Pool(pictures, pixels, labels, settings.pictures, clips, crops)


def _shared(shape: tuple[int, ...], workers: int) -> np.ndarray:
    """Zeros (uint8) that processes forked from this one can write into."""
    size = int(np.prod(shape))
    if not workers or not size:
        return np.zeros(shape, np.uint8)
    return np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(shape)


def _in_processes(work: Callable[[int, int], None], count: int, workers: int) -> Iterator[int]:
    """Do some work for numbers below `count`, a few at a time, in this process or in forked ones; yields how many are
    done.

    Raises:
        RecipeError: a process has ended before its work was done.
    """
    if not workers:
        for begin in range(0, count, PAINTED_AT_ONCE):
            yield begin
            work(begin, min(begin + PAINTED_AT_ONCE, count))
        return
    context, run = multiprocessing.get_context("fork"), os.getpid()
    done = [context.Value("q", 0, lock=False) for _ in range(workers)]

    def paint(number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the run, which ends its processes
        gc.freeze()  # nothing of the other process is freed in this one, least of all what a GPU holds
        for begin in range(number * PAINTED_AT_ONCE, count, workers * PAINTED_AT_ONCE):
            if os.getppid() != run:  # it was killed
                return
            end = min(begin + PAINTED_AT_ONCE, count)
            work(begin, end)
            done[number].value += end - begin

    painters = [context.Process(target=paint, args=(number,), daemon=True) for number in range(workers)]
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: painters use none of them
        for painter in painters:
            painter.start()
            stack.callback(painter.join)
            stack.callback(painter.kill)
        while any(painter.is_alive() for painter in painters) and not any(painter.exitcode for painter in painters):
            time.sleep(0.05)
            yield sum(each.value for each in done)
        if any(painter.exitcode for painter in painters):
            raise RecipeError(
                "a process that paints the pool has ended early; there may be too little memory: give fewer --workers"
            )
