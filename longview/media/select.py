"""Which frames of a video to keep: pure functions from counts and times to indices, no pictures and no files.

Each sampler returns ascending indices, 0 … num_frames - 1. The official ones are kept to the last rounding, because a
model's published scores were measured with exactly these frames. For a sampler that selects by content, the function
here returns its candidates; mdp3.py chooses among them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timeline:
    """What a sampler is given of a video: when each frame appears.

    `seconds` ascends, one entry a frame in presentation order; None when there are no times (a list of pictures).
    `fps` is the average rate; None when unknown. `end` is when the last frame leaves, in the same seconds.
    """

    num_frames: int
    seconds: Sequence[float] | None = None
    fps: float | None = None
    end: float | None = None

    def clip(self, start: float | None, end: float | None) -> range:
        """Return the indices of the frames on the screen at some moment from `start` until just before `end`.

        Needs `seconds`. Empty only when the clip ends before the first frame.
        """
        assert self.seconds is not None
        first = max(0, bisect_right(self.seconds, start or 0.0) - 1)
        last = self.num_frames if end is None else bisect_left(self.seconds, end)
        return range(first, last)

    def slice(self, indices: range) -> Timeline:
        """Return the timeline of a clip alone."""
        assert self.seconds is not None
        end = self.seconds[indices.stop] if indices.stop < self.num_frames else self.end
        return Timeline(len(indices), self.seconds[indices.start : indices.stop], self.fps, end)


def uniform(num_frames: int, count: int) -> list[int]:
    """The middles of `count` equal spans; all frames when there are no more than `count`."""
    if num_frames <= count:
        return list(range(num_frames))
    return [(2 * i + 1) * num_frames // (2 * count) for i in range(count)]


def by_rate(seconds: Sequence[float], rate: float, end: float | None = None) -> list[int]:
    """The frame on the screen at each tick of `rate` ticks a second, from the first frame on; no frame twice.

    Goes by the times of the frames, so that a variable frame rate is sampled evenly in time. Ticks go on until just
    before `end`, when the last frame leaves; without it, until the last frame appears.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if not len(times):
        return []
    tolerance = 1e-6  # a tick that rounding puts just before its frame must still show that frame
    # Ticks are numbered in floats and never listed: there may be far more of them than frames.
    with np.errstate(over="ignore"):
        last = np.floor((times[-1] - times[0]) * rate + tolerance)
        if end is not None:
            last = max(last, np.ceil((end - times[0]) * rate - tolerance) - 1)
        starts = np.maximum(times - times[0] - tolerance, 0)
        ticks = np.maximum(np.floor(starts * rate) - 2, 0)  # the first tick that shows each frame, or one just before
        for _ in range(5):
            ticks += ticks / rate + times[0] + tolerance < times
        visible = ticks <= last
        # Beyond 2**53 neighbouring ticks are the same float; but two ticks or more never miss a frame.
        visible[:-1] &= (ticks[:-1] < ticks[1:]) | (np.diff(starts) * rate > 2)
    return np.flatnonzero(visible).tolist()


def fps(timeline: Timeline, rate: float, count: int) -> list[int]:
    """`rate` frames a second; thinned out uniformly when that is more than `count`."""
    picked = (
        list(range(timeline.num_frames)) if timeline.seconds is None else by_rate(timeline.seconds, rate, timeline.end)
    )
    return [picked[i] for i in uniform(len(picked), count)]


def owl3(num_frames: int, average_fps: float, count: int = 16, rate: float = 1.0) -> list[int]:
    """mPLUG-Owl3's README: every round(average fps)-th frame, thinned out uniformly to `count`.

    The original stops with a step of 0 below half a frame a second; here every frame is a candidate then.
    """
    step = max(1, round(min(average_fps / rate, num_frames)))
    candidates = range(0, num_frames, step)
    if len(candidates) <= count:
        return list(candidates)
    gap = len(candidates) / count
    return [candidates[int(i * gap + gap / 2)] for i in range(count)]


def owl3_middle(num_frames: int, count: int) -> list[int]:
    """mPLUG-Owl3's evaluation: the middle frame of each interval; the last one repeated up to `count`."""
    spans = min(count, num_frames)
    if spans == 0:
        return []
    bounds = np.linspace(0, num_frames, spans + 1).astype(int)
    middles = ((bounds[:-1] + bounds[1:] - 1) // 2).tolist()
    return middles + [middles[-1]] * (count - spans)


def ovis2(num_frames: int, count: int = 12) -> list[int]:
    """Ovis2's README: the middles of `count` strides; all frames when there are no more than `count`."""
    if num_frames <= count:
        return list(range(num_frames))
    stride = num_frames / count
    # Not `uniform`: the sum of two products rounds differently, and the goldens hold these very floats.
    return [min(num_frames - 1, int((stride * i + stride * (i + 1)) / 2)) for i in range(count)]


def ovis2_bounded(num_frames: int, min_frames: int = 16, max_frames: int = 16) -> list[int]:
    """Ovis2's trainer and server: at least `min_frames`, repeating some of a short video, and at most `max_frames`."""
    if num_frames == 0:
        return []
    if min_frames <= num_frames <= max_frames:
        return list(range(num_frames))
    count = min_frames if num_frames < min_frames else max_frames
    stride = num_frames / count
    # np.round and round agree here: both send halves to the even neighbour.
    return [min(num_frames - 1, (round(stride * i) + round(stride * (i + 1))) // 2) for i in range(count)]


def _owl3(timeline: Timeline, count: int, rate: float) -> list[int]:
    if timeline.fps is None:  # a list of pictures, or a still one
        return uniform(timeline.num_frames, count)
    return owl3(timeline.num_frames, timeline.fps, count, rate)


SAMPLERS: dict[str, Callable[[Timeline, int, float], list[int]]] = {
    "uniform": lambda timeline, count, _: uniform(timeline.num_frames, count),
    "fps": lambda timeline, count, rate: fps(timeline, rate, count),
    "owl3": _owl3,
    "owl3-middle": lambda timeline, count, _: owl3_middle(timeline.num_frames, count),
    "ovis2": lambda timeline, count, _: ovis2(timeline.num_frames, count),
    "ovis2-server": lambda timeline, count, _: ovis2_bounded(timeline.num_frames, count, count),
    "mdp3": lambda timeline, count, rate: fps(timeline, rate, count),  # the candidates
}
"""By the names of `longview.requests.FRAME_SAMPLERS`: (timeline, at most this many, frames a second) → indices."""
