"""Malformed pictures end in a MediaError, at once: truncated, damaged, or made to keep a decoder busy."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from media_samples import encoded, gradient, one_clear_line
from PIL import Image

from longview.errors import MediaError
from longview.media import open_media, open_medium, sniff
from longview.messages import Part
from longview.requests import Limits, MediaOptions

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow's remarks on damaged files


def animation(form: str) -> bytes:
    frames = [gradient(16, 12).rotate(90 * number) for number in range(3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)


SAMPLES = {form: encoded(gradient(16, 12), form) for form in ("GIF", "PNG", "WEBP", "JPEG", "TIFF", "BMP")} | {
    "animated GIF": animation("GIF"),
    "animated PNG": animation("PNG"),
    "animated WebP": animation("WEBP"),
    "GIF with comments": encoded(gradient(16, 12), "GIF", comment=b"a comment", transparency=3, loop=2),
    "progressive JPEG": encoded(gradient(16, 12), "JPEG", progressive=True),
    "JPEG with Exif": encoded(gradient(16, 12), "JPEG", exif=b"Exif\0\0" + encoded(gradient(2, 2), "TIFF")[:60]),
    "deflated TIFF": encoded(gradient(16, 12), "TIFF", compression="tiff_deflate"),
    "palette BMP": encoded(gradient(16, 12).quantize(8), "BMP"),
}


def open_every_way(data: bytes) -> bool:
    """Open bytes as a picture and as a video; whether either worked. Anything but a MediaError is a failure."""
    opened = False
    sniff(data)
    for kind in ("image", "video"):
        try:
            medium = open_medium(Part(kind, source=data), MediaOptions(frames=4) if kind == "video" else None)
            opened |= all(frame.image.mode == "RGB" for frame in medium.frames)
        except MediaError as error:
            one_clear_line(error)
    return opened


@pytest.mark.parametrize("name", SAMPLES)
def test_every_truncation_of_a_picture_opens_or_is_a_media_error(name):
    whole = SAMPLES[name]
    assert open_every_way(whole)
    for length in range(16, len(whole)):  # before, its format cannot be told
        open_every_way(whole[:length])


@pytest.mark.parametrize("name", SAMPLES)
def test_random_damage_of_a_picture_opens_or_is_a_media_error(name):
    dice = random.Random(name)
    for _ in range(150):
        data = bytearray(SAMPLES[name])
        for _ in range(dice.choice((1, 2, 8))):
            data[dice.randrange(len(data))] = dice.choice((0, 0xFF, dice.randrange(256)))
        try:
            open_every_way(bytes(data))
        except MediaError as error:  # of `sniff`: no format is left
            one_clear_line(error)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_callers_own_damaged_image_is_a_media_error(name):
    whole = SAMPLES[name]
    for length in range(16, len(whole), 3):
        try:
            image = Image.open(io.BytesIO(whole[:length]))
        except Exception:  # noqa: BLE001 - what Pillow itself does not open no caller can hand in
            continue
        for part in (Part("image", source=image), Part("video", source=[image, image])):
            try:
                open_medium(part)
            except MediaError as error:
                one_clear_line(error)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_a_callers_closed_image_is_a_media_error(mode):
    image = Image.open(io.BytesIO(encoded(gradient(16, 12).convert(mode))))
    image.close()
    for part in (Part("image", source=image), Part("video", source=[image])):
        with pytest.raises(MediaError, match="closed"):
            open_medium(part)


def test_one_lazily_decoded_image_may_be_given_many_times():
    data = encoded(gradient(400, 300), "JPEG")
    for _ in range(20):
        image = Image.open(io.BytesIO(data))
        media = open_media([Part("image", source=image) for _ in range(8)])
        assert len({medium.digest for medium in media}) == 1
        assert len({medium.frames[0].image.tobytes() for medium in media}) == 1


def test_images_that_show_different_pixels_have_different_digests():
    """Their modes, sizes, indices and palette bytes are equal; how many bytes of the palette a colour has is not."""
    media = []
    for mode in ("RGB", "RGBA"):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 250, 0, 0, 0, 0, 250, 0, 0, 250], mode)
        media.append(open_medium(Part("image", source=image)))
    assert [medium.frames[0].image.getpixel((0, 0)) for medium in media] == [(250, 0, 0), (0, 0, 0)]
    assert media[0].digest != media[1].digest


# Work that a decoder repeats as often as the file says


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < seconds


def refusal(data: bytes, kind: str = "image") -> str:
    with within(1.5), pytest.raises(MediaError) as caught:
        open_medium(Part(kind, source=data))
    return one_clear_line(caught.value)


def scan_bomb(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan, of a few bytes, is repeated."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused():
    assert "more than 100 scans" in refusal(scan_bomb(64, 3000))
    assert "90 scans of 6,000×6,000 pixels" in refusal(scan_bomb(6000, 90))
    assert open_medium(Part("image", source=scan_bomb(300, 90))).width == 300
    large = encoded(Image.new("RGB", (3000, 2000)), "JPEG", progressive=True)
    assert open_medium(Part("image", source=large)).width == 3000


def test_a_jpeg_of_comments_is_refused():
    picture = encoded(gradient(16, 12), "JPEG")
    assert "segments" in refusal(picture[:2] + b"\xff\xfe\0\2" * 2_000_000 + picture[2:])
    assert "between its segments" in refusal(picture[:20] + b"\0" * 8_000_000 + picture[20:])
    assert "tables" in refusal(picture[:2] + (b"\xff\xdb\xfe\xff" + bytes(65_277)) * 40 + picture[2:])
    exif = b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + bytes(60_000)
    assert "Exif" in refusal(picture[:2] + exif * 40 + picture[2:])
    assert open_medium(Part("image", source=picture[:2] + b"\xff\xfe\0\2" * 500 + picture[2:])).width == 16


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("after", [b"IHDR", b"IDAT"])
def test_a_png_of_empty_or_text_chunks_is_refused(after):
    picture = encoded(gradient(16, 12))
    at = picture.index(after) - 4
    at += 12 + int.from_bytes(picture[at : at + 4], "big")
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000)))
    profile = png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1_000_000)))
    for chunk, count in ((png_chunk(b"tEXt", b"a\0b"), 300_000), (text, 5_000), (profile, 5_000)):
        assert "chunks of metadata" in refusal(picture[:at] + chunk * count + picture[at:])
    assert "chunks" in refusal(picture[:at] + png_chunk(b"IDAT") * 2_000_000 + picture[at:])
    assert (
        open_medium(Part("image", source=picture[:at] + png_chunk(b"tEXt", b"a\0b") * 400 + picture[at:])).width == 16
    )


def test_a_webp_of_empty_chunks_is_refused():
    picture = encoded(gradient(16, 12), "WEBP")
    data = picture + b"JUNK\0\0\0\0" * 1_000_000
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert "chunks of metadata" in refusal(data)


def test_a_webp_whose_canvas_is_too_large_is_refused_before_it_is_allocated():
    data = b"VP8X\x0a\0\0\0\0\0\0\0" + (16_382).to_bytes(3, "little") * 2 + encoded(gradient(16, 12), "WEBP")[12:]
    assert "16,383×16,383" in refusal(b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data)


@pytest.mark.parametrize(("kind", "block"), [("image", b"!\xfe\0"), ("video", b"!\xf9\x04\0\1\0\0\0"), ("image", b"")])
def test_a_gif_of_empty_blocks_is_refused(kind, block):
    picture = encoded(gradient(16, 12), "GIF")
    at = 13 + (3 << (picture[10] & 7) + 1)
    data = (
        picture[:-2] + b"\1a" * 1_100_000 + picture[-2:] if not block else picture[:at] + block * 600_000 + picture[at:]
    )
    assert "more than 1,000,000 blocks" in refusal(data, kind)
    few = picture[:at] + b"!\xfe\1a\0" * 10_000 + picture[at:]
    assert open_medium(Part("image", source=few)).width == 16


def test_a_bmp_whose_run_lengths_say_nothing_is_refused():
    picture = bytearray(encoded(gradient(16, 12).quantize(8), "BMP"))
    picture[30:34] = b"\1\0\0\0"  # run-length encoded
    assert "run-length encoded" in refusal(bytes(picture) + bytes(30_000_000))


def tiff(tags: dict[int, tuple[int, int, bytes]], body: bytes) -> bytes:
    """A little-endian TIFF: tag → (type, count, values), after `body`, which begins at offset 8."""
    entries, at, values = b"", 8 + len(body) + 2 + 12 * len(tags) + 4, b""
    for tag, (kind, count, value) in sorted(tags.items()):
        inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", at + len(values))
        values += b"" if len(value) <= 4 else value
        entries += struct.pack("<HHI", tag, kind, count) + inline
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + values


def short(*values: int) -> tuple[int, int, bytes]:
    return 3, len(values), struct.pack(f"<{len(values)}H", *values)


def long(*values: int) -> tuple[int, int, bytes]:
    return 4, len(values), struct.pack(f"<{len(values)}I", *values)


GREY = {256: short(64), 257: short(64), 258: short(8), 262: short(1), 277: short(1)}


def test_a_tiff_of_many_strips_or_huge_tiles_is_refused():
    one = GREY | {259: short(1), 273: long(8), 278: short(64), 279: long(4096)}
    assert open_medium(Part("image", source=tiff(one, bytes(4096)))).width == 64
    many = one | {273: long(*[8] * 500_000), 279: long(*[64] * 500_000)}
    assert "strips" in refusal(tiff(many, bytes(4096)))
    tiles = GREY | {259: short(8), 322: long(60_000), 323: long(60_000), 324: long(8), 325: long(100)}
    assert "tile" in refusal(tiff(tiles, zlib.compress(bytes(10_000))))
    same = {tag: (7, 4_000_000, struct.pack("<I", 8)) for tag in range(40_000, 40_400)}
    assert "tags" in refusal(tiff(one | same, bytes(4_100_000)))


def test_a_tiff_of_scan_bombs_is_refused():
    bomb = scan_bomb(4000, 90)
    tags = GREY | {256: short(4000), 257: short(4000), 259: short(7), 273: long(8), 278: short(4000)}
    tags[279] = long(len(bomb))
    limits = Limits(max_pixels=20_000_000)
    with within(1), pytest.raises(MediaError, match="90 scans"):
        open_medium(Part("image", source=tiff(tags, bomb)), limits=limits)


def test_an_exif_block_that_repeats_its_values_is_ignored():
    count, length = 20_000, 300_000
    entries = b"".join(struct.pack("<HHII", 40_000 + n % 20_000, 7, length, 8) for n in range(count))
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4) + bytes(length)
    picture = encoded(gradient(16, 12))
    at = picture.index(b"IDAT") - 4
    with within(1):
        assert open_medium(Part("image", source=picture[:at] + png_chunk(b"eXIf", exif) + picture[at:])).width == 16


def test_many_threads_may_open_malformed_pictures(monkeypatch):
    failures = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(20):
            whole = SAMPLES[dice.choice(list(SAMPLES))]
            try:
                open_every_way(whole[: dice.randrange(16, len(whole))])
            except Exception as error:  # noqa: BLE001 - the main thread looks at what a thread raised
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_most_pictures_of_one_request_are_bounded():
    parts = [Part("image", source=gradient(8, 8)) for _ in range(4)]
    assert len(open_media(parts, limits=Limits(max_pictures=4))) == 4
    with pytest.raises(MediaError, match=r"5 pictures.*--max-pictures"):
        open_media([*parts, parts[0]], limits=Limits(max_pictures=4))
    assert Limits().max_pictures == 512
    assert Limits().max_decoded_bytes == 1 << 30
