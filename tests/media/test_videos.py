"""Exactly the frames asked for, upright, with their times; and one clear line for what cannot be read."""

from __future__ import annotations

import gc
import os
import random
import re
import shutil
import struct
import threading
import time

import numpy as np
import pytest
from media_samples import (
    HEIGHT,
    TURNS,
    VARIABLE,
    VIDEOS,
    WIDTH,
    number_of,
    one_clear_line,
    sequential,
    write_sound,
    write_video,
)
from PIL import Image

from longview.errors import MediaError
from longview.media.decoders import track, video
from longview.media.decoders.video import VideoReader
from longview.requests import Limits


def picks(count: int) -> list[list[int]]:
    """Ways to ask for frames: one, neighbours, both ends, every one, some twice, at random."""
    dice = random.Random(count)
    return [
        [0],
        [count - 1],
        [5, 6, 7, count - 2],
        [0, 29, 30, 31, count - 1],
        list(range(count)),
        [10, 10, 40, 40, 40],
        *(sorted(dice.sample(range(count), dice.randint(1, 12))) for _ in range(6)),
    ]


@pytest.mark.parametrize("name", sorted(VIDEOS))
def test_every_way_of_asking_gives_exactly_the_frames_asked_for(videos, name):
    with VideoReader(videos[name]) as reader:
        assert reader.num_frames == VIDEOS[name].get("frames", 60)
        for indices in picks(reader.num_frames):
            frames = list(reader.read(indices))
            assert [frame.index for frame in frames] == indices
            assert [number_of(frame.image) for frame in frames] == indices
            assert [frame.seconds for frame in frames] == [reader.seconds[i] for i in indices]


@pytest.mark.parametrize("name", sorted(VIDEOS))
def test_the_pixels_equal_a_plain_sequential_decode(videos, name):
    expected = sequential(videos[name])
    indices = [0, 7, 31, 32, 58]
    with VideoReader(videos[name]) as reader:
        assert len(expected) == reader.num_frames
        for frame in reader.read(indices):
            assert frame.image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(frame.image), np.asarray(expected[frame.index]))


@pytest.mark.parametrize("name", sorted(VIDEOS))
def test_a_video_in_memory_reads_like_one_on_disk(videos, name):
    with VideoReader(videos[name].read_bytes()) as reader:
        assert [number_of(frame.image) for frame in reader.read([3, 33, 34])] == [3, 33, 34]


@pytest.mark.parametrize("name", ["long-group.mp4", "no-index.mkv", "open-group.mkv", "pairs.mp4", "fragmented.mp4"])
def test_several_threads_read_the_same_frames(videos, name, monkeypatch):
    monkeypatch.setattr(video, "PACKETS_PER_THREAD", 1)
    with VideoReader(videos[name], threads=4) as reader:
        for indices in picks(reader.num_frames):
            assert [number_of(frame.image) for frame in reader.read(indices)] == indices
        assert len(reader._cursors) > 1


