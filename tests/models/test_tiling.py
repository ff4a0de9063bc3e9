"""Resizing gives the same pixels under every version of Pillow, in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import PIL
import pytest
from PIL import Image

from longview.errors import RequestError
from longview.models import tiling
from longview.models.tiling import fit_square, resize

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


BORDER = (122, 116, 104)
SHAPES = [(1, 1), (1, 40), (40, 3), (100, 100), (300, 200), (200, 300), (1000, 7), (7, 1000), (97, 13)]


@pytest.mark.parametrize("strip_bytes", [tiling.STRIP_BYTES, 2000])
@pytest.mark.parametrize("size", SHAPES)
def test_a_picture_in_a_square_is_that_square_resized(size, strip_bytes, monkeypatch):
    monkeypatch.setattr(tiling, "STRIP_BYTES", strip_bytes)
    image, longer = noise(size), max(size)
    canvas = Image.new("RGB", (longer, longer), BORDER)
    canvas.paste(image, ((longer - size[0]) // 2, (longer - size[1]) // 2))
    for side in (64, 96, 336):
        fitted = fit_square(image, side, Image.Resampling.BICUBIC, BORDER)
        assert fitted.tobytes() == resize(canvas, (side, side), Image.Resampling.BICUBIC).tobytes(), side


@pytest.mark.parametrize("strip_bytes", [tiling.STRIP_BYTES, 2000])
@pytest.mark.parametrize("size", SHAPES)
def test_a_part_of_a_resized_picture_is_the_whole_one_cut(size, strip_bytes, monkeypatch):
    image = noise(size)
    for wanted in ((100, 20), (24, 7), (150, 150), (64, 200)):
        rows, columns = size[1] - wanted[1], size[0] - wanted[0]
        between = (size[0], wanted[1]) if rows > 0 and rows > 2 * columns else (wanted[0], size[1])
        whole = image.resize(between, Image.Resampling.BICUBIC).resize(wanted, Image.Resampling.BICUBIC)
        monkeypatch.setattr(tiling, "STRIP_BYTES", strip_bytes)
        box = (3, 2, wanted[0] - 5, wanted[1] - 4)
        assert resize(image, wanted, Image.Resampling.BICUBIC).tobytes() == whole.tobytes()
        assert resize(image, wanted, Image.Resampling.BICUBIC, box).tobytes() == whole.crop(box).tobytes()


MEASURED = """
import resource
from PIL import Image
from longview.models.tiling import fit_square, resize
image = Image.new("RGB", {size}, "red")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit_square(image, 768, Image.Resampling.BICUBIC, (122, 116, 104))
scale = 768 / min(image.size)
whole = (int(image.width * scale), int(image.height * scale))
resize(image, whole, Image.Resampling.BICUBIC, (0, 0, 768, 768))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("size", [(20000, 100), (100, 20000), (100_000, 500)])
def test_a_thin_panorama_takes_the_memory_of_itself(size):
    """A square of 20000 pixels a side would be 1.2 GB, one of 100 000 pixels 30 GB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(size=size)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150_000


def test_what_no_memory_holds_is_refused_in_one_line(monkeypatch):
    with pytest.raises(RequestError, match="500 × 100000 pixels is too long and narrow: to make a square of it takes"):
        fit_square(Image.new("RGB", (500, 100_000)), 336, Image.Resampling.BICUBIC, BORDER)
    monkeypatch.setattr(tiling, "PICTURE_BYTES", 100_000)
    for refused in (
        lambda: fit_square(noise((40000, 2)), 64, Image.Resampling.BICUBIC, BORDER),
        lambda: resize(noise((2, 900)), (200, 1000), Image.Resampling.BICUBIC),
    ):
        with pytest.raises(RequestError, match="too long and narrow") as error:
            refused()
        assert "\n" not in str(error.value)
