"""Samples of many pictures, long films, and pictures that are shown close, in crops."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import NEW_MODELS, WORLD_TREE

from longview.curriculum.conversations import Answers, format_of
from longview.curriculum.labels import labels_of
from longview.curriculum.pool import Pool, bits_held, bits_of, paint_pool
from longview.curriculum.probes import LinearProbes, digits
from longview.curriculum.samples import _bits_named, draw_count, draw_sample
from longview.curriculum.settings import PoolSettings, WorldSettings
from longview.curriculum.world import WorldObjective, family_views, shades, shifted, shifted_crops
from longview.errors import RecipeError
from longview.train import run as training
from longview.train.build import open_model
from longview.train.recipe import Recipe, check, from_tree
from longview.world.render import SIDE, render

CUT = {
    "owl3": {"cut_enable": True, "cut_pictures": 1},
    "ovis2": NEW_MODELS["ovis2"]["processor"] | {"max_partition": 9, "max_partition_of_several": 1},
}

VIEWS = {"owl3": 5, "ovis2": 10}
"""Of a square picture: four or nine crops, and the whole."""


def recipe_of(family: str, **world) -> Recipe:
    """A stage of answers by a model whose family cuts single pictures."""
    stage = WORLD_TREE["stages"][1] | {"train": ["vision", "connector", "language"]}
    stage["world"] = stage["world"] | {"mix": {"close": 1}} | world
    pool = {"pictures": 60, "clips": 1, "signs": 0.5, "prints": 0.5, "close": 6}
    model = NEW_MODELS[family] | {"processor": CUT[family]}
    return from_tree({"model": model, "pool": pool, "stages": [stage]})


@pytest.fixture(params=CUT)
def family(request) -> str:
    return request.param


def attached(recipe: Recipe, folder: Path) -> Answers:
    torch.manual_seed(0)
    model, processor = open_model(recipe, folder)
    objective = Answers(recipe, 0)
    objective.attach(model, processor, folder)
    objective.prepare(lambda done, total, label: None)
    objective.begin(lambda done, total, label: None)
    return objective


@pytest.fixture(scope="module")
def pool() -> Pool:
    return paint_pool(PoolSettings(pictures=400, clips=1), 24, seed=3)


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "count"), [("many", 1), ("many", 7), ("many", 40), ("film", 30)])
def test_what_is_asked_about_many_pictures_is_true_of_one_alone(pool, kind, count):
    rng = random.Random(0)
    named = which = 0
    for _ in range(12):
        sample = draw_sample(rng, pool, WorldSettings(), kind, count=count)
        assert len(sample.indices) == count
        pictures = [pool.pictures[index] for index in sample.indices]
        for question in sample.questions:
            if question.kind == "which image":
                which += 1
                assert question.answer == str(question.found_in[0] + 1)
            if kind == "film" and question.found_in:
                named += 1
                bits = _bits_named(question.text)
                held = [place for place, picture in enumerate(pictures) if bits and not bits & ~bits_held(picture)]
                assert held == list(question.found_in) or not bits
    assert bool(which) is (kind == "many" and count > 1), "frames of a film have no numbers"
    assert named or kind == "many"


def test_many_pictures_stand_in_lines_behind_their_numbers(pool):
    sample = draw_sample(random.Random(0), pool, WorldSettings(), "many", count=12)
    parts = sample.messages[0].parts
    texts = [part.text for part in parts if part.type == "text"]
    assert [text for text in texts if text.startswith("Image ")] == [f"Image {number}: " for number in range(1, 13)]
    assert sum(part.type == "image" for part in parts) == len(sample.media) == 12
    assert len(sample.questions) == WorldSettings().turns
    more = draw_sample(random.Random(0), pool, WorldSettings(), "many", count=30)
    assert len(more.questions) == 2 * WorldSettings().turns, "they are encoded once for all of them"


def test_pictures_whose_numbers_have_gaps_are_asked_about_by_their_numbers(pool):
    rng, settings = random.Random(0), WorldSettings(most=20, numbers=300)
    gaps = kinds = ordinals = 0
    for _ in range(40):
        sample = draw_sample(rng, pool, settings, "many", count=20)
        texts = [part.text for part in sample.messages[0].parts if part.type == "text" and part.text]
        called = [int(text.split()[1][:-1]) for text in texts if text.startswith("Image ")]
        if not sample.numbers:
            assert called == list(range(1, 21))
            continue
        gaps += 1
        assert called == list(sample.numbers) == sorted(set(called))
        assert max(called) <= 300
        for question in sample.questions:
            ordinals += bool(re.search(r"the \w+(st|nd|rd|th) (image|picture)", question.text))
            if question.kind == "which image":
                kinds += 1
                assert question.answer == str(called[question.about - 1]) in question.choices
            elif question.number:
                kinds += 1
                assert question.number == called[question.about - 1]
                assert re.search(rf"(image|picture) {question.number}\b", question.text, re.IGNORECASE), question.text
    assert 10 < gaps < 30
    assert kinds > 100
    assert not ordinals


def test_counts_grow_to_what_the_stage_wants_and_old_stages_draw_none():
    settings = WorldSettings(most=200, frames=64, grow=100)
    counts = {step: [draw_count(random.Random(n), settings, "many", step) for n in range(300)] for step in (0, 50, 100)}
    assert (min(counts[0]), max(counts[0])) == (1, 8)
    assert 20 < max(counts[50]) <= 41
    assert 180 < max(counts[100]) <= 200
    assert sum(count <= 14 for count in counts[100]) == pytest.approx(150, abs=30), "as many of each order of magnitude"
    longer = dataclasses.replace(settings, least=40)
    assert {draw_count(random.Random(n), longer, "many", 0) for n in range(30)} == {40}
    assert min(draw_count(random.Random(n), longer, "many", 100) for n in range(300)) == 40
    films = [draw_count(random.Random(n), settings, "film", 100) for n in range(300)]
    assert (min(films), max(films)) == (8, 64)
    rng = random.Random(0)
    state = rng.getstate()
    assert [draw_count(rng, WorldSettings(), kind, 5) for kind in ("1", "8", "clip", "film", "close")] == [8] * 5
    assert rng.getstate() == state


def test_bits_tell_colours_shapes_and_both():
    assert bits_of("red", "heart") != bits_of("red", None) != bits_of(None, "heart")
    assert bits_of(None, None) == 0
    rng = random.Random(1)
    pool = paint_pool(PoolSettings(pictures=20, clips=0), 0, 1)
    picture = next(each for each in pool.pictures if each.things)
    thing = rng.choice(picture.things)
    assert bits_held(picture) & bits_of(thing.colour, thing.shape)


# ── close pictures ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_close_pictures_are_those_that_the_family_would_cut(family, tmp_path):
    """Pixels, order and number of crops are those of the family's own way from the picture to the model."""
    recipe = recipe_of(family)
    objective = attached(recipe, tmp_path)
    pool, processor = objective.pool, objective.processor
    assert pool.first_close == len(pool.pictures) - 6 == 60 + 8
    assert len(pool.close[0]) == VIEWS[family]
    views = family_views(processor)
    picture = pool.pictures[-1]
    exact = views(render(picture, 7))
    medium = pool.medium(len(pool.pictures) - 1)
    assert (medium.width, medium.height) == (SIDE, SIDE)
    found = objective.pixels(torch.tensor([len(pool.pictures) - 1]))["pixel_values"]
    assert found.shape == exact.shape
    assert not torch.equal(found[0], found[1])
    (batch,), notes = objective.batches(0)
    assert notes["kind"] == "close"
    assert len(batch.places) == notes["pictures"] * len(pool.close[0])
    loss, noted = objective.loss(batch)
    assert torch.isfinite(loss)
    assert noted["probe"] == 0, "a crop shows a part of its picture alone"


