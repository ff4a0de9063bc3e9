"""Random scenes, from the right side of the split."""

from __future__ import annotations

import itertools
import random

import pytest

from longview.world.scenes import (
    CLIP_SECONDS,
    DIRECTIONS,
    MAX_THINGS,
    Picture,
    Thing,
    draw_clip,
    draw_picture,
    draw_thing,
    is_held_out,
)


def pictures(seed: int, count: int = 300, **options) -> list[Picture]:
    rng = random.Random(seed)
    return [draw_picture(rng, **options) for _ in range(count)]


def test_a_seed_decides_the_scenes():
    assert pictures(1) == pictures(1)
    assert pictures(1) != pictures(2)


def test_no_two_things_share_a_place_and_none_stands_on_the_sign():
    for picture in pictures(3):
        cells = [thing.cell for thing in picture.things]
        assert cells == sorted(set(cells))
        assert len(cells) <= MAX_THINGS
        assert picture.sign is None or picture.sign.row not in {cell // 3 for cell in cells}


def test_the_two_sides_of_the_split_have_no_scene_in_common():
    assert not any(is_held_out(picture) for picture in pictures(4))
    assert all(is_held_out(picture) for picture in pictures(4, held_out=True))
    rng = random.Random(5)
    assert not any(is_held_out(draw_clip(rng)) for _ in range(50))
    assert all(is_held_out(draw_clip(rng, held_out=True)) for _ in range(50))


def test_the_split_does_not_look_at_exact_coordinates():
    moved = [Picture((Thing("red", "circle", "large", 0.16 + shift, 0.5),)) for shift in (-0.02, 0.0, 0.02)]
    assert len({is_held_out(picture) for picture in moved}) == 1


def test_about_one_scene_in_ten_is_held_out():
    rng = random.Random(6)
    lone = [Picture((draw_thing(rng, rng.randrange(9)),)) for _ in range(3000)]
    assert 0.07 < sum(map(is_held_out, lone)) / len(lone) < 0.13


def test_the_mover_moves_the_way_the_clip_says():
    rng = random.Random(8)
    for _ in range(40):
        clip = draw_clip(rng, event="move")
        dx, dy = DIRECTIONS[clip.direction]
        places = [next(t for t in frame.things if t.name == clip.subjects[0].name) for frame in clip.frames]
        for before, after in itertools.pairwise(places):
            assert (after.x - before.x) * dx >= 0
            assert (after.y - before.y) * dy >= 0
            assert (after.x, after.y) != (before.x, before.y)


def test_a_flash_is_dark_before_it_comes_again():
    rng = random.Random(9)
    for _ in range(60):
        clip = draw_clip(rng, event="flash")
        lit = [clip.subjects[0] in frame.things for frame in clip.frames]
        starts = sum(now and not before for before, now in zip([False, *lit], lit, strict=False))
        assert starts == sum(lit) == clip.flashes
        assert len(clip.frames) == CLIP_SECONDS


def test_things_come_in_the_order_that_the_clip_says():
    rng = random.Random(10)
    for _ in range(40):
        clip = draw_clip(rng, event="order")
        shown = [frame.things[0] for frame in clip.frames]
        assert tuple(dict.fromkeys(shown)) == clip.subjects
        assert all(len(frame.things) == 1 for frame in clip.frames)


@pytest.mark.parametrize(
    ("x", "y", "place"), [(0.1, 0.1, "top left"), (0.5, 0.5, "centre"), (0.99, 1.0, "bottom right")]
)
def test_a_place_is_named_by_where_the_centre_lies(x, y, place):
    assert Thing("red", "star", "small", x, y).place == place
