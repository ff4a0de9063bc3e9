"""`objective: words`: scenes described in text, and what the probes ask where each fact has been stated."""

from __future__ import annotations

import itertools
import json
import random

import numpy
import pytest
import torch
from runs import train_language_model

import longview
from longview.curriculum.labels import CONTENT_CLASSES, NAMES, PLACE_CLASSES, labels_of
from longview.curriculum.pool import paint_pool
from longview.curriculum.probes import FactToken, LinearProbes, fact_ends, fact_loss
from longview.curriculum.samples import draw_sample
from longview.curriculum.settings import MAX_PICTURES, PoolSettings, WorldSettings
from longview.messages import Message
from longview.world.naming import facts_held, facts_named
from longview.world.scene_text import scene_text
from longview.world.scenes import COLOURS, SHAPES, SIZES, Clip, Picture, Sign, Thing


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return train_language_model(tmp_path_factory.mktemp("words") / "run")


def test_a_scene_is_told_place_by_place():
    things = Thing("red", "circle", "small", 0.16, 0.16), Thing("blue", "star", "large", 0.5, 0.5)
    picture = Picture(things, Sign("stop", 2))
    told = "top left: small red circle; centre: large blue star; bottom: sign that says stop"
    assert scene_text(picture).text == told
    assert scene_text(Picture((), Sign("tea", 1, cell=5))).text == "right: small print that says tea"
    clip = Clip("order", (Picture(()), picture), things)
    assert scene_text(clip).text == f"Image 1: nothing\nImage 2: {told}"
    assert scene_text(picture, Picture(())).text == f"Image 1: {told}\nImage 2: nothing"


def test_a_sample_in_words_holds_all_that_its_answers_need_and_no_media():
    pool = paint_pool(PoolSettings(pictures=20, clips=2), 0, seed=1)
    assert not pool.pixels.any()
    settings = WorldSettings(turns=3)
    for kind in ("1", "3", "clip"):
        sample = draw_sample(random.Random(4), pool, settings, kind, in_text=True)
        text = sample.messages[0].text
        shown = [pool.pictures[index] for index in sample.indices]
        assert not sample.media
        assert not sample.messages[0].media
        assert text.lower().startswith(scene_text(*shown).text.lower())


def test_a_film_is_asked_about_what_one_of_its_scenes_alone_holds():
    pool = paint_pool(PoolSettings(pictures=40, clips=0), 0, seed=1)
    pool.pixels = numpy.zeros((40, 4, 4, 3), dtype=numpy.uint8)
    pool.pixels[:] = numpy.arange(40)[:, None, None, None]
    settings = WorldSettings(turns=4)
    for seed in range(20):
        sample = draw_sample(random.Random(seed), pool, settings, "film")
        assert [medium.kind for medium in sample.media] == ["video"]
        assert [numpy.asarray(frame.image)[0, 0, 0] for frame in sample.media[0].frames] == sample.indices
        assert 1 <= len(sample.questions) <= 2
        for question in sample.questions:
            named = facts_named(question.text)
            holding = [at for at, index in enumerate(sample.indices) if named <= facts_held(pool.pictures[index])]
            assert named
            assert holding == [question.about - 1] == list(question.found_in)
        told = draw_sample(random.Random(seed), pool, settings, "film", in_text=True)
        assert told.questions == sample.questions
        assert told.description == scene_text(*(pool.pictures[index] for index in sample.indices))


def test_a_scene_text_says_where_it_mentions_each_thing(language):
    things = Thing("red", "circle", "small", 0.16, 0.16), Thing("blue", "star", "large", 0.5, 0.5)
    told = scene_text(Picture(things, Sign("42", 2)), Picture(()), Picture(things[1:]))
    assert [told.text[: mention.end].split()[-1] for mention in told.mentions] == ["circle", "star", "42", "star"]
    assert [(mention.picture, mention.cell) for mention in told.mentions] == [(0, 0), (0, 4), (0, None), (2, 4)]
    processor = longview.load(language).processor
    messages = [longview.ask(f"{told.text}\nWhat is this?"), Message.of("assistant", "stop")]
    row = processor.prepare(messages, [], train=True).text_inputs["input_ids"][0].tolist()
    ends = fact_ends(processor.tokenizer, row, told)
    assert [processor.tokenizer.decode(row[end]) for end in ends] == [" circle", " star", "2", " star"]
    assert ends == sorted(set(ends))


def test_what_was_told_is_asked_where_it_was_told_and_nowhere_else():
    """Probes that spell out one feature each are wrong about nothing but what they cannot see."""
    things = Thing("red", "circle", "small", 0.16, 0.16), Thing("blue", "star", "large", 0.5, 0.5)
    picture = Picture(things, Sign("stop", 2))
    known = torch.tensor([labels_of(picture), labels_of(Picture(()))])
    told = [FactToken(0, 3, 0, 1, 0), FactToken(0, 5, 0, 1, 4), FactToken(0, 9, 0, 1, None)]
    sizes = {"place": sum(PLACE_CLASSES), "cell": 9, "number": MAX_PICTURES, "names": len(NAMES),
             "placeholder": sum(CONTENT_CLASSES)}  # fmt: skip
    probes = LinearProbes(sum(sizes.values()))
    offsets = dict(zip(sizes, itertools.accumulate((0, *sizes.values())), strict=False))
    hidden = torch.zeros(1, 12, sum(sizes.values()))

    def tell(position, name, *choices):
        hidden[0, position, [offsets[name] + choice for choice in choices]] = 1.0

    with torch.no_grad():
        for name, offset in offsets.items():
            probes[name].weight.zero_()
            probes[name].weight[:, offset : offset + sizes[name]] = 100 * torch.eye(sizes[name])
            probes[name].bias.fill_(-50.0)
    colours = len(COLOURS) + 1
    for position, thing in ((3, things[0]), (5, things[1])):
        colour, shape = COLOURS.index(thing.colour), SHAPES.index(thing.shape)
        size = SIZES.index(thing.size)
        tell(position, "place", 1 + colour, colours + 1 + shape, colours + len(SHAPES) + 2 + size)
        tell(position, "cell", thing.cell)
        tell(position, "number", 1)
        tell(position, "names", colour, len(COLOURS) + shape)
    first = sum(CONTENT_CLASSES[:27])
    says = itertools.accumulate((first, *CONTENT_CLASSES[27:30]))
    tell(9, "placeholder", *(begin + choice for begin, choice in zip(says, known[0, 27:].tolist(), strict=True)))
    hidden.requires_grad_()
    assert fact_loss(probes, hidden, told, known) < 1e-3
    elsewhere = [each._replace(position=each.position + 1) for each in told]
    for wrong in (elsewhere, [told[0]._replace(cell=4)], [told[1]._replace(number=2)], [told[2]._replace(picture=1)]):
        assert fact_loss(probes, hidden, wrong, known) > 10
    fact_loss(probes, hidden, elsewhere, known).backward()
    assert set(hidden.grad.abs().sum(-1).nonzero()[:, 1].tolist()) == {4, 6, 10}


def test_a_language_model_is_told_of_the_world_without_seeing_it(language):
    log = [json.loads(line) for line in (language.parent / "log.jsonl").read_text().splitlines()]
    assert log[-1]["probe"] > 0
    assert log[-1]["asked"] > 0
    assert isinstance(longview.load(language).answer([longview.ask("What is this?")]).text, str)
