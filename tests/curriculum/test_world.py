"""Objectives of the synthetic world: what their samples hold, and what features and probes are held to."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from runs import NEW_MODELS, WORLD_TREE
from safetensors.torch import load_file

from longview.curriculum import conversations
from longview.curriculum.contents import Contents, Places
from longview.curriculum.conversations import Answers
from longview.curriculum.pool import paint_pool
from longview.curriculum.samples import draw_sample
from longview.curriculum.settings import PoolSettings, WorldSettings
from longview.curriculum.world import WorldObjective
from longview.errors import RecipeError
from longview.messages import Message, Part, ask
from longview.train import run as training
from longview.train.build import open_model
from longview.train.optimizers import make_optimizers, select_parts
from longview.train.recipe import Recipe, Stage, from_tree
from longview.train.saved.folder import newest_checkpoint
from longview.world.questions import describe

ENDS = {"owl3": "<|im_end|><|endoftext|>", "ovis2": "<|im_end|>"}


@pytest.fixture(scope="module", params=NEW_MODELS)
def recipe(request) -> Recipe:
    return from_tree(WORLD_TREE | {"model": NEW_MODELS[request.param]})


def of_world(stage: Stage, **settings) -> Stage:
    """A stage with other settings of its world."""
    return dataclasses.replace(stage, world=dataclasses.replace(stage.world, **settings))


def attached(kind, stage: Stage, model, processor, folder: Path, **changes) -> WorldObjective:
    """An objective of 24 pixels' pictures, ready for its first step."""
    stage = dataclasses.replace(stage, **changes)
    objective = kind(dataclasses.replace(from_tree(WORLD_TREE), stages=[stage], seed=1), 0)
    select_parts(model, stage.train)
    objective.attach(model, processor, folder)
    objective.prepare(lambda done, total, label: None)
    return objective


def loss_of(objective: WorldObjective, step: int) -> float:
    (batch,), _ = objective.batches(step)
    return objective.loss(batch)[0].item()


def weights(output: Path) -> dict[str, torch.Tensor]:
    folder = newest_checkpoint(output)
    assert folder is not None
    return load_file(folder / "model.safetensors")


def test_the_learned_tokens_are_exactly_the_assistants_words(recipe, tmp_path):
    _, processor = open_model(recipe, tmp_path)
    pool = paint_pool(PoolSettings(pictures=12, clips=2), 24, seed=3)
    rng = random.Random(0)
    for kind in ("1", "3", "clip"):
        sample = draw_sample(rng, pool, WorldSettings(turns=3, captions=0.5), kind)
        inputs = processor.prepare(sample.messages, sample.media, train=True).load_pixels()
        learned = inputs["labels"][0]
        expected = "".join(
            f"{message.text}{ENDS[recipe.model.family]}" for message in sample.messages if message.role == "assistant"
        )
        assert processor.tokenizer.decode(learned[learned != -100]) == expected
        assert len(inputs["pixel_values"]) == len(sample.indices) == {"1": 1, "3": 3, "clip": 8}[kind]


def test_painting_is_decided_by_the_seed_and_split():
    settings = PoolSettings(pictures=6, clips=1)
    one, again, other = (paint_pool(settings, 24, seed) for seed in (1, 1, 2))
    assert (one.pixels == again.pixels).all()
    assert (one.pixels != other.pixels).any()
    assert not set(one.pictures) & set(paint_pool(settings, 24, 1, held_out=True).pictures)


def test_a_tiny_model_overfits_eight_samples_by_looking(recipe, tmp_path):
    """The same question about eight pictures: only a look tells the answers apart."""
    torch.manual_seed(0)
    model, processor = open_model(recipe, tmp_path)
    pool = paint_pool(PoolSettings(pictures=8, clips=0, simple=1.0), 24, seed=0)
    samples = [
        ([ask("What is this?", Part("image")), Message.of("assistant", describe(picture))], [pool.medium(index)])
        for index, picture in enumerate(pool.pictures)
    ]
    batch = processor.collate([processor.prepare(messages, media, train=True) for messages, media in samples])
    (optimizer,) = make_optimizers(dict(model.named_parameters()), Stage("x", "answers", [], learning_rate=2e-3))
    for _ in range(320):
        loss = model(**batch, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    blind = dict(batch) | {"pixel_values": torch.zeros_like(batch["pixel_values"])}
    assert model(**blind, use_cache=False).loss.item() > 0.3


def test_pictures_seen_once_teach_what_pictures_seen_each_time_do(recipe, tmp_path):
    model, processor = open_model(recipe, tmp_path)
    objective = attached(Answers, recipe.stages[1], model, processor, tmp_path, train=["language"])
    each_time = loss_of(objective, 3)
    objective.begin(lambda done, total, label: None)
    assert objective.world.features is not None
    assert loss_of(objective, 3) == pytest.approx(each_time, abs=1e-4)
    objective.world.features += 1
    assert loss_of(objective, 3) != pytest.approx(each_time, abs=1e-2)


def test_a_stage_that_teaches_language_alone_encodes_once_and_leaves_the_rest_as_it_was(recipe, tmp_path, monkeypatch):
    encoded, encode = [], conversations.encode_pool
    monkeypatch.setattr(conversations, "encode_pool", lambda *arguments: encoded.append(1) or encode(*arguments))
    words = dataclasses.replace(recipe.stages[1], train=["language"], steps=3)
    stages = [recipe.stages[0], words, dataclasses.replace(words, name="more")]
    training.train(dataclasses.replace(recipe, stages=stages), tmp_path / "run", progress=False)
    assert encoded == [1]
    first = dataclasses.replace(recipe, stages=stages[:1])
    training.train(first, tmp_path / "first", progress=False)
    after, before = weights(tmp_path / "run"), weights(tmp_path / "first")
    patch = next(name for name, tensor in before.items() if tensor.dim() == 4)
    assert torch.equal(after[patch], before[patch])


def test_where_places_are_read_one_by_one_their_mean_need_not_tell_them_apart(recipe, tmp_path):
    model, processor = open_model(recipe, tmp_path)
    losses = []
    for kind in (Contents, Places):
        torch.manual_seed(0)
        objective = attached(kind, recipe.stages[0], model, processor, tmp_path)
        losses.append(objective.loss(objective.batches(0)[0][0]))
    assert losses[1][0].item() == pytest.approx(9 * losses[1][1]["each"] + losses[1][1]["signs"], abs=1e-2)
    assert losses[0][0] > losses[1][0] + 10


def test_a_probe_needs_three_blocks_after_it(recipe, tmp_path):
    stages = [of_world(recipe.stages[1], probe_layer=2)]
    with pytest.raises(RecipeError, match="three blocks must follow"):
        training.train(dataclasses.replace(recipe, stages=stages), tmp_path / "run", progress=False)
