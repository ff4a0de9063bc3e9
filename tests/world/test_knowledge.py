"""Names of things are drawn anew, and pictures of one thing alone come from the side of the split that is asked for."""

from __future__ import annotations

import random

import pytest

from longview.world.knowledge import KINDS, alone, ask_name, draw_alone, draw_names, passage_text
from longview.world.scenes import is_held_out


def test_names_and_kinds_are_all_different_and_another_seed_names_otherwise():
    named, other = (draw_names(random.Random(seed), 24) for seed in (0, 1))
    assert len({each.kind for each in named}) == len({each.name for each in named}) == 24
    assert named != other


def test_a_thing_alone_is_on_its_side_of_the_split_and_never_twice_in_the_same_place():
    sides = {kind: [len(alone(kind, held_out)) for held_out in (False, True)] for kind in KINDS}
    assert all(sum(counts) == 18 for counts in sides.values())
    kind = max(KINDS, key=lambda each: sides[each][1])
    pictures = draw_alone(random.Random(0), kind, True, sides[kind][1])
    assert all(is_held_out(picture) for picture in pictures)
    assert all([(thing.colour, thing.shape) for thing in picture.things] == [kind] for picture in pictures)
    assert len({(picture.things[0].size, picture.things[0].cell) for picture in pictures}) == len(pictures)
    with pytest.raises(ValueError, match=r"[Ss]ample"):
        draw_alone(random.Random(0), kind, True, sides[kind][1] + 1)


def test_what_is_shown_need_not_be_named():
    rng = random.Random(0)
    (named,) = draw_names(rng, 1)
    whole = f"{named.colour} {named.shape}"
    assert all(whole in ask_name(rng, named, shown=False).text for _ in range(20))
    assert not any(whole in ask_name(rng, named, shown=True).text for _ in range(20))
    assert {whole in passage_text(rng, named, shown=True) for _ in range(30)} == {True, False}
    assert all(named.name in passage_text(rng, named, shown=True) for _ in range(5))
