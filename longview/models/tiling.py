"""Grids: geometry that the families use differently. No tensors; pictures in, pictures out."""

from __future__ import annotations

from PIL import Image


def cut(image: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """Cut a picture into rows · columns equal crops, row after row. Its sides must divide evenly."""
    width, height = image.width // columns, image.height // rows
    assert (width * columns, height * rows) == image.size, (image.size, rows, columns)
    return [
        image.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    ]
