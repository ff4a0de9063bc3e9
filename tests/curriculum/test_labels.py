from __future__ import annotations

import torch

from longview.curriculum.labels import CONTENT_CLASSES, NAMES, labels_of, names_held, names_in
from longview.world.scenes import COLOURS, SHAPES, SIZES, WORDS, Picture, Sign, Thing


def test_contents_say_what_stands_where_and_nothing_else():
    picture = Picture((Thing("blue", "star", "small", 0.5, 0.1),), Sign("stop", 2))
    labels = labels_of(picture)
    found = {index: choice for index, choice in enumerate(labels) if choice}
    assert found == {
        1: 1 + COLOURS.index("blue"),
        10: 1 + SHAPES.index("star"),
        19: 1 + SIZES.index("small"),
        27: 3,
        28: 1 + WORDS.index("stop"),
    }
    assert len(labels) == len(CONTENT_CLASSES)


def test_numbers_are_told_by_their_digits():
    assert labels_of(Picture((), Sign("47", 0)))[27:] == [1, 0, 5, 8]
    assert labels_of(Picture((), Sign("7", 0)))[27:] == [1, 0, 0, 8]


def test_every_choice_is_below_its_number_of_classes():
    corner = Thing(COLOURS[-1], SHAPES[-1], SIZES[-1], 0.99, 0.99)
    for sign in (None, Sign(WORDS[-1], 0), Sign("99", 0)):
        labels = labels_of(Picture((corner,), sign))
        assert all(choice < classes for choice, classes in zip(labels, CONTENT_CLASSES, strict=True))


def test_a_text_names_colours_and_shapes_also_in_the_plural():
    named = {name for name, there in zip(NAMES, names_in("How many Red circles, and crosses?"), strict=True) if there}
    assert named == {"red", "circle", "cross"}
    assert not any(names_in("What is covered in stardust?"))


def test_names_are_held_by_the_places_that_show_them():
    picture = Picture((Thing("blue", "star", "small", 0.5, 0.1), Thing("black", "heart", "large", 0.9, 0.9)))
    told = torch.tensor([labels_of(picture)])
    for places, names in (([0, 1], {"blue", "star"}), ([8], {"black", "heart"}), ([2, 3, 4], set())):
        held = names_held(told, places)[0]
        assert {name for name, there in zip(NAMES, held, strict=True) if there} == names