def test_small_print_is_in_close_pictures_alone():
    settings = PoolSettings(pictures=80, clips=0, simple=0, signs=1.0, prints=1.0, close=20)
    cut = np.zeros((2, 3, 24, 24), np.uint8)
    pool = paint_pool(settings, 24, 0, views=lambda image: cut)
    small = [picture.sign is not None and picture.sign.cell is not None for picture in pool.pictures]
    assert not any(small[: pool.first_close])
    assert all(small[pool.first_close :])
    assert len(pool.close) == 20
    assert len(pool.labels) == 100
    assert pool.labels[-1].tolist() == list(labels_of(pool.pictures[-1]))
    without = paint_pool(dataclasses.replace(settings, close=0), 24, 0)
    assert any(picture.sign.cell is not None for picture in without.pictures if picture.sign)


def test_only_what_is_shown_close_is_cut(family, tmp_path):
    objective = attached(recipe_of(family), tmp_path)
    rng = random.Random(0)
    for kind in ("close", "1", "2", "clip"):
        sample = draw_sample(rng, objective.pool, WorldSettings(turns=1), kind)
        media = [objective.pool.medium(index) for index in sample.indices] if kind != "clip" else sample.media
        inputs = objective.processor.prepare(sample.messages, media, True, format_of(kind))
        expected = {"close": VIEWS[family], "1": 1, "2": 2, "clip": 8}[kind]
        assert inputs.num_pictures == expected, kind


def test_a_family_that_cuts_nothing_has_no_close_pictures():
    with pytest.raises(RecipeError, match=r"^pool\.close is for families that cut pictures into crops; leave it out$"):
        paint_pool(PoolSettings(pictures=4, clips=0, close=2), 24, 0)


