"""Pieces that a model is made of: learned by runs of their own, put together by another."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from runs import NEW_OVIS2, WORLD_TREE, stage_tree, train_language_model
from safetensors.torch import load_file

import longview
from longview.errors import RecipeError
from longview.train import run as training
from longview.train.init_from import match
from longview.train.recipe import check, from_tree

ALIGN = {"name": "align", "objective": "answers", "train": ["connector"], "steps": 2, "warmup": 1, "keep": True,
         "world": {"tokens": 150, "turns": 1}}  # fmt: skip
SAY = ALIGN | {"name": "say", "train": ["language"], "keep": False}


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return train_language_model(tmp_path_factory.mktemp("words") / "run")


@pytest.mark.parametrize("family", ["owl3", "ovis2"])
def test_a_new_model_begins_with_a_language_model_that_exists(language, tmp_path, family):
    model = (WORLD_TREE["model"] if family == "owl3" else NEW_OVIS2) | {"init_from": {"language": str(language)}}
    recipe = from_tree({"model": model, "pool": {"pictures": 24, "clips": 2}, "stages": [ALIGN]})
    training.train(recipe, tmp_path / "run", progress=False)
    found = load_file(tmp_path / "run" / "checkpoint-0000002" / "model.safetensors")
    given = load_file(language / "model.safetensors")
    name = {"owl3": "language_model.", "ovis2": "llm."}[family]
    for end in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        assert torch.equal(found[name + end], given[end].float()), end
    assert not found[f"{name}model.layers.1.self_attn.q_proj.bias"].any(), "a Llama has no offsets"
    assert (tmp_path / "run" / "model" / "tokenizer.json").read_text() == (language / "tokenizer.json").read_text()
    read = json.loads((tmp_path / "run" / "init_from.json").read_text())
    assert list(read) == [f"{language}/model.safetensors"]
    assert len(read[f"{language}/model.safetensors"]) == 64


def test_a_model_is_kept_after_a_stage_as_it_was_then(language, tmp_path):
    tree = {"model": NEW_OVIS2 | {"init_from": {"language": str(language)}}, "pool": {"pictures": 24, "clips": 2}}
    output = training.train(from_tree(tree | {"stages": [ALIGN, SAY]}), tmp_path / "run", progress=False)
    kept, last = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "after" / "align", output))
    name = "llm.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(kept[name], load_file(language / "model.safetensors")[name[4:]])
    assert not torch.equal(kept[name], last[name])
    assert not (tmp_path / "run" / "after" / "say").exists()
    longview.load(tmp_path / "run" / "after" / "align")


def test_a_run_that_ends_before_it_kept_a_model_keeps_it_when_resumed(language, tmp_path, monkeypatch):
    tree = {"model": NEW_OVIS2 | {"init_from": {"language": str(language)}}, "pool": {"pictures": 24, "clips": 2}}
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
        (
            {"language": "demo"},
            r"model\.init_from\.language: .* is \(\d+, 128\).*give model\.config the sizes of the part",
        ),
        ({"vision": "demo"}, r"model\.init_from\.vision: demo has nothing for 'visual_tokenizer\.backbone"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, parts, message):
    recipe = from_tree(
        {"model": NEW_OVIS2 | {"init_from": parts}, "pool": {"pictures": 24, "clips": 2}, "stages": [SAY]}
    )
    with pytest.raises(RecipeError, match=message):
        training.train(recipe, tmp_path / "run", progress=False)


def test_parts_are_for_new_models_and_keep_for_whole_ones():
    with pytest.raises(RecipeError, match=r"model\.init_from is for a new model"):
        check(from_tree({"model": {"start": "demo", "init_from": {"language": "demo"}}, "stages": [SAY]}))
    users = stage_tree(name="u", steps=1, datasets=[{"path": "x"}])
    model = {"start": "demo", "adapter": {}}
    with pytest.raises(RecipeError, match=r"stages\.u\.keep is for whole models"):
        check(from_tree({"model": model, "stages": [users | {"keep": True}]}))
    assert not dataclasses.asdict(from_tree({"model": model, "stages": [users]}))["stages"][0]["keep"]


def test_tensors_are_matched_by_what_their_names_end_in():
    wanted = ["llm.model.norm.weight", "llm.model.layers.0.w"]
    inside = {f"language_model.{name[4:]}" for name in wanted}
    assert match(wanted, sorted(inside), ("llm.",)) == {n: f"language_model.{n[4:]}" for n in wanted}
    assert match(wanted, [name[4:] for name in wanted], ("llm.",)) == {n: n[4:] for n in wanted}
    assert match(wanted, ["vision.norm.weight"], ("llm.",)) == {}


def test_a_connector_that_lies_within_the_blocks_begins_as_that_of_another_model(tmp_path):
    """mPLUG-Owl3's is partly in its hyper attention blocks."""
    import longview
    from longview.train.build import open_model
    from longview.train.init_from import init_from
    from longview.train.optimizers import select_parts

    given, _ = open_model(from_tree(WORLD_TREE), tmp_path / "given")
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.normal_()
    longview.models.owl3.Processor.from_pretrained(tmp_path / "given").save_pretrained(tmp_path / "given")
    given.save_pretrained(tmp_path / "given")
    new, _ = open_model(from_tree(WORLD_TREE), tmp_path / "new")
    select_parts(new, ["connector"])
    connector = {name for name, parameter in new.named_parameters() if parameter.requires_grad}
    assert any(".layers." in name for name in connector), "some of it lies in blocks"
    before = {name: parameter.clone() for name, parameter in new.named_parameters()}
    init_from(new, {"connector": str(tmp_path / "given")})
    theirs = dict(given.named_parameters())
    for name, parameter in new.named_parameters():
        assert torch.equal(parameter, theirs[name] if name in connector else before[name]), name
