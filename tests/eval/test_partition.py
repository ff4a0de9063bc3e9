"""A protocol's number of crops, against what the processor's own settings say."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from samples import noise

import longview
from longview.engine.score import Question
from longview.errors import RequestError
from longview.eval.ask import EngineAsker
from longview.eval.items import Item, Protocol, Shown
from longview.messages import Message, ask, image

SIDE = 3 * 96
"""Pixels of a picture that asks for as many crops as there may be."""


@pytest.fixture(scope="module")
def ovis():
    return longview.load("demo-ovis2")


@pytest.fixture(scope="module")
def owl():
    return longview.load("demo-owl3")


def item(count: int) -> Item:
    pictures = [noise(number, SIDE, SIDE) for number in range(count)]
    shown = tuple(Shown("image", lambda p=p: p, str(n)) for n, p in enumerate(pictures))
    return Item("1", "What is it?", "A", shown, ("a", "b"))


PROTOCOL = Protocol(lambda item: [*item.shown, item.question], max_tokens=1)


@pytest.mark.parametrize("count", [1, 2])
def test_a_protocols_crops_are_those_of_one_and_of_several_pictures(ovis, count):
    def tokens(most: int | None) -> int:
        (reply,) = EngineAsker(ovis).answers([item(count)], dataclasses.replace(PROTOCOL, max_partition=most))
        return reply.tokens

    def asked(most: int) -> int:
        answer = ovis.answer([Message.of("user", *PROTOCOL.parts(item(count)))], max_tokens=1, max_partition=most)
        assert answer.receipt.settings["max_partition"] == most
        assert [frame.crops for frame in answer.receipt.frames] == [most + (most > 1)] * count
        return answer.receipt.usage.prompt_tokens

    usual = tokens(None)
    assert [tokens(most) for most in (1, 4, 9)] == [asked(most) for most in (1, 4, 9)]
    assert tokens(1) < tokens(4) < tokens(9)
    assert tokens(None) == usual


def test_a_choice_by_probability_is_made_with_the_protocols_crops(ovis, monkeypatch):
    given = []
    whole = ovis.ascore

    def scored(*arguments, **settings):
        given.append(settings)
        return whole(*arguments, **settings)

    monkeypatch.setattr(ovis, "ascore", scored)
    protocol = dataclasses.replace(PROTOCOL, max_partition=4)
    likely = [reply.logprobs for reply in EngineAsker(ovis).choices([item(1)], protocol)]
    protocol = dataclasses.replace(PROTOCOL, max_partition=1)
    assert likely != [reply.logprobs for reply in EngineAsker(ovis).choices([item(1)], protocol)]
    assert given == [{"max_partition": 4}, {"max_partition": 1}]


def test_a_model_that_does_not_ask_is_asked_without(owl):
    protocol = dataclasses.replace(PROTOCOL, max_partition=4)
    (reply,) = EngineAsker(owl).answers([item(1)], protocol)
    assert reply.tokens
    with pytest.raises(RequestError, match=r"max_partition is how many crops .* this model does not ask; leave it out"):
        owl.answer("What?", max_partition=4)


@pytest.mark.parametrize("most", [0, 65, 1.5, "4", True])
def test_a_number_of_crops_is_a_whole_one_from_1_to_64(ovis, most):
    with pytest.raises(RequestError, match=r"max_partition is .*; give a whole number at least 1 and at most 64"):
        ovis.answer("What?", max_partition=most)


def test_what_is_scored_is_cut_as_what_was_answered(ovis):
    async def score(**settings):
        (scores,) = await ovis.ascore([ask("", image(noise(0, SIDE, SIDE)))], [Question((), ("A",))], **settings)
        return scores.receipt.usage.prompt_tokens

    assert asyncio.run(score(max_partition=9)) > asyncio.run(score(max_partition=1))
    assert asyncio.run(score(max_partition=9, num_media=2)) == asyncio.run(score(max_partition=9))
