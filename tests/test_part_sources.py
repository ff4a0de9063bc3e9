"""Pictures and videos in memory: what arrays and open files become, and what is said of those that cannot be."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from samples import noise

import longview
from longview.errors import RequestError
from longview.media import open_media
from longview.messages import Message, Part

EXAMPLES = Path(__file__).parents[1] / "examples"
PIXELS = np.asarray(noise(1))  # (30, 40, 3)
FRAMES = np.stack([np.asarray(noise(seed)) for seed in range(3)])


def pictures(part: Part) -> list[np.ndarray]:
    (medium,) = open_media([part])
    return [np.asarray(frame.image) for frame in medium.frames]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (PIXELS, PIXELS),
        (PIXELS[:, ::2], PIXELS[:, ::2]),  # not contiguous
        (torch.from_numpy(PIXELS.copy()), PIXELS),
        (np.dstack([PIXELS, np.zeros((30, 40), np.uint8)]), PIXELS),  # alpha is dropped
        (PIXELS[:, :, :1], PIXELS[:, :, [0, 0, 0]]),
        (PIXELS[:, :, 0], PIXELS[:, :, [0, 0, 0]]),
    ],
    ids=["RGB", "strided", "tensor", "RGBA", "grey", "(H, W)"],
)
def test_an_array_is_a_picture_however_it_is_given(given, shown):
    for part in (longview.image(given), Part.from_dict({"type": "image", "image": given}), Part("image", source=given)):
        (found,) = pictures(part)
        assert np.array_equal(found, shown)


def test_arrays_are_a_video_whether_in_one_or_in_a_list():
    for given in (FRAMES, list(FRAMES), (noise(0), FRAMES[1], noise(2))):
        for part in (longview.video(given), Part.from_dict({"type": "video", "video": given})):
            assert np.array_equal(pictures(part), FRAMES)
    assert len(pictures(longview.video(FRAMES[..., :1]))) == 3


def test_a_part_keeps_the_pixels_that_it_was_given():
    array = PIXELS.copy()
    part = longview.image(array)
    array[:] = 0
    assert np.array_equal(pictures(part)[0], PIXELS)
    assert part == longview.image(PIXELS)
    assert longview.ask("?", part) == longview.ask("?", longview.image(PIXELS))


def test_an_open_file_is_read_once_and_may_be_closed_then():
    with (EXAMPLES / "shapes.jpg").open("rb") as picture, (EXAMPLES / "clip.mp4").open("rb") as clip:
        parts = [longview.image(picture), longview.video(clip)]
    for _ in range(2):
        image, video = open_media(parts)
        assert image.frames[0].image.size == (336, 336)
        assert video.num_frames > 1


def test_bytes_of_any_kind_are_a_picture():
    data = (EXAMPLES / "shapes.jpg").read_bytes()
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(data)
        spooled.seek(0)
        for given in (data, bytearray(data), memoryview(data), io.BytesIO(data), spooled):
            assert np.array_equal(pictures(longview.image(given))[0], np.asarray(Image.open(io.BytesIO(data))))


def closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


def written() -> io.BytesIO:
    file = io.BytesIO()
    noise(1).save(file, "PNG")
    return file


def write_only():
    return tempfile.NamedTemporaryFile("wb")


class Device:
    """An array whose values are not in memory."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("image", PIXELS.astype(np.float32), "uint8, and this one is float32"),
        ("image", PIXELS > 3, "uint8, and this one is bool"),
        ("image", np.array([["a"]]), "uint8, and this one is <U1"),
        (
            "image",
            PIXELS.transpose(2, 0, 1),
            "(3, 30, 40); move the channels to the end",
        ),
        ("image", FRAMES, "longview.video(array)"),
        ("image", PIXELS[:, :, :2], "(30, 40, 2); reshape it"),
        ("image", PIXELS[0, 0], "(3,); reshape it"),
        ("image", PIXELS[:0], "(0, 40, 3) holds no pixels"),
        ("image", Device(), "move it to the CPU"),
        ("video", PIXELS, "(T, H, W, C)"),
        ("video", FRAMES[:0], "holds no pixels"),
        ("video", FRAMES.transpose(0, 3, 1, 2), "array.transpose(0, 2, 3, 1)"),
        ("video", FRAMES[None], "reshape it"),
        ("video", [PIXELS, PIXELS.astype(float)], "uint8, and this one is float64"),
        ("image", closed(), "cannot be read (I/O operation on closed file"),
        ("image", written(), "seek(0)"),
        ("image", io.StringIO("x"), "read as text; open it with 'rb'"),
        ("image", write_only(), "cannot be read"),
        ("video", closed(), "given as a video cannot be read"),
    ],
)
def test_what_cannot_be_a_picture_or_video_is_one_line_at_once(kind, given, message):
    for make in (getattr(longview, kind), lambda source: Part.from_dict({"type": kind, kind: source})):
        with pytest.raises(RequestError) as refused:
            make(given)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


def test_an_engine_answers_about_an_array_as_about_its_picture():
    engine = longview.load("demo", device="cpu")
    image = Image.open(EXAMPLES / "shapes.jpg")
    message = {"role": "user", "content": [{"type": "image", "image": np.asarray(image)}, "\nWhat is at the top left?"]}
    assert str(engine.answer([message])) == "a large blue star"
    assert str(engine.answer([longview.ask("What is at the top left?", longview.image(np.asarray(image)))])) == (
        "a large blue star"
    )


# ── media of one name ────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_files_of_one_name_are_told_apart_in_receipts(tmp_path):
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        noise(seed).save(tmp_path / folder / "cat.gif", save_all=True, append_images=[noise(seed + 5)])
    parts = [longview.image(tmp_path / folder / "cat.gif") for folder in "aba"]
    engine = longview.load("demo", device="cpu")
    receipt = engine.answer([longview.ask("?", *parts, longview.image(noise(3)))], max_tokens=1).receipt
    assert [frame.name for frame in receipt.frames] == ["cat.gif (1)", "cat.gif (2)", "cat.gif (1)", "picture"]
    assert any(warning.startswith("cat.gif (2) is animated") for warning in receipt.warnings)
    alone = engine.answer([longview.ask("?", *parts[::2])], max_tokens=1).receipt
    assert [frame.name for frame in alone.frames] == ["cat.gif"] * 2, "the same picture twice is one picture"


def test_a_message_given_as_a_mapping_takes_a_placeholder_nowhere():
    with pytest.raises(RequestError, match="needs exactly one of"):
        Message.from_dict({"role": "user", "content": [{"type": "image", "image": None}]})
