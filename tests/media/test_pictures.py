"""Every format, mode and orientation comes out upright RGB; everything else is refused in one clear line."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from media_samples import encoded, gradient, number_of, numbered, one_clear_line, write_video
from PIL import Image, ImageSequence

from longview.errors import LongviewError, MediaError
from longview.media import Medium, open_medium, sniff
from longview.media.decoders import animation as animations
from longview.media.decoders import pillow
from longview.media.errors import format_bytes
from longview.messages import Part
from longview.requests import Limits, MediaOptions

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # Pillow's remarks on damaged files


def picture(source, limits: Limits | None = None) -> Image.Image:
    return opened(source, limits).frames[0].image


def opened(source, limits: Limits | None = None) -> Medium:
    return open_medium(Part("image", source=source), limits=limits)


def refusal(source, limits: Limits | None = None, kind: str = "image") -> str:
    with pytest.raises(LongviewError) as caught:
        open_medium(Part(kind, source=source), limits=limits)  # type: ignore[arg-type]
    return one_clear_line(caught.value)


def animation(form: str, count: int = 5) -> bytes:
    frames = [Image.fromarray(numbered(n)) for n in range(count)]
    options = {"lossless": True} if form == "WEBP" else {}
    durations = [100 * (n % 5 + 1) for n in range(count)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=durations, **options)


ENCODINGS = {
    "png": lambda: encoded(gradient()),
    "bmp": lambda: encoded(gradient(), "BMP"),
    "webp": lambda: encoded(gradient(), "WEBP", lossless=True),
    "tiff": lambda: encoded(gradient(), "TIFF"),
    "tiff-lzw": lambda: encoded(gradient(), "TIFF", compression="tiff_lzw"),
    "jpeg": lambda: encoded(gradient(), "JPEG", quality=95),
    "progressive-jpeg": lambda: encoded(gradient(), "JPEG", quality=95, progressive=True),
    "gif": lambda: encoded(gradient(), "GIF"),
}
LOSSY = ("jpeg", "progressive-jpeg", "gif")


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_format_is_read_from_bytes_and_from_a_file_of_any_name(name, tmp_path):
    data = ENCODINGS[name]()
    (tmp_path / "misnamed.txt").write_bytes(data)
    for source in (data, tmp_path / "misnamed.txt", str(tmp_path / "misnamed.txt")):
        image = picture(source)
        assert image.mode == "RGB"
        difference = np.abs(np.asarray(image, np.int32) - np.asarray(gradient(), np.int32))
        assert difference.mean() < (12 if name in LOSSY else 1e-9)
    assert sniff(data) == sniff(tmp_path / "misnamed.txt") == "image"


def test_an_opened_picture_knows_its_sides_and_its_digest(tmp_path):
    data = encoded(gradient(48, 32))
    (tmp_path / "holiday.png").write_bytes(data)
    medium = opened(tmp_path / "holiday.png")
    assert (medium.kind, medium.name, medium.width, medium.height) == ("image", "holiday.png", 48, 32)
    assert (medium.num_frames, medium.duration, medium.fps, medium.warnings) == (1, None, None, ())
    assert (medium.frames[0].index, medium.frames[0].seconds) == (0, None)
    assert medium.digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright(orientation, form):
    upright = gradient(48, 32)
    # How a camera held that way stores the scene: the inverse of what a viewer must do.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation](np.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options)
    medium = opened(data)
    assert (medium.width, medium.height) == medium.frames[0].image.size == (48, 32)
    difference = np.abs(np.asarray(medium.frames[0].image, np.int32) - np.asarray(upright, np.int32))
    assert difference.mean() < (6 if form == "JPEG" else 1e-9)


def test_a_pillow_image_is_turned_upright_too():
    image = gradient(48, 32)
    image.getexif()[0x0112] = 6
    assert picture(image).size == (32, 48)
    assert image.size == (48, 32), "the caller's image stays as it is"


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        pixels = np.asarray(picture(encoded(Image.fromarray(ramp), form)))
        np.testing.assert_array_equal(pixels[..., 0], np.round(ramp / 257).astype(np.uint8))
        assert (pixels[..., 0] == pixels[..., 2]).all()


def test_transparency_is_dropped_and_nothing_is_blended():
    colours = np.asarray(gradient())
    alpha = np.zeros((*colours.shape[:2], 1), np.uint8)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        data = encoded(Image.fromarray(np.concatenate([colours, alpha], axis=-1)), form, **options)
        np.testing.assert_array_equal(np.asarray(picture(data)), colours)


def test_palettes_with_transparency_give_the_palettes_colours():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    for form in ("PNG", "GIF"):
        pixels = np.asarray(picture(encoded(image, form, transparency=1)))
        assert pixels[0, 0].tolist() == [10, 200, 30]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_every_mode_ends_as_rgb_or_in_a_clear_line(mode):
    image = gradient().convert(mode) if mode not in ("LAB", "I;16") else Image.new(mode, (48, 32))
    if mode == "F":
        assert "convert it" in refusal(image)
    else:
        assert picture(image).mode == "RGB"


def test_cmyk_jpegs_keep_their_colours():
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    pixels = np.asarray(picture(encoded(red, "JPEG", quality=95)), np.int32)
    assert np.abs(pixels - [250, 10, 10]).max() < 20


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_as_a_picture_is_its_first_frame_with_a_warning(form):
    medium = opened(animation(form))
    assert len(medium.frames) == 1
    assert number_of(medium.frames[0].image) == 0
    assert "only its first frame" in medium.warnings[0]


def test_a_warning_names_its_file_once(tmp_path):
    (tmp_path / "a.gif").write_bytes(animation("GIF"))
    (tmp_path / "b.png").write_bytes(encoded(gradient()))
    for part in (Part("image", source=tmp_path / "a.gif"), Part("video", source=tmp_path / "b.png")):
        medium = open_medium(part)
        (warning,) = medium.warnings
        assert warning.startswith(f"{medium.name} ")
        assert warning.count(medium.name) == 1


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_given_as_a_video_is_one(form):
    data = animation(form)
    assert sniff(data) == "video"
    medium = open_medium(Part("video", source=data), MediaOptions(frames=8))
    assert [number_of(frame.image) for frame in medium.frames] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([frame.seconds for frame in medium.frames], [0, 0.1, 0.3, 0.6, 1.0])
    assert medium.duration == pytest.approx(1.5)
    few = open_medium(Part("video", source=data), MediaOptions(fps=2))
    assert [number_of(frame.image) for frame in few.frames] == [0, 2, 4]


def test_the_pages_of_a_tiff_and_the_views_of_a_stereo_jpeg_are_not_a_video():
    pages = encoded(gradient(), "TIFF", save_all=True, append_images=[gradient(20, 20)])
    assert sniff(pages) == "image"
    (warning,) = opened(pages).warnings
    assert "has several pages; only the first is used" in warning
    assert opened(encoded(gradient(), "TIFF")).warnings == ()
    views = encoded(gradient(), "MPO", save_all=True, append_images=[gradient()])
    assert opened(views).warnings == ()


def test_a_still_picture_given_as_a_video_is_a_video_of_one_frame():
    medium = open_medium(Part("video", source=encoded(gradient())))
    assert len(medium.frames) == medium.num_frames == 1
    assert "still picture" in medium.warnings[0]


# What is refused


def test_missing_files_folders_and_odd_paths_are_refused(tmp_path):
    assert "no file" in refusal(tmp_path / "gone.png")
    assert "gone.png" in refusal("~/surely/gone.png")
    assert "is a folder" in refusal(tmp_path)
    assert "not a regular file" in refusal("/dev/zero")
    assert "cannot be opened" in refusal("a\0b.png")
    assert "cannot be opened" in refusal("x" * 5000)
    assert "no file" in refusal("two\nlines\x1b[31m.png")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "none.jpg").touch()
    for kind in ("image", "video"):
        assert "empty" in refusal(tmp_path / "none.jpg", kind=kind)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"this is only text\n" * 9, "text"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\3\4" + bytes(60), "ZIP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "text"),
        (b"8BPS\0\1" + bytes(60), "unknown"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "unknown"),
        (b"\0\0\0\x20ftypavif" + bytes(60), "AVIF"),
        (bytes(64), "unknown"),
    ],
)
def test_a_file_that_is_no_picture_is_called_what_it_is(tmp_path, data, named):
    (tmp_path / "photo.jpg").write_bytes(data)
    for kind in ("image", "video"):
        message = refusal(tmp_path / "photo.jpg", kind=kind)
        assert named in message
        assert "photo.jpg" in message
        assert "JPEG, PNG" in message
    with pytest.raises(MediaError):
        sniff(tmp_path / "photo.jpg")


def test_a_video_given_as_a_picture_is_called_a_video(tmp_path):
    path = write_video(tmp_path / "film.mp4", frames=2)
    assert "is a video, given as a picture" in refusal(path)
    assert sniff(path) == "video"


def test_thin_pictures_are_refused_by_their_sides():
    assert "1×20,000" in refusal(Image.new("RGB", (1, 20_000)))
    assert "1×1" in refusal(encoded(Image.new("RGB", (1, 1))))
    message = refusal(encoded(Image.new("RGB", (2, 402))))
    assert "2×402" in message
    assert "a side ratio of 200.5; the limit is 200.0" in refusal(Image.new("RGB", (2, 401)))
    assert "--max-aspect" in message
    assert picture(encoded(Image.new("RGB", (2, 400)))).size == (2, 400)


def test_the_pixel_limit_holds_to_the_pixel():
    data = encoded(gradient(48, 32))
    assert picture(data, Limits(max_pixels=48 * 32)).size == (48, 32)
    message = refusal(data, Limits(max_pixels=48 * 32 - 1))
    assert "48×32" in message
    assert "1,536" in message
    assert "1,535" in message
    assert "--max-pixels or Limits(max_pixels=" in message


def test_the_byte_limit_holds_to_the_byte(tmp_path):
    data = encoded(gradient())
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        assert picture(source, Limits(max_image_bytes=len(data)))
        assert "--max-image-bytes" in refusal(source, Limits(max_image_bytes=len(data) - 1))


def test_sizes_in_messages_never_round_to_the_limit():
    data = encoded(gradient())
    message = refusal(data, Limits(max_image_bytes=100))
    assert "the limit is 100 bytes, raise it with --max-image-bytes" in message
    assert "MiB" not in message
    shown = {1: "1 byte", 100: "100 bytes", 1 << 20: "1 MiB", (1 << 20) + 1: "1,048,577 bytes", 3 << 19: "1.5 MiB"}
    assert {count: format_bytes(count) for count in shown} == shown
    assert "the limit is 2 MiB" in refusal(bytes(3 << 20), Limits(max_image_bytes=2 << 20))
    assert "4,608 bytes; the limit is 1,000 bytes" in refusal(gradient(), Limits(max_decoded_bytes=1000))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int, data: bytes = bytes(10_000)) -> bytes:
    """A PNG whose header promises more than its few bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(data, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (8_000, 8_000), (2**31 - 1, 2**31 - 1), (100_000, 900)]
)
def test_bombs_are_refused_before_they_are_decoded(width, height):
    started = time.monotonic()
    assert "--max-pixels" in refusal(bomb(width, height))
    assert time.monotonic() - started < 1


