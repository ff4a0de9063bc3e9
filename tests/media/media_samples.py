"""Small media made on the spot: videos whose frames carry their number, and pictures in every format."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from longview.errors import LongviewError

WIDTH, HEIGHT, BITS = 320, 176, 20

B_FRAMES = {"bf": "3"}
LONG_GOP = {"bf": "3", "x264-params": "scenecut=0"}
OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0"}
VARIABLE = list(accumulate(20 + (37 * i * i) % 400 for i in range(60)))

VIDEOS: dict[str, dict[str, Any]] = {
    "constant.mp4": {"options": B_FRAMES},
    "long-group.mp4": {"options": LONG_GOP, "frames": 300, "gop": 250},
    "all-key.mp4": {"gop": 1},
    "pairs.mp4": {"gop": 2, "options": B_FRAMES},
    "variable.mp4": {"options": B_FRAMES, "milliseconds": VARIABLE},
    "late-start.mp4": {"options": B_FRAMES, "milliseconds": [10_000 + 40 * i for i in range(60)]},
    "fragmented.mp4": {"options": B_FRAMES, "muxer_options": {"movflags": "frag_keyframe+empty_moov"}},
    "index-first.mp4": {"options": B_FRAMES, "muxer_options": {"movflags": "faststart"}},
    "film.mov": {"options": B_FRAMES},
    "ten-bit.mp4": {"options": B_FRAMES, "pixel_format": "yuv420p10le"},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3:keyint=20"}},
    "group.mkv": {"options": B_FRAMES},
    "open-group.mkv": {"options": OPEN_GOP},
    "variable.mkv": {"options": B_FRAMES, "milliseconds": VARIABLE},
    "no-index.mkv": {"options": B_FRAMES, "frames": 300, "muxer_options": {"live": "1"}},
    "vp8.webm": {"codec": "libvpx"},
    "vp8-hidden.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4-reordered.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "h264.avi": {"options": B_FRAMES},
    "motion-jpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
}
TURNS = {"turned-90.mp4": 90, "turned-180.mp4": 180, "turned-270.mp4": 270}


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame that carries its number as a row of white and grey blocks: (height, width, 3)."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            pixels[8:40, bit * 16 : bit * 16 + 16] = 255
    return pixels


def number_of(image: Image.Image) -> int:
    """Read the number back."""
    pixels = np.asarray(image)
    return sum(int(pixels[24, bit * 16 + 8].mean() > 128) << bit for bit in range(BITS))


def write_video(
    path: Path,
    codec: str = "libx264",
    frames: int = 60,
    gop: int = 30,
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    milliseconds: Sequence[int] | None = None,
    rate: int = 24,
    pixel_format: str = "yuv420p",
    sizes: Sequence[tuple[int, int]] = (),
) -> Path:
    """Encode numbered frames; `milliseconds` gives each its own time."""
    with av.open(str(path), "w", options=muxer_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixel_format
        stream.codec_context.gop_size = gop
        if milliseconds is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts = number if milliseconds is None else milliseconds[number]
            frame.time_base = Fraction(1, rate) if milliseconds is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def rotated(data: bytes, degrees: int) -> bytes:
    """Set the display matrix in an MP4's track header: turn by `degrees` counter-clockwise when shown."""
    one = 1 << 16
    matrix = {90: (0, -one, one, 0), 180: (-one, 0, 0, -one), 270: (0, one, -one, 0)}[degrees]
    a, b, c, d = matrix
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack(">9i", data[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def sequential(path: Path | bytes) -> list[Image.Image]:
    """Every frame of a video, by plain decoding from end to end."""
    with av.open(io.BytesIO(path) if isinstance(path, bytes) else str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def one_clear_line(error: LongviewError) -> str:
    """Check the manners of an error message, and return it."""
    message = str(error)
    assert message
    assert message.isprintable(), f"more than one line, or control characters: {message!r}"
    assert len(message) < 400, message
    assert not re.search(r"0x[0-9a-f]{6,}|<[a-zA-Z_.]+ object|Traceback|BytesIO", message), message
    return message
