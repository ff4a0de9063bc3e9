"""The calls of the `moviepy` package that published programs make, implemented with our own reader.

`from longview.media.moviepy import VideoFileClip` in place of moviepy's, of which they need an old version.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np

from longview.media.decoders.video import VideoReader


class VideoFileClip:
    """A video whose frame at any time is decoded on demand."""

    def __init__(self, filename: str | Path) -> None:
        self._reader = VideoReader(Path(filename))
        self.fps = self._reader.fps
        self.duration = self._reader.duration

    def __enter__(self) -> VideoFileClip:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def get_frame(self, t: float) -> np.ndarray:
        """The frame on the screen after `t` seconds, as uint8 (height, width, 3)."""
        tolerance = 1e-5  # seconds: a time that rounding puts just before its frame must still show that frame
        index = max(0, bisect_right(self._reader.seconds, t + tolerance) - 1)
        (frame,) = self._reader.read([index])
        return np.asarray(frame.image)