def test_pillows_own_cap_does_not_come_before_the_limit():
    data = bomb(20_000, 10_000)
    assert "the limit is 50,000,000" in refusal(data)
    assert pillow.open_image(data, "a.png", Limits(max_pixels=400_000_000))[0].size == (20_000, 10_000)


@pytest.mark.parametrize("oddity", [b"", b"!\xff\0\x03,ab\0", b"!\xff\x0bNETSCAPE2.0\0\x01,\0"])
def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused_before_pillow_fills_it(oddity):
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes([0, 0, 0, 9, 9, 9])
    control = b"!\xf9\4\x08\0\0\0\0"  # restore to background: an area to fill
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\2\2\x4c\1\0"
    data = screen + oddity + (control + frame) * 2 + b";"
    started = time.monotonic()
    for kind in ("image", "video"):
        assert "65,535×65,535" in refusal(data, kind=kind)
    assert sniff(data) == "video"
    assert time.monotonic() - started < 1


def test_pillows_warnings_about_metadata_are_not_printed(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x0e\1\2\0\xff\xff\0\0\xff\xff\0\0\0\0\0\0"
    (tmp_path / "a.jpg").write_bytes(encoded(gradient(), "JPEG", exif=exif))
    script = "import sys; from longview.media import open_medium; from longview.messages import Part\n"
    script += "print(open_medium(Part('image', source=sys.argv[1])).width)"
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.jpg")], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("48\n", "")


def test_a_header_that_promises_more_rows_than_there_are_does_no_harm():
    assert picture(bomb(64, 64, bytes(3 * (1 + 3 * 64)))).size == (64, 64)


ANIMATED = ["GIF", "WEBP", "PNG"]
FORMS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_picture_is_refused_or_complete(form):
    whole = encoded(gradient(64, 48), form)
    expected = np.asarray(picture(whole))
    refused = 0
    for point in range(64):
        data = whole[: len(whole) * point // 64]
        try:
            np.testing.assert_array_equal(np.asarray(picture(data)), expected)
        except MediaError as error:
            one_clear_line(error)
            refused += 1
    assert refused >= 56


@pytest.mark.parametrize(
    ("form", "animated"), [*((form, False) for form in FORMS), *((form, True) for form in ANIMATED)]
)
def test_flipped_bytes_end_in_a_picture_or_in_one_clear_line(form, animated):
    whole = animation(form) if animated else encoded(gradient(64, 48), form)
    dice = random.Random(1)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 3, 20])):
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        for kind in ("image", "video") if animated else ("image",):
            try:
                medium = open_medium(Part(kind, source=bytes(data)), limits=Limits(decode_seconds=5))
                assert all(frame.image.mode == "RGB" for frame in medium.frames)
            except MediaError as error:
                one_clear_line(error)


