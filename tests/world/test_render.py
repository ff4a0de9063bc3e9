"""Rendered scenes and their files show what the scenes say."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from longview.media import open_medium
from longview.messages import Part
from longview.requests import MediaOptions
from longview.world.render import RGB, SIDE, render, write_clip, write_picture
from longview.world.scenes import CLIP_SECONDS, COLOURS, SHAPES, Picture, Sign, Thing, draw_clip


def nearest_colour(pixel) -> str:
    return min(RGB, key=lambda name: sum((int(a) - b) ** 2 for a, b in zip(pixel, RGB[name], strict=True)))


def test_the_same_seed_paints_the_same_pixels():
    picture = Picture((Thing("red", "star", "large", 0.5, 0.5),), Sign("stop", 2))
    assert render(picture, 1).tobytes() == render(picture, 1).tobytes()
    assert render(picture, 1).tobytes() != render(picture, 2).tobytes()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_file_shows_each_colour_where_it_was_drawn(tmp_path, suffix):
    for number, colour in enumerate(COLOURS):
        thing = Thing(colour, SHAPES[number % len(SHAPES)], "large", 0.2, 0.8)
        file = write_picture(Picture((thing,)), tmp_path / f"{colour}.{suffix}", seed=number, quality=60)
        image = open_medium(Part("image", source=file)).frames[0].image
        assert image.size == (SIDE, SIDE)
        assert nearest_colour(image.getpixel((int(0.2 * SIDE), int(0.8 * SIDE)))) == colour
        assert min(image.getpixel((int(0.8 * SIDE), int(0.2 * SIDE)))) > 200


def test_different_words_look_different():
    one, other = (np.asarray(render(Picture((), Sign(word, 1)), 5), dtype=int) for word in ("stop", "open"))
    assert np.abs(one - other)[SIDE // 3 : 2 * SIDE // 3].mean() > 5
    assert np.abs(one - other)[: SIDE // 3].max() == 0


def test_a_large_thing_covers_more_than_a_small_one():
    for shape in SHAPES:
        dark = []
        for size in ("small", "large"):
            pixels = np.asarray(render(Picture((Thing("black", shape, size, 0.5, 0.5),)), 3))
            dark.append((pixels.max(-1) < 100).sum())
        assert dark[1] > 2 * dark[0] > 0


def test_a_clip_file_shows_each_second_as_it_was_drawn(tmp_path):
    clip = draw_clip(random.Random(3), event="flash")
    file = write_clip(clip, tmp_path / "clip.mp4", seed=7)
    medium = open_medium(Part("video", source=file), MediaOptions(select="owl3"))
    assert [frame.seconds for frame in medium.frames] == pytest.approx(range(CLIP_SECONDS))
    for frame, picture in zip(medium.frames, clip.frames, strict=True):
        drawn = np.asarray(render(picture, 7), dtype=int)
        assert np.abs(np.asarray(frame.image, dtype=int) - drawn).mean() < 4
    assert isinstance(medium.frames[0].image, Image.Image)
