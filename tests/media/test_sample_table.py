"""Packets by an MP4's own table are those of demuxing it, or the table is not used."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
from media_samples import VIDEOS, number_of, write_video

from longview.errors import MediaError
from longview.media.decoders import sample_table
from longview.media.decoders.sample_table import read_sample_table
from longview.media.decoders.track import Track
from longview.media.decoders.video import VideoReader
from longview.media.decoders.video_index import demux_packets
from longview.requests import Limits

TRUSTED = {name for name in VIDEOS if name.endswith((".mp4", ".mov"))} - {"fragmented.mp4"}


@pytest.fixture(autouse=True)
def _of_short_videos(monkeypatch):
    monkeypatch.setattr(sample_table, "MIN_PACKETS", 1)


def open_track(source: Path | bytes) -> Track:
    return Track(source, "video", Limits(), time.monotonic() + 60)


def packets_both_ways(source: Path | bytes):
    by_table = read_sample_table(open_track(source))
    return by_table, None if by_table is None else demux_packets(open_track(source))


@pytest.mark.parametrize("name", sorted(VIDEOS))
def test_a_trusted_table_says_what_demuxing_says(videos, name):
    by_table, demuxed = packets_both_ways(videos[name])
    assert (by_table is not None) == (name in TRUSTED)
    if by_table is not None:
        for array in ("pts", "keys", "hidden"):
            np.testing.assert_array_equal(getattr(by_table, array), getattr(demuxed, array))
        assert by_table.end == demuxed.end


@pytest.mark.parametrize("name", sorted(TRUSTED))
def test_frames_are_found_by_the_table(videos, name):
    with VideoReader(videos[name]) as reader:
        wanted = [0, 1, 30, reader.num_frames - 1]
        assert [number_of(frame.image) for frame in reader.read(wanted)] == wanted


@pytest.mark.parametrize("name", ["constant.mp4", "film.mov", "variable.mp4"])
def test_damaged_tables_are_not_trusted_or_say_what_demuxing_says(videos, name):
    data = bytearray(videos[name].read_bytes())
    header = data.index(b"moov")
    dice, num_trusted = random.Random(1), 0
    for _ in range(150):
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(header + 4, len(data))] = dice.randrange(256)
        try:
            by_table, demuxed = packets_both_ways(bytes(damaged))
        except MediaError:
            continue
        if by_table is not None:
            num_trusted += 1
            for array in ("pts", "keys", "hidden"):
                np.testing.assert_array_equal(getattr(by_table, array), getattr(demuxed, array))
    assert num_trusted > 10


@pytest.mark.parametrize("field", ["dts", "pos", "size", "is_keyframe", "pts"])
def test_a_table_that_differs_from_the_packets_is_not_used(videos, monkeypatch, field):
    track = open_track(videos["constant.mp4"])
    entries = track.index_entries()
    delays = track.composition[0]
    if field == "pts":  # of the last packet alone: a run of its own
        track.composition = [delays[:-8] + (1).to_bytes(4, "big") + (99_999).to_bytes(4, "big")]
        assert int.from_bytes(delays[-8:-4], "big") == 1
    else:
        entries[-1, ["dts", "pos", "size", "is_keyframe"].index(field)] += 1
        monkeypatch.setattr(track, "index_entries", lambda: entries)
    assert read_sample_table(track) is None
    assert len(demux_packets(track).pts) == 60, "the track is at its beginning"


def test_a_long_video_is_opened_without_demuxing_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_table, "MIN_PACKETS", 2000)
    path = write_video(tmp_path / "long.mp4", frames=2400, gop=40, options={"preset": "ultrafast", "crf": "51"})
    demuxed = 0
    packets = Track.packets

    def counted(self):
        nonlocal demuxed
        for packet in packets(self):
            demuxed += 1
            yield packet

    monkeypatch.setattr(Track, "packets", counted)
    with VideoReader(path) as reader:
        assert (reader.num_frames, reader.duration) == (2400, 100)
        assert demuxed < 200
        assert number_of(next(reader.read([1999])).image) == 1999
