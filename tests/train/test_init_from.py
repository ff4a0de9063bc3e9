"""Pieces that a model is made of: learned by runs of their own, put together by another."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random

import numpy
import pytest
import torch
from safetensors.torch import load_file
from train.test_run import OVIS2, TREE

import longview
from longview.curriculum.objectives import Readers, Told, mentions_in, told_loss
from longview.curriculum.pool import CONTENT_CLASSES, NAMES, PLACE_CLASSES, contents, draw_sample, paint_pool
from longview.errors import RecipeError
from longview.messages import Message
from longview.train import run as training
from longview.train.init_from import match
from longview.train.recipe import MAX_PICTURES, DataPart, Stage, from_tree
from longview.world.naming import facts_held, facts_named
from longview.world.scene_text import scene_text
from longview.world.scenes import COLOURS, SHAPES, SIZES, Clip, Picture, Sign, Thing

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
TOWER = {"image_size": 8, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
         "num_attention_heads": 1}  # fmt: skip
MGM = {
    "family": "mgm",
    "config": {"image_size_aux": 16, "mm_projector_type": "mlp2x_gelu", "text_config": LLAMA, "vision_config": TOWER,
               "vision_aux_config": {"hidden_sizes": [8, 8], "depths": [1, 1]}},
}  # fmt: skip
WORDS = {
    "name": "read", "objective": "words", "train": ["language"], "steps": 3, "tokens": 300, "turns": 2, "warmup": 1,
    "mix": {"1": 1, "2": 1, "clip": 1}, "probe_layer": 1, "probe_weight": 0.1,
}  # fmt: skip
ALIGN = {"name": "align", "train": ["connector"], "steps": 2, "tokens": 150, "turns": 1, "warmup": 1, "keep": True}
SAY = ALIGN | {"name": "say", "train": ["language"], "keep": False}


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A language model that was told of the world in words."""
    output = tmp_path_factory.mktemp("words") / "run"
    return training.train(from_tree({"model": MGM, "data": {"pictures": 24, "clips": 2}, "stages": [WORDS]}), output)


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
    pool = paint_pool(DataPart(pictures=20, clips=2), 0, seed=1)
    assert not pool.pixels.any()
    stage = Stage("read", 1, ["language"], objective="words", turns=3)
    for kind in ("1", "3", "clip"):
        sample = draw_sample(random.Random(4), pool, stage, kind)
        text = sample.messages[0].text
        shown = [pool.pictures[index] for index in sample.indices]
        assert not sample.media
        assert not sample.messages[0].media
        assert text.lower().startswith(scene_text(*shown).text.lower())


def test_a_film_is_asked_about_what_one_of_its_scenes_alone_holds():
    pool = paint_pool(DataPart(pictures=40, clips=0), 0, seed=1)
    pool.pixels = numpy.zeros((40, 4, 4, 3), dtype=numpy.uint8)
    pool.pixels[:] = numpy.arange(40)[:, None, None, None]
    seen = Stage("see", 1, ["language"], turns=4)
    for seed in range(20):
        sample = draw_sample(random.Random(seed), pool, seen, "film")
        assert [medium.kind for medium in sample.media] == ["video"]
        assert [numpy.asarray(frame.image)[0, 0, 0] for frame in sample.media[0].frames] == sample.indices
        assert 1 <= len(sample.questions) <= 2
        for question in sample.questions:
            named = facts_named(question.text)
            holding = [at for at, index in enumerate(sample.indices) if named <= facts_held(pool.pictures[index])]
            assert named
            assert holding == [question.about - 1] == list(question.found_in)
        told = draw_sample(random.Random(seed), pool, dataclasses.replace(seen, objective="words"), "film")
        assert told.questions == sample.questions
        assert told.told == scene_text(*(pool.pictures[index] for index in sample.indices))


def test_a_scene_text_says_where_it_mentions_each_thing(language):
    things = Thing("red", "circle", "small", 0.16, 0.16), Thing("blue", "star", "large", 0.5, 0.5)
    told = scene_text(Picture(things, Sign("42", 2)), Picture(()), Picture(things[1:]))
    assert [told.text[: each.end].split()[-1] for each in told.mentions] == ["circle", "star", "42", "star"]
    assert [(each.picture, each.cell) for each in told.mentions] == [(0, 0), (0, 4), (0, None), (2, 4)]
    processor = longview.load(language).processor
    messages = [longview.ask(f"{told.text}\nWhat is this?"), Message.of("assistant", "stop")]
    row = processor.prepare(messages, [], train=True).text_inputs["input_ids"][0].tolist()
    ends = mentions_in(processor.tokenizer, row, told)
    assert [processor.tokenizer.decode(row[end]) for end in ends] == [" circle", " star", "2", " star"]
    assert ends == sorted(set(ends))


