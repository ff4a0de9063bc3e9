"""Frames that follow each other are one moment; rankings are fused as by hand."""

from __future__ import annotations

import pytest

from longview.index.moments import FUSION, fuse, moments
from longview.index.store import Hit, Item


def frame(second, score, digest="a", shot=0, last=1.0):
    return Hit(Item("frame", "image", digest, int(second * 4), second, second + last, shot), score)


def spans(hits, **settings):
    return [(each.path, each.begin, each.end, each.at) for each in moments(hits, **settings)]


def test_neighbours_are_one_moment_and_its_best_frame_is_told():
    assert spans([frame(2, 0.30), frame(1, 0.29), frame(3, 0.28)]) == [("a", 1, 4, 2)]


def test_a_gap_another_shot_another_file_and_a_much_worse_frame_end_a_moment():
    assert spans([frame(1, 0.3), frame(3, 0.3)]) == [("a", 1, 2, 1), ("a", 3, 4, 3)]
    assert spans([frame(1, 0.3), frame(2, 0.29, shot=1)]) == [("a", 1, 2, 1), ("a", 2, 3, 2)]
    assert spans([frame(1, 0.3), frame(2, 0.29, digest="b")]) == [("a", 1, 2, 1), ("b", 2, 3, 2)]
    assert spans([frame(1, 0.3), frame(2, 0.2)]) == [("a", 1, 2, 1), ("a", 2, 3, 2)]
    assert spans([frame(1, 0.3), frame(2, 0.2)], margin=None) == [("a", 1, 3, 1)]


def test_a_frame_that_stands_for_those_left_out_after_it_reaches_the_next():
    assert spans([frame(0, 0.3, last=5.0), frame(5, 0.3)]) == [("a", 0, 6, 0)]


def test_a_passage_with_several_vectors_is_found_once_by_its_best():
    passage = [
        Hit(Item("passage", of, "a", 3, text="t", source="s"), score) for of, score in [("text", 0.2), ("image", 0.5)]
    ]
    (found,) = moments(passage)
    assert (found.kind, found.score, found.text, found.source, found.place) == ("passage", 0.5, "t", "s", 3)


def test_rankings_are_fused_by_reciprocal_ranks():
    a, b, c = (frame(second, 0.5) for second in (1, 5, 9))
    fused = fuse([[[a, b]], [[b, c]]])
    assert [hit.item for hit in fused] == [b.item, a.item, c.item]
    first, second = 1 / (FUSION + 1), 1 / (FUSION + 2)
    assert [hit.score for hit in fused] == pytest.approx([first + second, first, second])
    assert fuse([[[a, b], []]]) == [a, b]
    assert fuse([]) == []


def test_an_item_of_two_sorts_has_no_advantage_over_one_of_one_sort():
    both, text = (Hit(Item("passage", "text", "a", place), 0.5) for place in (0, 1))
    assert [hit.item.place for hit in fuse([[[both], [text, both]]])] == [0, 1]
    assert [hit.item.place for hit in fuse([[[frame(1, 0.9), both], [text, both]]])][-1] == 0
