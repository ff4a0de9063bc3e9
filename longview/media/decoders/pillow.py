"""Pictures: encoded bytes → upright RGB images, by Pillow."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from longview.errors import MediaError
from longview.media.decoders.headers import SCANNED, PictureHeader, read_directory, read_header
from longview.media.errors import decoder_errors, over_limit
from longview.media.formats import SUPPORTED, container_of, foreign_format_of, image_format_of
from longview.requests import Limits

# Every picture is checked against `Limits.max_pixels` before its pixels are decoded; Pillow's own limit, which may be
# lower, must not come first. Its warnings about odd metadata would end up in what the command line prints.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

ORIENTATION = 0x0112  # the Exif tag
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of the orientation tag."""


def check_size(width: int, height: int, name: str, limits: Limits) -> None:
    """Refuse a picture that is too large, too small or too thin, before its pixels are decoded."""
    sides = f"is {width:,}×{height:,} pixels"
    if min(width, height) < limits.min_side:
        raise MediaError(f"{name} {sides}; each side needs at least {limits.min_side} (--min-side, Limits(min_side=…))")
    if width * height > limits.max_pixels:
        raise over_limit(name, f"{sides}, {width * height:,} in all", limits, "max_pixels")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise over_limit(
            name, f"{sides}, a side ratio of {max(width, height) / min(width, height):,.7g}", limits, "max_aspect"
        )


def read_picture(data: bytes, name: str, limits: Limits) -> tuple[Image.Image, list[str]]:
    """Decode one picture, upright and RGB, at its full size; alpha is dropped. Of an animation, the first frame.

    Returns the picture and the warnings to show, each of which names the file itself.

    Raises:
        MediaError: not a picture of a supported format, truncated, damaged, or over a limit.
    """
    image, header = open_image(data, name, limits)
    found = []
    if is_animation(image, header):
        found.append(f"{name} is animated; only its first frame is used (give it as a video to see all of them)")
    elif image.format == "TIFF" and getattr(image, "is_animated", False):
        found.append(f"{name} has several pages; only the first is used (save the others as pictures of their own)")
    return to_upright(load_image(image, name), name), found


def open_image(data: bytes, name: str, limits: Limits) -> tuple[Image.Image, PictureHeader]:
    """Open a picture without decoding it, and check its size and structure against the limits."""
    head = data[:64]
    if not data:
        raise MediaError(f"{name} is empty (0 bytes); save or download it again")
    form = image_format_of(head)
    if form is None:
        found = "a video" if container_of(head) else foreign_format_of(head)
        raise MediaError(f"{name} is {found}, given as a picture; expected {SUPPORTED}, each as what it is")
    header = read_header(data, form, name)
    if header.width and header.height:  # Pillow fills the first frame of a GIF, and the canvas of a WebP, on opening
        check_size(header.width, header.height, name, limits)
    with decoder_errors(name):
        image = Image.open(io.BytesIO(data), formats=[form])
    check_size(*image.size, name, limits)
    if header.scans * image.width * image.height > SCANNED * limits.max_pixels:
        found = (
            f"has {header.scans:,.0f} scans of {image.width:,}×{image.height:,} pixels, more than any program writes"
        )
        raise MediaError(f"{name} {found}; save it again, not as a progressive JPEG")
    return image, header


def load_image(image: Image.Image, name: str) -> Image.Image:
    """Decode the pixels of an opened picture."""
    with decoder_errors(name):
        image.load()
    return image


def is_animation(image: Image.Image, header: PictureHeader) -> bool:
    """Whether the frames of a file are shown in turn: not the pages of a TIFF, nor the two views of a stereo JPEG."""
    if image.format == "GIF":  # Pillow would seek, and so decode; and raise where the second frame is cut off
        return len(header.seconds) > 1
    return image.format in ("WEBP", "PNG") and bool(getattr(image, "is_animated", False))


def to_upright(image: Image.Image, name: str, copy: bool = False) -> Image.Image:
    """Rotate a decoded picture by its Exif orientation, and convert it to RGB.

    Args:
        copy: Never return the image itself, which the next frame of an animation would be painted over.
    """
    transposition = TRANSPOSITIONS.get(orientation_of(image))
    upright = to_rgb(image, name)
    with decoder_errors(name):
        if transposition is not None:
            return upright.transpose(transposition)
        return upright.copy() if copy and upright is image else upright


def orientation_of(image: Image.Image) -> int:
    """The Exif orientation, 1 … 8; 1 where there is none, or where the Exif block is damaged."""
    exif = image.info.get("exif")
    try:
        if isinstance(exif, bytes) and read_directory(exif.removeprefix(b"Exif\0\0")) is None:
            return 1
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - Pillow raises many sorts for a damaged block, and the picture is whole without it
        return 1


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB: 16 bits are scaled, not clipped; alpha is dropped, not blended."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise MediaError(f"{name} holds floating-point pixels, whose range is unknown; convert it to 8 or 16 bits")
    with decoder_errors(name, f"has the colour mode {image.mode}, which is not supported; convert it to RGB"):
        if image.mode.startswith("I"):
            pixels = np.asarray(image).astype(np.int64)
            if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
                raise MediaError(f"{name} holds 32-bit pixels, whose range is unknown; convert it to 8 or 16 bits")
            image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
        return image.convert("RGB")