def test_damaged_exif_does_not_spoil_a_good_picture():
    exif = b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + bytes(random.Random(3).randbytes(40))
    data = encoded(gradient(), "JPEG", exif=exif)
    assert picture(data).size == (48, 32)


def test_an_animation_that_takes_too_long_ends_at_the_deadline():
    data = animation("GIF", 150)
    with pytest.raises(MediaError, match="--decode-seconds"):
        open_medium(Part("video", source=data), limits=Limits(decode_seconds=0.001))


def test_a_large_animation_is_refused_before_its_frames_are_decoded():
    one = encoded(Image.new("L", (2000, 2000), 77), "GIF", duration=100)
    start = 13 + (3 << (one[10] & 7) + 1 if one[10] & 128 else 0)
    data = one[:start] + one[start:-1] * 400 + b";"
    started = time.monotonic()
    message = refusal(data, kind="video")
    assert time.monotonic() - started < 2
    assert "2,000×2,000" in message
    assert "--max-decoded-bytes" in message
    early = open_medium(Part("video", source=data), MediaOptions(end=0.3))
    assert [frame.index for frame in early.frames] == [0, 1, 2]
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("form", ANIMATED)
def test_only_the_frames_up_to_the_last_one_wanted_are_decoded(form, monkeypatch):
    data = animation(form, 20)
    loaded = []
    load = animations.load_image
    monkeypatch.setattr(animations, "load_image", lambda image, name: loaded.append(image.tell()) or load(image, name))
    medium = open_medium(Part("video", source=data), MediaOptions(frames=2, end=1.9))
    assert [frame.index for frame in medium.frames] == [2, 6]
    assert loaded == [0, 0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("form", ANIMATED)
def test_a_truncated_animation_is_refused_as_a_video(form):
    data = animation(form, 20)
    assert "damaged" in refusal(data[: len(data) * 3 // 4], kind="video")


def test_the_time_limit_counts_from_the_opening_of_an_animation_to_its_last_frame():
    reader = animations.AnimationReader(animation("GIF", 20), "a.gif", Limits(decode_seconds=0.2))
    time.sleep(0.3)
    with pytest.raises(MediaError, match="--decode-seconds"):
        list(reader.read([0, 10]))


def test_the_default_image_of_an_apng_is_its_first_frame():
    frames = [Image.fromarray(numbered(n)) for n in range(4)]
    data = encoded(frames[0], save_all=True, append_images=frames[1:], duration=[200, 300, 400], default_image=True)
    medium = open_medium(Part("video", source=data))
    assert [number_of(frame.image) for frame in medium.frames] == [0, 1, 2, 3]
    np.testing.assert_allclose([frame.seconds for frame in medium.frames], [0, 0.1, 0.3, 0.6])


def test_the_first_frame_of_a_gif_equals_what_pillow_shows():
    data = animation("GIF")
    with Image.open(io.BytesIO(data)) as image:
        expected = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    medium = open_medium(Part("video", source=data))
    for frame, other in zip(medium.frames, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(frame.image), np.asarray(other))
