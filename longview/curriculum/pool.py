"""A pool of painted scenes, from which the samples of stages over the synthetic world are composed.

Pictures are painted, sent through JPEG and resized once, before training.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longview.curriculum.labels import labels_of
from longview.curriculum.settings import PoolSettings
from longview.media.medium import Frame, Medium
from longview.messages import Progress
from longview.world.render import render
from longview.world.scenes import Clip, Picture, draw_clip, draw_picture


@dataclass
class Pool:
    """Painted scenes: stills first, then the frames of each clip."""

    pictures: list[Picture]
    pixels: np.ndarray  # (N, R, R, 3) uint8
    labels: Tensor  # (N, 31) int64, see labels.py
    stills: int
    clips: list[tuple[Clip, int]]  # and the index of its first frame

    def __post_init__(self) -> None:
        self.simple = [i for i in range(self.stills) if len(self.pictures[i].things) + bool(self.pictures[i].sign) == 1]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def medium(self, *indices: int) -> Medium:
        """Some pixels as `longview.media` would have opened them; several frames make a video of one a second."""
        side, length = self.pixels.shape[1], len(indices)
        seconds = [None] if length == 1 else [float(second) for second in range(length)]
        frames = [
            Frame(self.image(index), number, moment)
            for number, (index, moment) in enumerate(zip(indices, seconds, strict=True))
        ]
        kind, duration, fps = ("image", None, None) if length == 1 else ("video", float(length), 1.0)
        return Medium(kind, "world", frames, side, side, length, duration, fps, digest="")  # type: ignore[arg-type]


def paint_pool(
    settings: PoolSettings, side: int, seed: int, held_out: bool = False, progress: Progress | None = None
) -> Pool:
    """Draw and paint scenes from one side of the split; the seed decides every pixel.

    Args:
        side: Of the pixels; 0: nothing is painted, as scenes that are described in text need no pixels.
    """
    rng = random.Random(f"pool {seed}")
    scenes: list[tuple[Picture, int]] = []
    for _ in range(settings.pictures):
        simple = rng.random() < settings.simple
        if simple:
            picture = draw_picture(rng, held_out, max_things=1, sign_share=0.0)
        else:
            picture = draw_picture(rng, held_out, sign_share=settings.signs, print_share=settings.prints)
        scenes.append((picture, rng.randrange(1 << 30)))
    clips = []
    for _ in range(settings.clips):
        clip, paint = draw_clip(rng, held_out), rng.randrange(1 << 30)
        clips.append((clip, len(scenes)))
        scenes += [(frame, paint) for frame in clip.frames]
    pixels = np.empty((len(scenes), side, side, 3), dtype=np.uint8)
    for index, (picture, paint) in enumerate(scenes if side else ()):
        file = io.BytesIO()
        render(picture, paint).save(file, "JPEG", quality=rng.randint(50, 95))
        pixels[index] = np.asarray(Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
        if progress and index % 500 == 0:
            progress(index, len(scenes), "painting the pool")
    if progress:
        progress(len(scenes), len(scenes), "painting the pool")
    pictures = [picture for picture, _ in scenes]
    return Pool(pictures, pixels, torch.tensor([labels_of(p) for p in pictures]), settings.pictures, clips)
