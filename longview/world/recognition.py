"""Recognise pictures of the synthetic world: embedded models know no others, and answer about anything.

A rendered scene has one light background that covers more than half of it, and a few known colours. Photographs and
frames of real videos have hardly a pixel of such a background.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from longview.world.render import BACKGROUNDS, RGB

SIDE = 96  # pixels of the side that pictures are resized to
BACKGROUND_SHARE = 0.35
KNOWN_SHARE = 0.75
"""Shares of the pixels that are background, and that are background or a known colour. Of 502 held-out pictures and
frames the smallest are 0.56 and 0.90; of 328 photographs and frames of real videos the largest background is 0.12."""


def is_drawn(image: Image.Image) -> bool:
    """Whether a picture looks like one of `render`, whatever its size and compression."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), dtype=np.int16)
    pixels = np.ascontiguousarray(pixels.reshape(-1, 3).T)  # (3, pixels): operations on short last axes are slow
    backgrounds = _near(pixels, np.array(BACKGROUNDS, dtype=np.int16), 14)  # (backgrounds, pixels)
    likeliest = backgrounds[backgrounds.mean(1).argmax()]
    if not likeliest.any():
        return False
    background = _near(pixels, np.median(pixels[:, likeliest], axis=1)[None], 8)[0]
    if background.mean() < BACKGROUND_SHARE:
        return False
    drawn = _near(pixels, np.array(list(RGB.values()), dtype=np.int16), 24).any(0)
    white, dark = pixels.min(0) >= 240, pixels.max(0) <= 40
    known = background | drawn | white | dark
    return bool(known.mean() >= KNOWN_SHARE)


def _near(pixels: np.ndarray, colours: np.ndarray, tolerance: int) -> np.ndarray:
    """Which pixels (3, n) differ from which colours (m, 3) by at most `tolerance` in every channel: bool (m, n)."""
    red, green, blue = (np.abs(pixels[channel] - colours[:, channel, None]) <= tolerance for channel in range(3))
    return red & green & blue


def warning_of(
    model: str,
    name: str,
    option: str = "--model",
    example: str = "mPLUG/mPLUG-Owl3-7B-241101",
    what: str = "answer",
) -> str:
    """The warning about a picture or video of another world.

    Args:
        model: The embedded model.
        name: Of the picture or video.
        option, example: Where a real checkpoint is named, and one.
        what: What the embedded model gives.
    """
    return (
        f"{model} knows only drawn shapes, and {name} is none of its scenes: its {what} means nothing; for photographs "
        f"and real videos give {option} a real checkpoint, such as {example}"
    )
