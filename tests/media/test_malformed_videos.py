"""Malformed videos end in a MediaError, at once and in little memory: truncated, damaged, or with false claims."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from media_samples import number_of, one_clear_line, write_video

from longview.errors import MediaError
from longview.media import open_medium
from longview.media.decoders import containers
from longview.media.decoders.containers import MAX_SAMPLES
from longview.media.decoders.video import VideoReader
from longview.messages import Part
from longview.requests import Limits, MediaOptions


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, bytes]:
    """Videos of a few kilobytes."""
    folder = tmp_path_factory.mktemp("small")
    fast = {"options": {"preset": "ultrafast", "crf": "51", "bf": "1"}, "frames": 4}
    fragments = fast | {"muxer_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 2}
    how = {"a.mp4": fast, "a.mkv": fast, "fragmented.mp4": fragments, "a.avi": {"codec": "mpeg4", "frames": 4}}
    how["a.webm"] = {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}, "frames": 4}
    return {name: write_video(folder / name, **options).read_bytes() for name, options in how.items()}


NAMES = ["a.mp4", "fragmented.mp4", "a.mkv", "a.webm", "a.avi"]


def open_or_refuse(data: bytes) -> bool:
    """Whether a video opens; anything but a MediaError is a failure."""
    try:
        medium = open_medium(Part("video", source=data), MediaOptions(frames=2), Limits(decode_seconds=5))
    except MediaError as error:
        one_clear_line(error)
        return False
    assert all(frame.image.mode == "RGB" for frame in medium.frames)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_of_a_video_opens_or_is_a_media_error(small, name):
    whole = small[name]
    assert open_or_refuse(whole)
    lengths = {*range(16, 1200), *range(len(whole) - 1200, len(whole)), *range(0, len(whole), 37)}
    for length in sorted(length for length in lengths if 16 <= length < len(whole)):
        open_or_refuse(whole[:length])


@pytest.mark.parametrize("name", NAMES)
def test_random_damage_of_a_video_opens_or_is_a_media_error(small, name):
    dice = random.Random(name)
    for _ in range(120):
        data = bytearray(small[name])
        for _ in range(dice.choice((1, 2, 8))):
            data[dice.randrange(12, len(data))] = dice.choice((0, 0xFF, dice.randrange(256)))
        began = time.monotonic()
        open_or_refuse(bytes(data))
        assert time.monotonic() - began < 6


@pytest.mark.parametrize("name", ["a.mp4", "fragmented.mp4"])
def test_every_claim_of_an_mp4_may_be_the_largest(small, name):
    """Each four bytes of the header in turn are set to 2³² − 1 and to a hundred million."""
    whole = small[name]
    header = range(whole.index(b"moov"), len(whole) - 4, 4) if name == "a.mp4" else range(32, 1400, 4)
    for at in header:
        for claim in (0xFFFF_FFFF, 100_000_000):
            open_or_refuse(whole[:at] + struct.pack(">I", claim) + whole[at + 4 :])


# A small writer of MP4 boxes

CONTAINERS = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex")
TABLE = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
Boxes = list[list]  # of [kind, bytes | Boxes]


def parse(data: bytes) -> Boxes:
    boxes, at = [], 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + length]
        boxes.append([kind, parse(body) if kind in CONTAINERS else body])
        at += length
    return boxes


def build(boxes: Boxes) -> bytes:
    bodies = [(kind, build(body) if isinstance(body, list) else body) for kind, body in boxes]
    return b"".join(struct.pack(">I4s", 8 + len(body), kind) + body for kind, body in bodies)


def box(boxes: Boxes, *path: bytes) -> list:
    found = next(each for each in boxes if each[0] == path[0])
    return box(found[1], *path[1:]) if path[1:] else found


def claims(boxes: Boxes, count: int, sample_bytes: int = 1) -> None:
    """Say that the video has so many samples, all of one size."""
    box(boxes, *TABLE, b"stsz")[1] = struct.pack(">III", 0, sample_bytes, count)
    box(boxes, *TABLE, b"stts")[1] = struct.pack(">IIII", 0, 1, count, 512)
    box(boxes, *TABLE, b"stsc")[1] = struct.pack(">IIIII", 0, 1, 1, count, 1)


def refusal(data: bytes) -> str:
    began = time.process_time()
    with pytest.raises(MediaError) as caught:
        VideoReader(data).close()
    assert time.process_time() - began < 1
    return one_clear_line(caught.value)


def test_samples_that_the_file_cannot_hold_are_refused(small):
    boxes = parse(small["a.mp4"])
    claims(boxes, 89_000_000)
    assert "claims 89,000,000 bytes of samples" in refusal(build(boxes))
    claims(boxes, 89_000_000, 0)
    assert "bytes in its table stsz" in refusal(build(boxes))
    boxes = parse(small["a.mp4"])
    sizes = box(boxes, *TABLE, b"stsz")
    sizes[0], sizes[1] = b"stz2", struct.pack(">III", 0, 8, 89_000_000) + bytes(40)
    assert "stz2" in refusal(build(boxes))


def test_a_file_of_many_megabytes_may_not_claim_samples_without_end(small):
    boxes = parse(small["a.mp4"])
    claims(boxes, MAX_SAMPLES + 1)
    boxes.append([b"free", bytes(MAX_SAMPLES)])
    assert f"claims {MAX_SAMPLES + 1:,} samples" in refusal(build(boxes))
    sound = parse(small["a.mp4"])
    claims(sound, MAX_SAMPLES // 2, 1)
    box(sound, *TABLE[:3], b"hdlr")[1] = bytes(8) + b"soun" + bytes(13)
    box(sound, *TABLE, b"stts")[1] = struct.pack(">IIII", 0, 1, 4, 1)  # uncompressed
    box(sound, *TABLE, b"stsc")[1] = struct.pack(">IIIII", 0, 1, 1, 0xFFFF_FFFF, 1)
    sound.append([b"free", bytes(MAX_SAMPLES)])
    assert "samples" in refusal(build(sound))


@pytest.mark.parametrize("table", ["stts", "ctts", "stsc", "stco", "co64", "stss", "stps"])
def test_a_table_that_claims_more_than_its_box_holds_is_refused(small, table):
    boxes = parse(small["a.mp4"])
    tables = box(boxes, *TABLE)[1]
    tables[:] = [each for each in tables if each[0] != table.encode()]
    tables.append([table.encode(), struct.pack(">II", 0, 100_000_000) + bytes(24)])
    assert f"bytes in its table {table}" in refusal(build(boxes))


def test_edits_that_repeat_all_samples_are_refused(small):
    boxes = parse(small["a.mp4"])
    claims(boxes, 20_000)
    edits = struct.pack(">II", 0, 1000) + struct.pack(">IiI", 1_000_000, 0, 1 << 16) * 1000
    track = box(boxes, b"moov", b"trak")[1]
    track[:] = [each for each in track if each[0] != b"edts"]
    track.insert(1, [b"edts", [[b"elst", edits]]])
    boxes.append([b"free", bytes(20_000)])
    assert "claims 20,000,000 samples" in refusal(build(boxes))


def test_samples_of_fragments_that_the_file_cannot_hold_are_refused(small):
    for flags, count, what in ((0, 89_000_000, "samples in fragments"), (0x200, 89_000_000, "trun")):
        boxes = parse(small["fragmented.mp4"])
        box(boxes, b"moof", b"traf", b"trun")[1] = struct.pack(">II", flags, count) + bytes(16)
        assert what in refusal(build(boxes))


def test_hundreds_of_tracks_are_refused(small):
    boxes = parse(small["a.mp4"])
    movie = box(boxes, b"moov")[1]
    movie.extend([box(boxes, b"moov", b"trak")] * 900)
    assert "101 tracks" in refusal(build(boxes))
    mkv = small["a.mkv"]
    at = mkv.index(b"\x1f\x43\xb6\x75")  # the first cluster
    tracks = b"\x16\x54\xae\x6b" + (0x10000000 | 2 * 500_000).to_bytes(4, "big") + b"\xae\x80" * 500_000
    assert "tracks, and there can be 100" in refusal(mkv[:at] + tracks + mkv[at:])
    avi = small["a.avi"]
    at = avi.index(b"LIST", 12)
    at = avi.index(b"LIST", at + 4)  # the first stream
    stream = avi[at : at + 8 + int.from_bytes(avi[at + 4 : at + 8], "little")]
    assert "tracks" in refusal(avi[:at] + stream * 400 + avi[at:])


def test_cues_and_tags_without_end_are_refused(small, monkeypatch):
    monkeypatch.setattr(containers, "MAX_ELEMENTS", 10_000)
    mkv = small["a.mkv"]
    segment = mkv.index(b"\x18\x53\x80\x67") + 4
    mkv = mkv[:segment] + b"\x01" + b"\xff" * 7 + mkv[segment + 8 :]  # of unknown length
    assert open_or_refuse(mkv)
    at = mkv.index(b"\x1f\x43\xb6\x75")
    for header, element in ((b"\x1c\x53\xbb\x6b", b"\xbb\x80"), (b"\x12\x54\xc3\x67", b"\x73\x73\x80")):
        body = element * 12_000
        many = header + (0x10000000 | len(body)).to_bytes(4, "big") + body
        assert "elements" in refusal(mkv[:at] + many + mkv[at:])


def test_tables_where_none_belong_are_refused(small):
    boxes = parse(small["a.mp4"])
    entry = box(boxes, *TABLE, b"stsd")
    hidden = build([[b"stsz", struct.pack(">III", 0, 1, 89_000_000)]])
    entry[1] = (
        entry[1][:8] + struct.pack(">I", int.from_bytes(entry[1][8:12], "big") + len(hidden)) + entry[1][12:] + hidden
    )
    assert "where none belongs" in refusal(build(boxes))
    boxes = parse(small["a.mp4"])
    claims(boxes, 89_000_000)
    movie = box(boxes, b"moov")
    packed = zlib.compress(build([movie]))
    movie[1] = build([[b"cmov", build([[b"dcom", b"zlib"], [b"cmvd", struct.pack(">I", 9999) + packed]])]])
    assert "bytes of samples" in refusal(build(boxes))


def test_an_old_mov_with_a_compressed_header_still_opens(small):
    boxes = parse(small["a.mp4"])
    movie = box(boxes, b"moov")
    plain = build([movie])
    data = build([[b"dcom", b"zlib"], [b"cmvd", struct.pack(">I", len(plain)) + zlib.compress(plain)]])
    movie[1] = build([[b"cmov", data]])
    with VideoReader(build(boxes)) as reader:
        assert [number_of(frame.image) for frame in reader.read([0, 3])] == [0, 3]


def test_malformed_videos_take_little_memory(small, tmp_path):
    boxes = parse(small["a.mp4"])
    claims(boxes, 89_000_000)
    (tmp_path / "samples.mp4").write_bytes(build(boxes))
    boxes = parse(small["a.mp4"])
    box(boxes, b"moov")[1].extend([box(boxes, b"moov", b"trak")] * 900)
    (tmp_path / "tracks.mp4").write_bytes(build(boxes))
    (tmp_path / "good.mp4").write_bytes(small["a.mp4"])
    script = (
        "import resource, sys\nfrom longview.errors import MediaError\n"
        "from longview.media.decoders.video import VideoReader\n"
        "from pathlib import Path\nmost = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in ('good', 'samples', 'tracks'):\n"
        "    try:\n        VideoReader(Path(sys.argv[1]) / f'{name}.mp4').close()\n"
        "    except MediaError:\n        pass\n"
        "    print(most())\n"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    before, *after = map(int, ran.stdout.split())
    assert max(after) - before < 50_000  # KiB


def test_a_refused_video_leaves_no_file_open(small, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(small["a.mp4"])
    errors = []  # whose tracebacks would keep the readers alive
    for limits in (Limits(max_pixels=100), Limits(min_side=500)):
        with pytest.raises(MediaError) as caught:
            VideoReader(path, limits)
        errors.append(caught.value)
    open_files = [Path(link).resolve() for link in Path("/proc/self/fd").glob("*")] if sys.platform == "linux" else []
    assert path.resolve() not in open_files


def test_many_packets_take_few_bytes_each(small, monkeypatch):
    """An index of eight bytes an array and packet, whatever the file claims."""
    with VideoReader(small["a.mp4"]) as reader:
        index = reader._index
        assert all(array.dtype.itemsize == 8 for array in vars(index).values() if isinstance(array, np.ndarray))
        assert index.seconds.itemsize == 8
