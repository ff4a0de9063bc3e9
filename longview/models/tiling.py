"""Resizing pictures and cutting them into grids. No tensors; pictures in, pictures out."""

from __future__ import annotations

from PIL import Image


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """An RGB picture at another size (width, height), equal under every version of Pillow.

    Between its two passes, a resize rounds to 8 bits, so their order matters. Pillow 13 resizes the rows first where it
    removes more than twice as many rows as columns (its change 9549), older versions never do; the order here is that
    of Pillow 13, with which the authors' numbers in the tests were made.
    """
    rows, columns = image.height - size[1], image.width - size[0]
    between = (image.width, size[1]) if rows > 0 and rows > 2 * columns else (size[0], image.height)
    return image.resize(between, resample).resize(size, resample)


def cut(image: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """Cut a picture into rows · columns equal crops, row after row. Its sides must divide evenly."""
    width, height = image.width // columns, image.height // rows
    assert (width * columns, height * rows) == image.size, (image.size, rows, columns)
    return [
        image.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    ]
