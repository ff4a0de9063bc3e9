"""Pictures and videos that are in memory already: open files become their bytes, arrays of pixels become pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import RequestError
from longview.wording import with_article

CHANNELS = (1, 3, 4)
"""Grey, RGB, and RGB with alpha, which is dropped."""


def held(source: Any, kind: str) -> Any:
    """What a message part keeps of its source: later changes of an array, or of a file's position, do not reach it.

    Args:
        source: An open binary file, which is read to its end; an array, uint8: (H, W, C) or (H, W) of a picture,
            (T, H, W, C) of a video; a list of such for a video. Anything else is returned as it is.
        kind: "image" or "video".

    Raises:
        RequestError: a file that cannot be read, or an array of another dtype or shape.
    """
    if isinstance(source, (str, bytes, Path, Image.Image)):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if callable(getattr(source, "read", None)):
        return _contents(source, kind)
    if hasattr(source, "__array__"):
        array = _pixels(source)
        return _picture(array) if kind == "image" else _frames(array)
    if kind == "video" and isinstance(source, Sequence):
        frames = [held(frame, "image") for frame in source]
        return source if all(own is given for own, given in zip(frames, source, strict=True)) else frames
    return source


def _contents(file: Any, kind: str) -> bytes:
    what = f"the open file given as {with_article(kind)}"
    if isinstance(file, io.TextIOBase):
        raise RequestError(f"{what} is read as text; open it with 'rb'")
    try:
        data = file.read()
    except (OSError, ValueError) as error:  # not for reading, or closed
        raise RequestError(f"{what} cannot be read ({error}); open it again, with 'rb'") from None
    if not isinstance(data, (bytes, bytearray)):
        raise RequestError(f"{what} gives {type(data).__name__} instead of bytes; open it with 'rb'")
    if not data:
        raise RequestError(f"{what} holds nothing behind its position; rewind it before, with seek(0)")
    return bytes(data)


def _pixels(source: Any) -> Any:
    import numpy as np

    kind = type(source).__name__
    try:
        array = np.asarray(source)
    except Exception as error:  # noqa: BLE001 - the array is of any library; one on a device raises many sorts
        raise RequestError(f"the {kind} cannot be read as an array ({error}); move it to the CPU") from None
    if array.dtype != np.uint8:
        raise RequestError(
            f"an array of pixels is uint8, and this one is {array.dtype}; scale it to 0 … 255 and convert it, with "
            "array.astype('uint8')"
        )
    if 0 in array.shape:
        raise RequestError(f"an array of shape {array.shape} holds no pixels; give at least one of each axis")
    return array


def _picture(array: Any) -> Image.Image:
    """An array (H, W) or (H, W, C) as a picture, which is a copy of it."""
    shape = array.shape
    if len(shape) == 3 and shape[2] in CHANNELS:
        return Image.fromarray(array[:, :, 0] if shape[2] == 1 else array)
    if len(shape) == 2:
        return Image.fromarray(array)
    expected = f"an array of one picture is (H, W, C), with 1, 3 or 4 channels, and this one is {shape}"
    if len(shape) == 3 and shape[0] in CHANNELS:
        raise RequestError(f"{expected}; move the channels to the end, with array.transpose(1, 2, 0)")
    if len(shape) == 4:
        raise RequestError(f"{expected}; give the pictures one by one, or longview.video(array)")
    raise RequestError(f"{expected}; reshape it")


def _frames(array: Any) -> list[Image.Image]:
    """An array (T, H, W, C) as the frames of a video."""
    shape = array.shape
    if len(shape) == 4 and shape[3] in CHANNELS:
        return [_picture(frame) for frame in array]
    expected = f"an array of a video is (T, H, W, C), with 1, 3 or 4 channels, and this one is {shape}"
    if len(shape) == 4 and shape[1] in CHANNELS:
        raise RequestError(f"{expected}; move the channels to the end, with array.transpose(0, 2, 3, 1)")
    if len(shape) == 3:
        raise RequestError(f"{expected}; add an axis, with array[None] or array[..., None]")
    raise RequestError(f"{expected}; reshape it")
