"""Samples of the prompt of knowledge: what they teach is true, and laid out as `longview ask` lays them out."""

from __future__ import annotations

import random
import re

import pytest
from runs import WORLD_TREE

from longview.curriculum.pool import Pool, paint_pool
from longview.curriculum.samples import WorldSample, draw_sample
from longview.curriculum.settings import PoolSettings, WorldSettings
from longview.errors import RecipeError
from longview.index.answer import CLAIM, INTRODUCTION, claimed_in
from longview.train.recipe import check, from_tree
from longview.world.knowledge import UNKNOWN
from longview.world.naming import facts_held, facts_named


@pytest.fixture(scope="module")
def pool() -> Pool:
    return paint_pool(PoolSettings(pictures=800, clips=1, simple=0.4), 12, seed=3)


@pytest.fixture(scope="module")
def samples(pool) -> list[WorldSample]:
    rng = random.Random(0)
    return [draw_sample(rng, pool, WorldSettings(), "knowledge") for _ in range(300)]


def text_of(message) -> str:
    return "".join(part.text or "▣" for part in message.parts)


def test_media_and_pictures_of_the_pool_are_in_the_order_of_the_parts(samples):
    for sample in samples:
        parts = [part for message in sample.messages for part in message.parts if part.type != "text"]
        assert [part.type for part in parts] == [medium.kind for medium in sample.media]
        assert sum(len(medium.frames) for medium in sample.media) == len(sample.indices)


def test_a_claim_names_the_piece_that_tells_and_where_none_tells_the_answer_says_so(pool, samples):
    told = unknown = 0
    for sample in samples:
        first = text_of(sample.messages[0])
        pieces = dict(re.findall(r"^Knowledge (\d+): (.*)$", first, re.MULTILINE))
        assert first.startswith(INTRODUCTION) == bool(pieces)
        assert (CLAIM in first) == bool(pieces)
        for question, answer in zip(sample.questions, sample.messages[1::2], strict=True):
            said = text_of(answer)
            if said == UNKNOWN:
                unknown += 1
                assert question.about == 0
                continue
            told += 1
            (number,) = claimed_in(said)
            assert str(number) in pieces
            assert said == f"{question.answer}, based on knowledge {number}."
            if question.kind == "name":
                assert f"called {question.answer}." in pieces[str(number)]
            if question.about:
                picture = pool.pictures[sample.indices[question.about - 1]]
                assert question.kind == "name" or facts_named(question.text) <= facts_held(picture)
    assert told > 3 * unknown > 60


def test_numbers_have_gaps_and_pieces_are_of_all_kinds(samples):
    firsts = [text_of(sample.messages[0]) for sample in samples]
    numbers = [[int(number) for number in re.findall(r"^Knowledge (\d+):", first, re.MULTILINE)] for first in firsts]
    assert any(each and each != list(range(1, len(each) + 1)) for each in numbers)
    assert any(not each for each in numbers)
    assert {medium.kind for sample in samples for medium in sample.media} == {"image", "video"}
    assert any(re.search(r"^Knowledge \d+: The ", first, re.MULTILINE) for first in firsts), "without a picture"


def test_passages_alone_tell_every_answer_in_text(pool):
    rng = random.Random(0)
    counts = set()
    for sample in (draw_sample(rng, pool, WorldSettings(), "passages") for _ in range(100)):
        assert sample.media == []
        assert sample.indices == []
        pieces = dict(re.findall(r"^Knowledge (\d+): (.*)$", text_of(sample.messages[0]), re.MULTILINE))
        counts.add(len(pieces))
        asked = list(zip(sample.messages[::2], sample.messages[1::2], strict=True))
        assert len(asked) == WorldSettings().turns
        for question, answer in asked:
            said = text_of(answer)
            (number,) = claimed_in(said)
            (kind,) = {fact for fact in facts_named(text_of(question).splitlines()[-2]) if len(fact.split()) == 2}
            name = said.partition(",")[0]
            assert pieces[str(number)] == f"The {kind} is called {name}."
            assert sum(f" {kind} " in piece for piece in pieces.values()) == 1
    assert counts == set(range(1, 7))


def test_a_recipe_without_things_alone_is_refused():
    tree = {**WORLD_TREE, "pool": {"pictures": 10, "clips": 1, "simple": 0.0}}
    tree["stages"] = [WORLD_TREE["stages"][1] | {"world": {"mix": {"knowledge": 1}}}]
    with pytest.raises(RecipeError, match=r"mix holds knowledge, but pool\.simple is 0"):
        check(from_tree(tree))
