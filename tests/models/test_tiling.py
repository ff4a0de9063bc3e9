"""Resizing gives the same pixels under every version of Pillow."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
from PIL import Image

from longview.models.tiling import resize

SIZES = [(100, 100), (120, 80), (80, 120), (30, 200)]
WANTED = [
    (100, 20),
    (90, 79),
    (90, 80),
    (90, 81),
    (60, 60),
    (48, 56),
    (15, 120),
    (24, 7),
    (24, 8),
    (150, 99),
    (150, 150),
]


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="older versions take the columns first, always")
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_pillow_13(size, resample):
    image = noise(size)
    for wanted in WANTED:
        assert resize(image, wanted, resample).tobytes() == image.resize(wanted, resample).tobytes(), wanted


def test_rows_go_first_where_more_than_twice_as_many_rows_as_columns_go():
    image = noise((100, 100))
    tall, wide = ((90, 79), (100, 79)), ((90, 80), (90, 100))
    for wanted, between in (tall, wide):
        steps = image.resize(between, Image.Resampling.BICUBIC).resize(wanted, Image.Resampling.BICUBIC)
        assert resize(image, wanted, Image.Resampling.BICUBIC).tobytes() == steps.tobytes()
