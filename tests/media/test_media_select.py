"""Which frames are kept: against the official arithmetic, and for every length."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longview.media import select
from longview.media.select import SAMPLERS, Timeline
from longview.requests import FRAME_SAMPLERS

lengths = st.integers(1, 200_000)
counts = st.integers(1, 600)
rates = st.floats(0.01, 240)

# (frames in the video, frames kept, indices): recomputed by hand from the formulas in the authors' repositories
OVIS2_README = [
    (1, 8, [0]),
    (5, 12, [0, 1, 2, 3, 4]),
    (12, 8, [0, 2, 3, 5, 6, 8, 9, 11]),
    (13, 8, [0, 2, 4, 5, 7, 8, 10, 12]),
    (13, 12, [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]),
    (37, 8, [2, 6, 11, 16, 20, 25, 30, 34]),
    (37, 12, [1, 4, 7, 10, 13, 16, 20, 23, 26, 29, 32, 35]),
    (100, 8, [6, 18, 31, 43, 56, 68, 81, 93]),
    (100, 12, [4, 12, 20, 29, 37, 45, 54, 62, 70, 79, 87, 95]),
    (301, 8, [18, 56, 94, 131, 169, 206, 244, 282]),
    (301, 12, [12, 37, 62, 87, 112, 137, 163, 188, 213, 238, 263, 288]),
]

# (frames in the video, fewest, most, indices)
OVIS2_TRAINING = [
    (1, 4, 16, [0, 0, 0, 0]),
    (3, 10, 10, [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]),
    (3, 4, 16, [0, 1, 2, 2]),
    (10, 10, 10, list(range(10))),
    (17, 10, 10, [1, 2, 4, 6, 7, 9, 11, 13, 14, 16]),
    (17, 4, 16, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16]),
    (37, 10, 10, [2, 5, 9, 13, 16, 20, 24, 28, 31, 35]),
    (37, 4, 16, [1, 3, 6, 8, 10, 13, 15, 17, 19, 22, 24, 26, 29, 31, 33, 36]),
    (100, 4, 16, [3, 9, 15, 22, 28, 34, 41, 47, 53, 59, 65, 72, 78, 84, 91, 97]),
    (301, 10, 10, [15, 45, 75, 105, 135, 165, 196, 226, 256, 286]),
    (301, 4, 16, [9, 28, 47, 65, 84, 103, 122, 141, 159, 178, 197, 216, 235, 254, 272, 291]),
]


@pytest.mark.parametrize(("total", "count", "expected"), OVIS2_README)
def test_ovis2_readme_keeps_the_official_frames(total, count, expected):
    assert select.ovis2(total, count) == expected


@pytest.mark.parametrize(("total", "fewest", "most", "expected"), OVIS2_TRAINING)
def test_ovis2_training_keeps_the_official_frames(total, fewest, most, expected):
    assert select.ovis2_bounded(total, fewest, most) == expected


def owl3_as_published(total: int, average_fps: float, most: int) -> list[int]:
    step = round(average_fps / 1)
    kept = [i for i in range(0, total, step)]  # noqa: C416 - the published line
    if len(kept) > most:
        gap = len(kept) / most
        kept = [kept[int(i * gap + gap / 2)] for i in range(most)]
    return kept


@given(lengths, st.floats(0.51, 240), counts)
def test_owl3_keeps_what_its_readme_keeps(total, rate, most):
    assert select.owl3(total, rate, most) == owl3_as_published(total, rate, most)


def test_owl3_survives_less_than_half_a_frame_a_second():
    assert select.owl3(100, 0.2) == select.uniform(100, 16)
    assert select.owl3(10, 0.2) == list(range(10))


def test_owl3_middle_takes_the_middle_of_each_interval_and_repeats_the_last():
    assert select.owl3_middle(100, 4) == [12, 37, 62, 87]
    assert select.owl3_middle(10, 4) == [0, 3, 5, 8]
    assert select.owl3_middle(3, 8) == [0, 1, 2, 2, 2, 2, 2, 2]


def test_uniform_takes_the_middles_of_equal_spans():
    assert select.uniform(100, 4) == [12, 37, 62, 87]
    assert select.uniform(3, 8) == [0, 1, 2]


@given(lengths, counts, rates, st.sampled_from(sorted(SAMPLERS)))
def test_every_sampler_stays_inside_the_video_ascends_and_keeps_its_promise(total, count, rate, name):
    timeline = Timeline(total, None, rate)
    picked = SAMPLERS[name](timeline, count, 1.0)
    assert picked
    assert picked == sorted(picked)
    assert 0 <= picked[0] <= picked[-1] < total
    assert len(picked) <= count
    if name not in ("owl3-middle", "ovis2-server"):
        assert len(set(picked)) == len(picked)
    else:
        assert len(picked) == count


@given(lengths, counts)
def test_uniform_leaves_no_gap_larger_than_a_span(total, count):
    picked = select.uniform(total, count)
    assert len(picked) == min(total, count)
    span = -(-total // len(picked))
    assert max((b - a for a, b in pairwise(picked)), default=0) <= span


gaps = st.lists(st.floats(0.001, 5), min_size=0, max_size=60)


@given(gaps, st.floats(0.1, 30))
def test_a_rate_shows_the_frame_on_the_screen_at_each_tick(gaps, rate):
    seconds = [0.0]
    for gap in gaps:
        seconds.append(seconds[-1] + gap)
    picked = select.by_rate(seconds, rate)
    assert picked[0] == 0
    assert picked == sorted(set(picked))
    on_screen = set()
    for tick in range(int(seconds[-1] * rate + 1e-6) + 1):
        moment = tick / rate + 1e-6
        on_screen.add(max(i for i, second in enumerate(seconds) if second <= moment))
    assert picked == sorted(on_screen)


def test_a_rate_goes_by_time_when_the_frame_rate_varies():
    still_then_busy = [0.0, 10.0, 10.1, 10.2, 10.3, 11.0, 12.0]
    assert select.by_rate(still_then_busy, 1.0) == [0, 1, 5, 6]


def test_a_constant_rate_is_hit_exactly():
    seconds = [i / 24 for i in range(240)]
    assert select.by_rate(seconds, 1.0, end=10.0) == list(range(0, 240, 24))
    assert select.by_rate(seconds, 24.0, end=10.0) == list(range(240))
    assert select.by_rate(seconds, 0.5, end=10.0) == list(range(0, 240, 48))


def test_a_rate_above_the_videos_own_keeps_every_frame_once():
    assert select.by_rate([i / 24 for i in range(240)], 100.0, end=10.0) == list(range(240))


def by_listing_every_tick(seconds: list[float], rate: float, end: float | None) -> list[int]:
    times = np.asarray(seconds)
    last = int((times[-1] - times[0]) * rate + 1e-6)
    if end is not None:
        last = max(last, math.ceil((end - times[0]) * rate - 1e-6) - 1)
    ticks = np.arange(last + 1) / rate + times[0]
    return np.unique(np.searchsorted(times, ticks + 1e-6, side="right") - 1).tolist()


@given(
    st.floats(0, 1000),
    st.lists(st.one_of(st.floats(0, 5), st.sampled_from([0.0, 1e-6, 0.04, 0.5, 1.0, 1 / 3])), max_size=60),
    st.one_of(st.floats(0.01, 300), st.sampled_from([0.5, 1.0, 3.0, 24.0, 25.0, 30000 / 1001])),
    st.one_of(st.none(), st.floats(0, 3)),
)
def test_a_rate_keeps_the_frames_that_listing_every_tick_keeps(start, gaps, rate, rest):
    seconds = [start]
    for gap in gaps:
        seconds.append(seconds[-1] + gap)
    end = None if rest is None else seconds[-1] + rest
    assert select.by_rate(seconds, rate, end) == by_listing_every_tick(seconds, rate, end)


@pytest.mark.parametrize(
    ("seconds", "rate", "end"),
    [
        ([0.0, 1.0, 1e9], 1.0, None),
        ([0.0, 1.0, 1e9], 1.0, 2e9),
        ([0.0, 1.0, 1e9], 1e9, 2e9),
        ([0.0, 1.0, 1e9], 1e300, 2e9),
        ([0.0, 0.04, 0.08], 1e300, None),
        ([0.0, 0.04, 0.08], 1e9, 0.12),
    ],
)
def test_no_rate_and_no_span_of_time_costs_more_than_the_frames(seconds, rate, end):
    started = time.monotonic()
    assert select.by_rate(seconds, rate, end) == [0, 1, 2]
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", [name for name, sampler in FRAME_SAMPLERS.items() if sampler.by_time])
def test_rates_at_the_ends_of_what_a_number_can_say_are_answered(name):
    timeline = Timeline(100, [i / 25 for i in range(100)], 25.0, 4.0)
    assert SAMPLERS[name](timeline, 512, 5e-324) == [0]
    assert SAMPLERS[name](timeline, 512, 1e308) == list(range(100))


@given(gaps, st.floats(0, 100), st.floats(0.01, 100))
def test_a_clip_holds_the_frames_on_the_screen_during_it(gaps, start, length):
    seconds = [0.0]
    for gap in gaps:
        seconds.append(seconds[-1] + gap)
    clip = Timeline(len(seconds), seconds).clip(start, start + length)
    ends = [*seconds[1:], float("inf")]
    expected = [i for i in range(len(seconds)) if ends[i] > start and seconds[i] < start + length]
    assert list(clip) == expected
    assert clip
