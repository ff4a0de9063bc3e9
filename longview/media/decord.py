"""The calls of the `decord` package that published programs make, implemented with our own reader.

`from longview.media.decord import VideoReader, cpu` in place of decord's, which is no longer maintained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longview.media.decoders.video import VideoReader as _Reader


def cpu(index: int = 0) -> None:
    """decord's name of the device that decodes; there is only this one."""


class _Batch:
    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def asnumpy(self) -> np.ndarray:
        return self._frames


class VideoReader:
    """A video as a sequence of frames, decoded on demand."""

    def __init__(self, path: str | Path, ctx: Any = None, num_threads: int = 0) -> None:
        self._reader = _Reader(Path(path))

    def __len__(self) -> int:
        return self._reader.num_frames

    def get_avg_fps(self) -> float:
        """Frames a second on average; 0.0 where it is unknown."""
        return self._reader.fps or 0.0

    def get_batch(self, indices: Sequence[int]) -> _Batch:
        """The frames of the given ascending indices; `.asnumpy()` gives them as uint8 (n, height, width, 3)."""
        return _Batch(np.stack([np.asarray(frame.image) for frame in self._reader.read(list(indices))]))