@pytest.mark.parametrize("late", [1, 10**9])
def test_a_seek_that_lands_past_the_key_frame_changes_nothing(videos, late, monkeypatch):
    """Some containers land too late; then the reader tries from further back, at last from the beginning."""
    seek = track.Track.seek
    monkeypatch.setattr(track.Track, "seek", lambda self, pts: seek(self, pts + late * 30_720 // 2))
    with VideoReader(videos["pairs.mp4"]) as reader:
        for indices in picks(reader.num_frames):
            assert [number_of(frame.image) for frame in reader.read(indices)] == indices


def test_an_abandoned_read_does_not_affect_the_next(videos):
    with VideoReader(videos["constant.mp4"]) as reader:
        for _ in range(3):
            half = reader.read([4, 9, 44])
            assert number_of(next(half).image) == 4
            assert number_of(next(half).image) == 9
        assert [number_of(frame.image) for frame in reader.read([2, 50])] == [2, 50]


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv"])
def test_variable_times_are_the_times_of_the_frames(videos, name):
    with VideoReader(videos[name]) as reader:
        expected = [(moment - VARIABLE[0]) / 1000 for moment in VARIABLE]
        np.testing.assert_allclose(reader.seconds, expected, atol=0.0011)


def test_seconds_count_from_the_first_frame_also_when_the_file_starts_late(videos):
    with VideoReader(videos["late-start.mp4"]) as reader:
        assert reader.seconds[0] == 0
        assert reader.seconds[25] == pytest.approx(1.0)
        assert reader.duration == pytest.approx(2.4, abs=0.01)


@pytest.mark.parametrize("name", ["constant.mp4", "group.mkv", "vp8.webm", "mpeg4.avi", "h264.avi", "no-index.mkv"])
def test_length_and_rate_are_measured(videos, name):
    with VideoReader(videos[name]) as reader:
        assert reader.fps == 24
        assert reader.duration == pytest.approx(reader.num_frames / 24, abs=0.01)
        assert (reader.width, reader.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("name", "degrees"), sorted(TURNS.items()))
def test_a_turned_video_comes_out_upright(videos, name, degrees):
    with VideoReader(videos["constant.mp4"]) as flat, VideoReader(videos[name]) as reader:
        stored = next(flat.read([21])).image
        upright = next(reader.read([21])).image
    assert upright.size == (reader.width, reader.height) == ((HEIGHT, WIDTH) if degrees != 180 else (WIDTH, HEIGHT))
    # By numpy, not Pillow: quarter turns counter-clockwise.
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(np.asarray(stored), degrees // 90))


def test_few_frames_of_a_long_video_decode_few_frames(videos, tmp_path, monkeypatch):
    long = write_video(tmp_path / "long.mp4", frames=1500, gop=50, options={"preset": "ultrafast", "bf": "2"})
    decoded = []
    decode = track.Track.decode
    monkeypatch.setattr(track.Track, "decode", lambda self, packet: decoded.append(packet) or decode(self, packet))
    with VideoReader(long) as reader:
        decoded.clear()
        assert [number_of(frame.image) for frame in reader.read([10, 700, 1490])] == [10, 700, 1490]
    assert len(decoded) < 3 * 52


def test_a_video_that_is_opened_again_is_not_indexed_again(videos, monkeypatch):
    with VideoReader(videos["late-start.mp4"]) as first:
        monkeypatch.setattr(video, "read_index", lambda _: pytest.fail("its packets are known"))
        with first.reopen() as second:
            same = "width", "height", "num_frames", "seconds", "duration", "fps", "warnings"
            assert all(getattr(first, name) == getattr(second, name) for name in same)
            assert [number_of(frame.image) for frame in second.read([0, 41, 59])] == [0, 41, 59]


@pytest.mark.parametrize("name", ["long-group.mp4", "open-group.mkv", "vp9.webm", "late-start.mp4", "film.mov"])
def test_a_part_is_copied_without_encoding_again(videos, tmp_path, name):
    target = tmp_path / name
    with VideoReader(videos[name]) as reader:
        first, last = reader.num_frames - 20, reader.num_frames - 8
        begin = reader.write_clip(target, reader.seconds[first], reader.seconds[last])
        key = reader.seconds.index(pytest.approx(begin, abs=1e-6))
        with VideoReader(target) as clip:
            numbers = [number_of(frame.image) for frame in clip.read(range(clip.num_frames))]
            times = [frame.seconds for frame in clip.read(range(clip.num_frames))]
    assert key <= first
    assert set(range(first, last)) <= set(numbers) <= set(range(key, last + 4))
    assert times[1] == pytest.approx(reader.seconds[numbers[1]] - reader.seconds[numbers[0]], abs=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_part_of_a_video_without_times_is_refused(videos, tmp_path):
    with VideoReader(videos["mpeg4-reordered.avi"]) as reader, pytest.raises(MediaError, match="has no times to cut"):
        reader.write_clip(tmp_path / "part.avi", 0, 1)


def test_progress_ends_at_the_total(videos):
    reported = []
    with VideoReader(videos["constant.mp4"]) as reader:
        list(reader.read([1, 1, 30, 59], lambda *said: reported.append(said)))
    assert reported == [(2, 4, "constant.mp4"), (3, 4, "constant.mp4"), (4, 4, "constant.mp4")]


def test_frames_outside_the_video_are_refused(videos):
    with VideoReader(videos["constant.mp4"]) as reader:
        for indices in ([60], [-1], [5, 4]):
            with pytest.raises(IndexError):
                list(reader.read(indices))


def refusal(source, limits: Limits | None = None) -> str:
    with pytest.raises(MediaError) as caught, VideoReader(source, limits) as reader:
        list(reader.read(range(reader.num_frames)))
    return one_clear_line(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "none.mp4").write_bytes(b"")
    assert "empty" in refusal(tmp_path / "none.mp4")


def test_text_called_mp4_is_refused(tmp_path):
    (tmp_path / "notes.mp4").write_text("These are my notes, not a film. " * 20)
    assert "expected MP4, MOV, MKV, WebM or AVI" in refusal(tmp_path / "notes.mp4")


def test_sound_alone_is_refused(tmp_path):
    assert "only sound" in refusal(write_sound(tmp_path / "song.mp4"))


def test_a_video_without_frames_is_refused(tmp_path):
    path = write_video(tmp_path / "nothing.mkv", frames=1)
    data = path.read_bytes()
    cluster = data.index(b"\x1f\x43\xb6\x75")
    # The segment says it ends where the pictures would begin.
    segment = data.index(b"\x18\x53\x80\x67")
    head = data[: segment + 4] + b"\x01" + (cluster - segment - 12).to_bytes(7, "big") + data[segment + 12 : cluster]
    assert "nothing.mkv" in refusal(_write(tmp_path / "nothing.mkv", head))


@pytest.mark.parametrize("name", ["constant.mp4", "index-first.mp4", "group.mkv", "vp8.webm", "mpeg4.avi"])
def test_a_truncated_video_says_how_much_is_missing(videos, name):
    data = videos[name].read_bytes()
    for share in range(8, 64, 8):
        kept = data[: max(64, len(data) * share // 64)]
        message = refusal(kept)
        least = re.search(r"is incomplete: at least ([\d,]+) bytes? (is|are) missing at its end", message)
        assert least
        assert 0 < int(least[1].replace(",", "")) <= len(data) - len(kept)


@pytest.mark.parametrize("name", ["constant.mp4", "group.mkv", "vp8.webm", "mpeg4.avi", "fragmented.mp4", "h264.avi"])
def test_flipped_bytes_end_in_frames_or_in_one_clear_line(videos, name):
    data = videos[name].read_bytes()
    dice = random.Random(7)
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(dice.choice([1, 4, 32])):
            damaged[dice.randrange(64, len(damaged))] ^= 1 << dice.randrange(8)
        started = time.monotonic()
        try:
            with VideoReader(bytes(damaged), Limits(decode_seconds=5)) as reader:
                for frame in reader.read([0, reader.num_frames // 2, reader.num_frames - 1]):
                    assert frame.image.mode == "RGB"
        except MediaError as error:
            one_clear_line(error)
        assert time.monotonic() - started < 6


def test_a_header_that_promises_hours_is_not_believed(videos):
    data = bytearray(videos["constant.mp4"].read_bytes())
    for box, version_to_duration in ((b"mvhd", 20), (b"mdhd", 20)):
        at = data.index(box) + version_to_duration
        data[at : at + 4] = struct.pack(">I", 0x7FFFFFFF)
    with VideoReader(bytes(data)) as reader:
        assert reader.num_frames == 60
        assert reader.duration == pytest.approx(2.5, abs=0.1)


def test_a_header_that_promises_huge_frames_is_refused_before_decoding(tmp_path):
    path = write_video(tmp_path / "small.mp4", frames=2)
    message = refusal(path, Limits(max_pixels=WIDTH * HEIGHT - 1))
    assert "320×176" in message
    assert "--max-pixels" in message
    with VideoReader(path, Limits(max_pixels=WIDTH * HEIGHT)) as reader:
        assert reader.num_frames == 2


def test_decoding_ends_at_the_deadline(videos):
    assert "--decode-seconds" in refusal(videos["long-group.mp4"], Limits(decode_seconds=0.01))


def test_a_playlist_that_names_other_files_is_not_followed(tmp_path, videos):
    playlist = f"#EXTM3U\n#EXTINF:10,\nfile://{videos['constant.mp4']}\n"
    script = f"ffconcat version 1.0\nfile {videos['constant.mp4']}\n"
    for text in (playlist, script):
        assert "is not a video" in refusal(_write(tmp_path / "list.mp4", text.encode()))


def test_a_file_name_is_never_read_as_a_protocol(tmp_path, videos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b.mp4", "subfile,,start,0,end,9,,:x.mp4", "film %03d.mp4", "ünï¢ode 电影.mp4"):
        path = tmp_path / name
        shutil.copy(videos["constant.mp4"], path)
        with VideoReader(path.relative_to(tmp_path)) as reader:
            assert reader.num_frames == 60


def test_frames_before_the_first_key_frame_are_not_counted(tmp_path):
    import av

    source = write_video(tmp_path / "whole.mkv", options={"bf": "0", "x264-params": "scenecut=0"}, gop=20)
    with av.open(str(source)) as whole, av.open(str(tmp_path / "cut.mkv"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in list(whole.demux(video=0))[5:-1]:
            packet.stream = stream
            cut.mux(packet)
    with VideoReader(tmp_path / "cut.mkv") as reader:
        assert [number_of(frame.image) for frame in reader.read(range(reader.num_frames))] == list(range(20, 60))


def test_reading_leaves_no_file_open(videos):
    gc.collect()  # what earlier tests left open
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for name in ("constant.mp4", "group.mkv", "h264.avi"):
        with VideoReader(videos[name]) as reader:
            list(reader.read([0, 59]))
        with pytest.raises(MediaError):
            VideoReader(videos[name].read_bytes()[:2000])
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


def _write(path, data: bytes):
    path.write_bytes(data)
    return path


def test_frames_are_plain_pillow_images(videos):
    with VideoReader(videos["constant.mp4"]) as reader:
        frame = next(reader.read([0]))
    assert type(frame.image) is Image.Image


def test_threads_hold_few_frames_for_a_slow_caller(videos, monkeypatch):
    monkeypatch.setattr(video, "PACKETS_PER_THREAD", 1)
    monkeypatch.setattr(video, "AHEAD_BYTES", 8 * WIDTH * HEIGHT * 3)
    decoded = []
    upright = track.Track.upright
    monkeypatch.setattr(track.Track, "upright", lambda self, frame: decoded.append(1) or upright(self, frame))
    with VideoReader(videos["constant.mp4"], threads=2) as reader:
        decoded.clear()
        reading = reader.read(range(60))
        for number in range(60):
            frame = next(reading)
            assert number_of(frame.image) == number
            time.sleep(0.01)
            assert len(decoded) <= number + 1 + 8 + 4  # taken, held by both threads, and in their hands
        assert list(reading) == []
    with VideoReader(videos["constant.mp4"], threads=2) as reader:
        half = reader.read(range(60))
        next(half)
        half.close()  # threads that wait for room end
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("longview-video")]