@pytest.mark.parametrize(
    ("world", "pool", "said"),
    [
        ({"mix": {"close": 1}}, {"close": 0}, "mix holds close, but pool.close is 0; give 1 or more"),
        ({"mix": {"many": 1}, "most": 30, "least": 31}, {}, "least is 31, and most is 30; give no more than that"),
        ({"mix": {"many": 1}, "most": 30, "numbers": 20}, {}, "numbers is 20, and most is 30; give 30 or more, or 0"),
        ({"mix": {"many": 1}, "most": 61}, {}, "mix holds many, but pool.pictures is 60; give 61 or more"),
        ({"mix": {"film": 1}, "frames": 64}, {}, "mix holds film, but pool.pictures is 60; give 64 or more"),
        ({"mix": {"few": 1}}, {}, "its keys are 1 … 8 (pictures), many, close, clip, film, knowledge and passages"),
        ({"most": 1000}, {}, "most"),
        ({"frames": 7}, {}, "frames"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(world, pool, said):
    tree = {"model": NEW_MODELS["owl3"], "pool": {"pictures": 60, "clips": 1, "close": 6} | pool}
    stage = WORLD_TREE["stages"][1]
    with pytest.raises(RecipeError) as error:
        check(from_tree(tree | {"stages": [stage | {"world": stage["world"] | world}]}))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ── pixels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", NEW_MODELS)
def test_pixels_of_the_pool_are_to_the_bit_what_the_family_makes_of_its_pictures(name, tmp_path):
    recipe = from_tree(WORLD_TREE | {"model": NEW_MODELS[name]})
    objective = attached(dataclasses.replace(recipe, stages=recipe.stages[1:]), tmp_path)
    indices = torch.tensor([3, 0, 21, 3])
    official = objective.processor.pixel_inputs([objective.pool.image(index) for index in indices.tolist()])
    assert torch.equal(objective.pixels(indices)["pixel_values"], official["pixel_values"])
    assert shades(objective.processor, 24).shape == (3, 256)


def test_pictures_are_moved_within_their_frame_and_crops_with_them():
    torch.manual_seed(0)
    images = torch.arange(6 * 3 * 12 * 12).reshape(6, 3, 12, 12)
    moved = shifted(images, 2)
    assert moved.shape == images.shape
    assert {tuple((moved[n, 0, 5, 5] - images[n, 0, 5, 5]).reshape(1).tolist()) for n in range(6)} != {(0,)}
    for one, other in zip(images, moved, strict=True):
        down, right = divmod(int(other[0, 5, 5] - one[0, 5, 5] + 2 * 12 + 2), 12)
        assert abs(down - 2) <= 2
        assert abs(right - 2) <= 2
        inner = one[:, 3 + down - 2 : 9 + down - 2, 3 + right - 2 : 9 + right - 2]
        assert torch.equal(other[:, 3:9, 3:9], inner)
    whole = torch.randint(0, 255, (4, 3, 12, 12))
    crops = whole.unflatten(3, (2, 6)).unflatten(2, (2, 6)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    for place in (0, 4):
        views = torch.cat([crops[:, :place], whole[:, None, :, :6, :6], crops[:, place:]], 1)
        torch.manual_seed(1)
        found = shifted_crops(views, place, 2)
        torch.manual_seed(1)
        expected = shifted(whole, 2).unflatten(3, (2, 6)).unflatten(2, (2, 6)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        assert torch.equal(found[:, place], views[:, place]), "the whole stays"
        assert torch.equal(torch.cat([found[:, :place], found[:, place + 1 :]], 1), expected)


def test_the_view_of_the_whole_is_found(family, tmp_path):
    objective = attached(recipe_of(family), tmp_path)
    image = render(objective.pool.pictures[0], 1)
    view = family_views(objective.processor)(image)[objective._whole_view]
    whole = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(view.astype(int) - whole.astype(int)).max() <= 1


# ── probes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_of_many_pictures_are_read_digit_by_digit():
    assert digits(torch.tensor([7, 40, 399])).tolist() == [[0, 0, 7], [0, 4, 0], [3, 9, 9]]
    few, many = LinearProbes(8), LinearProbes(8, 400)
    assert few["number"].out_features == 8
    assert many["number"].out_features == 30
    for probes in (few, many):
        with torch.no_grad():
            probes["number"].weight.zero_()
            probes["number"].bias.zero_()
            right = {8: [2], 30: [0, 10, 23]}[probes["number"].out_features]
            probes["number"].bias[right] = 50.0
        hidden = torch.randn(2, 8)
        assert probes.number_loss(hidden, torch.tensor([3, 3])) < 1e-3
        assert probes.number_loss(hidden, torch.tensor([4, 4])) > 10


def gradient(objective: WorldObjective, part: str, step: int = 0) -> float:
    (batch,), _ = objective.batches(step)
    loss = objective.loss(batch)[0]
    objective.model.zero_grad()
    loss.backward()
    parameters = [p for name, p in objective.model.named_parameters() if part in name and p.grad is not None]
    return sum(p.grad.abs().sum().item() for p in parameters)


def test_a_probe_looks_at_more_pictures_and_teaches_the_tower_after_its_first_steps(tmp_path):
    """`text_probe` pictures a step, whose text is read; before `probe_from` the probe learns alone."""
    recipe = recipe_of("owl3", mix={"1": 1}, text_probe=5, text_probe_weight=100.0, probe_weight=0.0, probe_from=2)
    objective = attached(recipe, tmp_path)
    (batch,), _ = objective.batches(0)
    assert len(batch.looked_at) == 5
    assert min(batch.looked_at.tolist()) >= objective.pool.first_close, "close ones, as there are some"
    loss, notes = objective.loss(batch)
    assert loss.item() == pytest.approx(notes["answers"] + 100 * notes["read"], rel=1e-4)
    assert batch.probes_alone
    assert not objective.batches(2)[0][0].probes_alone
    alone, taught = (gradient(objective, "vision", step) for step in (1, 2))
    assert taught > 5 * alone
    whole = attached(dataclasses.replace(recipe, pool=dataclasses.replace(recipe.pool, close=0)), tmp_path / "whole")
    assert max(whole.batches(0)[0][0].looked_at.tolist()) < whole.pool.stills


def test_conversations_without_pictures_are_learned_from_beside_probes(family, tmp_path):
    objective = attached(recipe_of(family, mix={"passages": 1}, probe_layer=1, probe_weight=0.2), tmp_path)
    (batch,), noted = objective.batches(0)
    assert noted["pictures"] == 0
    loss, notes = objective.loss(batch)
    assert loss.isfinite()
    assert notes["answers"] > 0 == notes["probe"]


def test_pictures_that_are_looked_at_are_moved(tmp_path):
    objective = attached(recipe_of("owl3", text_probe=4, shift=3), tmp_path)
    indices = torch.arange(4) + objective.pool.first_close
    still = objective.pixels(indices)["pixel_values"]
    torch.manual_seed(0)
    assert not torch.equal(objective.pixels(indices, 3)["pixel_values"], still)
    assert torch.equal(objective.pixels(indices, 0)["pixel_values"], still)


@pytest.mark.parametrize("mix", [{"many": 1}, {"close": 1}, {"film": 1}])
def test_a_run_of_such_samples_ends_and_its_model_cuts_as_the_recipe_says(family, mix, tmp_path):
    from longview.engine import load

    recipe = recipe_of(family, mix=mix, most=20, frames=16, tokens=300, text_probe=4, shift=2, probe_from=1)
    stages = [dataclasses.replace(recipe.stages[0], steps=2)]
    config = dataclasses.replace(recipe, stages=stages)
    processor = load(training.train(config, tmp_path / "run", progress=False)).processor
    if family == "owl3":
        assert (processor.cut_enable, processor.cut_pictures) == (True, 1)
    else:
        assert (processor.max_partition, processor.max_partition_of_several) == (9, 1)


# ── devices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stage_of_the_world_is_followed_where_there_is_a_gpu_and_told_so(tmp_path, monkeypatch):
    """Where other stages are: the model goes to the device of its process before the first step."""
    from longview.train.distributed import processes
    from longview.train.plan import estimate

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert estimate.device_of() == "cuda"
    monkeypatch.undo()
    assert estimate.device_of() == ("cuda" if torch.cuda.is_available() else "cpu")

    class GoneError(Exception):
        """The model was sent to the device."""

    def device() -> torch.device:
        raise GoneError

    monkeypatch.setattr(processes, "device", device)
    with pytest.raises(GoneError):
        training.train(from_tree(WORLD_TREE), tmp_path / "run", progress=False)


@pytest.mark.gpu
def test_losses_on_a_gpu_are_those_of_the_cpu(family, tmp_path):
    recipe = recipe_of(family, mix={"many": 1, "close": 1}, most=20, text_probe=4, tokens=300, probe_layer=1)
    objective = attached(recipe, tmp_path)
    (batch,), _ = objective.batches(0)
    expected = objective.loss(batch)[0].item()
    objective.model.to("cuda")
    elsewhere = Answers(recipe, 0)
    elsewhere.attach(objective.model, objective.processor, tmp_path)
    elsewhere.probes.load_state_dict(objective.probes.state_dict())
    elsewhere.prepare(lambda done, total, label: None)
    elsewhere.begin(lambda done, total, label: None)
    assert elsewhere.loss(elsewhere.batches(0)[0][0])[0].item() == pytest.approx(expected, rel=1e-3)
