"""Pictures: bytes → upright RGB. Also pictures that move (GIF, WebP, PNG), read like a video.

Pillow's own error texts are never passed on: they differ between versions and have leaked memory addresses.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from PIL import Image

from longview.errors import MediaError
from longview.media.formats import READS, blocks_of, container_of, foreign_format_of, image_format_of
from longview.media.limits import beyond, size
from longview.media.medium import Frame, FrameTransform, Progress
from longview.requests import Limits

# Every picture is held against `Limits.max_pixels` before its pixels are decoded; Pillow's own cap, which is lower than
# that limit may be set, must not come first. Its remarks on odd metadata would break into what the command line prints.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    """Refuse a picture that is too large, too small or too thin, before its pixels are decoded."""
    sides = f"is {width:,}×{height:,} pixels"
    if min(width, height) < limits.min_side:
        raise MediaError(f"{name} {sides}; each side needs at least {limits.min_side} (--min-side, Limits(min_side=…))")
    if width * height > limits.max_pixels:
        raise beyond(name, f"{sides}, {width * height:,} in all", limits, "max_pixels")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise beyond(
            name, f"{sides}, a side ratio of {max(width, height) / min(width, height):,.7g}", limits, "max_aspect"
        )


def read_picture(data: bytes, name: str, limits: Limits) -> tuple[Image.Image, list[str]]:
    """Decode one picture, upright and RGB, at its full size; alpha is dropped. Of a moving one, the first frame.

    Returns the picture and the warnings to show, each of which names the file itself.

    Raises:
        MediaError: not a picture that is read, truncated, damaged, or over a limit.
    """
    image = _open(data, name, limits)
    remarks = []
    if _moves(image):
        remarks.append(f"{name} moves; only its first frame is used as a picture (give it as a video to see them all)")
    elif image.format == "TIFF" and getattr(image, "is_animated", False):
        remarks.append(f"{name} has several pages; only the first is used (save the others as pictures of their own)")
    return to_upright(_load(image, name), name), remarks


def to_upright(image: Image.Image, name: str) -> Image.Image:
    """Turn a decoded picture upright by its EXIF orientation, and make it RGB."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block raises nearly anything, and says nothing about the pixels
        turn = None
    image = to_rgb(image, name)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB: 16 bits are scaled, not clipped; alpha is dropped, not blended."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise MediaError(f"{name} holds floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise MediaError(f"{name} holds 32-bit pixels, whose range is unknown; convert it to 8 or 16 bits")
        image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    try:
        return image.convert("RGB")
    except ValueError:
        raise MediaError(f"{name} has the colour mode {image.mode}, which is not read; convert it to RGB") from None


def _moves(image: Image.Image) -> bool:
    """Whether the frames of a file play: not the pages of a TIFF, nor the two views of a stereo JPEG."""
    return image.format in ("GIF", "WEBP", "PNG") and bool(getattr(image, "is_animated", False))


def is_animated(data: bytes) -> bool:
    """Whether a picture file holds several frames that play."""
    if image_format_of(data[:64]) == "GIF":  # Pillow would allocate its first frame, whatever size it claims
        return len(blocks_of(data, "GIF").seconds) > 1
    try:
        with _identify(data) as image:
            return _moves(image)
    except Exception:  # damaged: the reader will say how
        return False


class AnimationReader:
    """A GIF, WebP or PNG that moves, or one still picture, read like a `VideoReader`.

    Raises:
        MediaError: truncated, damaged, over a limit, or past the decoding deadline.
    """

    def __init__(self, data: bytes, name: str, limits: Limits) -> None:
        self.name = name
        self.warnings: list[str] = []
        self._limits = limits
        self._data = data
        self._deadline = time.monotonic() + limits.decode_seconds
        self._was_read = False
        image = _open(data, name, limits)
        stored = [0.0]
        if _moves(image):
            blocks = blocks_of(data, image_format_of(data[:64]))
            if not (blocks.complete and blocks.seconds):
                raise _damaged(name)
            stored = blocks.seconds
        self.width, self.height = to_upright(_load(image, name), name).size
        *self.seconds, self.duration = accumulate((lasts or 0.1 for lasts in stored), initial=0.0)  # as browsers do
        self.num_frames = len(stored)
        self.fps = self.num_frames / self.duration
        if self.num_frames == 1:
            self.warnings.append(f"{name} is a still picture, used as a video of one frame")

    def read(
        self, indices: Sequence[int], progress: Progress | None = None, transform: FrameTransform | None = None
    ) -> Iterator[Frame]:
        """Yield exactly the frames asked for; `indices` ascends and may repeat.

        Each frame builds on those before it, so all up to the last one are decoded, and counted as such.
        """
        if not len(indices):
            return
        if self._was_read:  # before: what was made of those frames meanwhile took its own time
            self._deadline = time.monotonic() + self._limits.decode_seconds
        self._was_read = True
        decoded = (indices[-1] + 1) * self.width * self.height * 3
        if decoded > self._limits.max_decoded_bytes:
            found = (
                f"needs {indices[-1] + 1:,} frames of {self.width:,}×{self.height:,} pixels decoded in a row, "
                f"{size(decoded)}, to show those asked for"
            )
            raise beyond(self.name, found, self._limits, "max_decoded_bytes")
        done = 0
        for index, image in enumerate(self._frames()):
            if index != indices[done]:
                continue
            upright = to_upright(image.copy(), self.name)
            begin = time.monotonic()
            while done < len(indices) and indices[done] == index:
                yield Frame(transform(upright) if transform else upright, index, self.seconds[index])
                done += 1
            self._deadline += time.monotonic() - begin  # the time that the caller takes is not decoding
            if progress:
                progress(done, len(indices), self.name)
            if done == len(indices):
                return
        if done < len(indices):
            raise _damaged(self.name)

    def close(self) -> None:
        """Nothing is open."""

    def _frames(self) -> Iterator[Image.Image]:
        image = _open(self._data, self.name, self._limits)
        while True:
            yield _load(image, self.name)
            if time.monotonic() > self._deadline:
                raise beyond(self.name, "takes too long to decode", self._limits, "decode_seconds")
            if not _moves(image):
                return
            try:
                image.seek(image.tell() + 1)
            except EOFError:
                return
            except Exception:  # as in `_load`
                raise _damaged(self.name) from None
            check_size(*image.size, self.name, self._limits)


def _open(data: bytes, name: str, limits: Limits) -> Image.Image:
    """Open a picture without decoding it, and check what its header says."""
    head = data[:64]
    if not data:
        raise MediaError(f"{name} is empty (0 bytes); save or download it again")
    if image_format_of(head) is None:
        found = "a video" if container_of(head) else foreign_format_of(head)
        raise MediaError(f"{name} is {found}, given as a picture; expected {READS}, each as what it is")
    if image_format_of(head) == "GIF":
        # Pillow already fills the area of the first frame while it opens a GIF.
        blocks = blocks_of(data, "GIF")
        if blocks.width and blocks.height:
            check_size(blocks.width, blocks.height, name, limits)
    try:
        image = _identify(data)
    except Exception:  # as in `_load`
        raise _damaged(name) from None
    check_size(*image.size, name, limits)
    return image


def _identify(data: bytes) -> Image.Image:
    form = image_format_of(data[:64])
    return Image.open(io.BytesIO(data), formats=[form] if form else [])


def _load(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
    except Exception:  # Pillow's decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error, …
        raise _damaged(name) from None
    return image


def _damaged(name: str) -> MediaError:
    return MediaError(f"{name} is truncated or damaged; save or download it again")