def test_what_was_told_is_asked_where_it_was_told_and_nowhere_else():
    """Readers that spell out one feature each are wrong about nothing but what they cannot see."""
    things = Thing("red", "circle", "small", 0.16, 0.16), Thing("blue", "star", "large", 0.5, 0.5)
    picture = Picture(things, Sign("stop", 2))
    known = torch.tensor([contents(picture), contents(Picture(()))])
    told = [Told(0, 3, 0, 1, 0), Told(0, 5, 0, 1, 4), Told(0, 9, 0, 1, None)]
    sizes = {"place": sum(PLACE_CLASSES), "cell": 9, "number": MAX_PICTURES, "names": len(NAMES),
             "placeholder": sum(CONTENT_CLASSES)}  # fmt: skip
    readers = Readers(sum(sizes.values()))
    offsets = dict(zip(sizes, itertools.accumulate((0, *sizes.values())), strict=False))
    hidden = torch.zeros(1, 12, sum(sizes.values()))

    def tell(position, name, *choices):
        hidden[0, position, [offsets[name] + choice for choice in choices]] = 1.0

    with torch.no_grad():
        for name, offset in offsets.items():
            readers[name].weight.zero_()
            readers[name].weight[:, offset : offset + sizes[name]] = 100 * torch.eye(sizes[name])
            readers[name].bias.fill_(-50.0)
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
    assert told_loss(readers, hidden, told, known) < 1e-3
    elsewhere = [each._replace(position=each.position + 1) for each in told]
    for wrong in (elsewhere, [told[0]._replace(cell=4)], [told[1]._replace(number=2)], [told[2]._replace(picture=1)]):
        assert told_loss(readers, hidden, wrong, known) > 10
    told_loss(readers, hidden, elsewhere, known).backward()
    assert set(hidden.grad.abs().sum(-1).nonzero()[:, 1].tolist()) == {4, 6, 10}


def test_a_language_model_is_told_of_the_world_without_seeing_it(language):
    log = [json.loads(line) for line in (language.parent / "log.jsonl").read_text().splitlines()]
    assert log[-1]["probe"] > 0
    assert log[-1]["asked"] > 0
    assert isinstance(longview.load(language).answer([longview.ask("What is this?")]).text, str)


@pytest.mark.parametrize("family", ["owl3", "ovis2"])
def test_a_new_model_begins_with_a_language_model_that_exists(language, tmp_path, family):
    model = (TREE["model"] if family == "owl3" else OVIS2) | {"parts": {"language": str(language)}}
    recipe = from_tree({"model": model, "data": {"pictures": 24, "clips": 2}, "stages": [ALIGN]})
    training.train(recipe, tmp_path / "run", progress=False)
    found = load_file(tmp_path / "run" / "checkpoint-0000002" / "model.safetensors")
    given = load_file(language / "model.safetensors")
    name = {"owl3": "language_model.", "ovis2": "llm."}[family]
    for end in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        assert torch.equal(found[name + end], given[end].float()), end
    assert not found[f"{name}model.layers.1.self_attn.q_proj.bias"].any(), "a Llama has no offsets"
    assert (tmp_path / "run" / "model" / "tokenizer.json").read_text() == (language / "tokenizer.json").read_text()
    read = json.loads((tmp_path / "run" / "parts.json").read_text())
    assert list(read) == [f"{language}/model.safetensors"]
    assert len(read[f"{language}/model.safetensors"]) == 64


def test_a_model_is_kept_after_a_stage_as_it_was_then(language, tmp_path):
    tree = {"model": OVIS2 | {"parts": {"language": str(language)}}, "data": {"pictures": 24, "clips": 2}}
    output = training.train(from_tree(tree | {"stages": [ALIGN, SAY]}), tmp_path / "run", progress=False)
    kept, last = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "after" / "align", output))
    name = "llm.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(kept[name], load_file(language / "model.safetensors")[name[4:]])
    assert not torch.equal(kept[name], last[name])
    assert not (tmp_path / "run" / "after" / "say").exists()
    longview.load(tmp_path / "run" / "after" / "align")


def test_a_run_that_ends_before_it_kept_a_model_keeps_it_when_resumed(language, tmp_path, monkeypatch):
    tree = {"model": OVIS2 | {"parts": {"language": str(language)}}, "data": {"pictures": 24, "clips": 2}}
    recipe = from_tree(tree | {"stages": [ALIGN, SAY]})

    def crash(*_):
        raise OSError("power is gone")

    monkeypatch.setattr(training, "_keep", crash)
    with pytest.raises(OSError, match="power"):
        training.train(recipe, tmp_path / "run", progress=False)
    monkeypatch.undo()
    training.train(recipe, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "after" / "align" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"eyes": "demo"}, r"names 'eyes'; the model's parts are vision, connector, language"),
        ({"language": "demo"}, r"model\.parts\.language: .* is \(\d+, 128\).*give model\.config the sizes of the part"),
        ({"vision": "demo"}, r"model\.parts\.vision: demo has nothing for 'visual_tokenizer\.backbone"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, parts, message):
    recipe = from_tree({"model": OVIS2 | {"parts": parts}, "data": {"pictures": 24, "clips": 2}, "stages": [SAY]})
    with pytest.raises(RecipeError, match=message):
        training.train(recipe, tmp_path / "run", progress=False)


def test_parts_are_for_new_models_and_keep_for_whole_ones():
    with pytest.raises(RecipeError, match=r"model\.parts is for a new model"):
        training.check(from_tree({"model": {"start": "demo", "parts": {"language": "demo"}}, "stages": [SAY]}))
    users = {"name": "u", "objective": "supervised", "train": ["language"], "steps": 1, "datasets": [{"path": "x"}]}
    model = {"start": "demo", "adapter": {}}
    with pytest.raises(RecipeError, match=r"stages\.u\.keep is for whole models"):
        training.check(from_tree({"model": model, "stages": [users | {"keep": True}]}))
    assert not dataclasses.asdict(from_tree({"model": model, "stages": [users]}))["stages"][0]["keep"]


def test_tensors_are_matched_by_what_their_names_end_in():
    wanted = ["llm.model.norm.weight", "llm.model.layers.0.w"]
    inside = {f"language_model.{name[4:]}" for name in wanted}
    assert match(wanted, sorted(inside), ("llm.",)) == {n: f"language_model.{n[4:]}" for n in wanted}
    assert match(wanted, [name[4:] for name in wanted], ("llm.",)) == {n: n[4:] for n in wanted}
    assert match(wanted, ["vision.norm.weight"], ("llm.",)) == {}
