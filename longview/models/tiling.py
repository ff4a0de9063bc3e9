"""Resizing pictures and cutting them into grids, in bounded memory. No tensors; pictures in, pictures out."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from longview.errors import RequestError

STRIP_BYTES = 16 << 20
"""Of a picture, what is resized at a time: strips of rows or columns, which do not depend on one another."""
PICTURE_BYTES = 512 << 20
"""The most that a family may make of one picture between its pixels and those of the model."""
SQUARE_PIXELS = 4 << 30
"""Pixels of a square that are filtered at most, strip by strip: about 20 s of one core."""

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""


def resize(image: Image.Image, size: tuple[int, int], resample: int, box: Box | None = None) -> Image.Image:
    """An RGB picture at another size (width, height), equal under every version of Pillow.

    Between its two passes, a resize rounds to 8 bits, so their order matters. Pillow 13 resizes the rows first where it
    removes more than twice as many rows as columns (its change 9549), older versions never do; the order here is that
    of Pillow 13, with which the authors' numbers in the tests were made.

    Args:
        box: The part that is kept; the rest is never made.

    Raises:
        RequestError: a picture in between would take more than `PICTURE_BYTES`.
    """
    left, upper, right, lower = box or (0, 0, *size)
    rows, columns = image.height - size[1], image.width - size[0]
    if rows > 0 and rows > 2 * columns:
        return _wider(_higher(image, size[1], resample, upper, lower), size[0], resample, left, right)
    return _higher(_wider(image, size[0], resample, left, right), size[1], resample, upper, lower)


def fit_square(image: Image.Image, side: int, resample: int, border: tuple[int, ...]) -> Image.Image:
    """An RGB picture in the middle of a square of `border`, as `resize` makes of that square, which is never made.

    A filter leaves what is all of one colour as it is, so only what the picture reaches is computed.

    Raises:
        RequestError: a picture in between would take more than `PICTURE_BYTES`, or too much time.
    """
    longer = max(image.size)
    if longer * image.height > SQUARE_PIXELS:
        raise RequestError(
            f"a picture of {image.width} × {image.height} pixels is too long and narrow: to make a square of it takes "
            "minutes; cut it into parts"
        )
    left, upper = (longer - image.width) // 2, (longer - image.height) // 2
    begin, end = _reached(left, image.width, longer, side)
    _check(image, end - begin, image.height)
    narrow = Image.new("RGB", (end - begin, image.height))
    for top, bottom in _strips(image.height, max(longer, side)):
        strip = Image.new("RGB", (longer, bottom - top), border)
        strip.paste(image.crop((0, top, image.width, bottom)), (left, 0))
        wide = strip.resize((side, bottom - top), resample)
        narrow.paste(wide.crop((begin, 0, end, bottom - top)), (0, top))
    square = Image.new("RGB", (side, side), border)
    for first, last in _strips(end - begin, max(longer, side)):
        strip = Image.new("RGB", (last - first, longer), border)
        strip.paste(narrow.crop((first, 0, last, image.height)), (0, upper))
        square.paste(strip.resize((last - first, side), resample), (begin + first, 0))
    return square


def cut(image: Image.Image, rows: int, columns: int) -> list[Image.Image]:
    """Cut a picture into rows · columns equal crops, row after row. Its sides must divide evenly."""
    width, height = image.width // columns, image.height // rows
    assert (width * columns, height * rows) == image.size, (image.size, rows, columns)
    return [
        image.crop((column * width, row * height, (column + 1) * width, (row + 1) * height))
        for row in range(rows)
        for column in range(columns)
    ]


def _wider(image: Image.Image, width: int, resample: int, left: int, right: int) -> Image.Image:
    """Columns `left` to `right` of a picture at another width."""
    if (left, right, image.width) == (0, width, width):
        return image
    _check(image, right - left, image.height)
    tile = Image.new("RGB", (right - left, image.height))
    for top, bottom in _strips(image.height, max(image.width, width)):
        strip = image.crop((0, top, image.width, bottom)).resize((width, bottom - top), resample)
        tile.paste(strip.crop((left, 0, right, bottom - top)), (0, top))
    return tile


def _higher(image: Image.Image, height: int, resample: int, upper: int, lower: int) -> Image.Image:
    """Rows `upper` to `lower` of a picture at another height."""
    if (upper, lower, image.height) == (0, height, height):
        return image
    _check(image, image.width, lower - upper)
    tile = Image.new("RGB", (image.width, lower - upper))
    for begin, end in _strips(image.width, max(image.height, height)):
        strip = image.crop((begin, 0, end, image.height)).resize((end - begin, height), resample)
        tile.paste(strip.crop((0, upper, end - begin, lower)), (begin, 0))
    return tile


def _strips(count: int, length: int) -> Iterator[tuple[int, int]]:
    """Rows or columns from 0 to `count`, `length` pixels long each, so many at a time as `STRIP_BYTES` hold."""
    step = max(1, STRIP_BYTES // (3 * length))
    return ((begin, min(begin + step, count)) for begin in range(0, count, step))


def _reached(offset: int, width: int, longer: int, side: int) -> tuple[int, int]:
    """The columns of a square at `side` that a picture may reach by a filter of Pillow; its own begin at `offset`."""
    scale = longer / side
    support = 3 * max(scale, 1.0)  # of Lanczos, the widest
    begin = int((offset - support) / scale) - 2
    end = int((offset + width + support) / scale) + 3
    return max(0, begin), min(side, end)


def _check(image: Image.Image, width: int, height: int) -> None:
    longest = max(width * height, image.width, image.height)
    if 3 * longest > PICTURE_BYTES:
        raise RequestError(
            f"a picture of {image.width} × {image.height} pixels is too long and narrow: resizing it takes more than "
            f"{PICTURE_BYTES >> 20} MiB; cut it into parts"
        )
