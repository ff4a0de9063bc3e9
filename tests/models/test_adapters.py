"""Adapters: a fresh one changes nothing, a merged one is an attached one, and PEFT reads what is saved."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import tiny_model
from test_laws import logits, prepare
from tolerances import SAME_MATHS

import longview
from longview.engine.loading import with_adapters
from longview.errors import CheckpointError, RecipeError
from longview.models import adapters
from longview.models.families import families


@pytest.fixture
def learned(tiny, tmp_path):
    """A model with an adapter that has learned something, and the folder it was saved to."""
    model, processor = copy.deepcopy(tiny)
    wrapper = adapters.add(model, ["language"], rank=2, alpha=4, dropout=0.0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapters.save(wrapper, tmp_path / "adapter", "some/model")
    return model.eval(), processor, tmp_path / "adapter"


def test_a_fresh_adapter_changes_nothing_and_a_learned_one_does(tiny, learned):
    model, processor = tiny
    fresh = copy.deepcopy(model)
    adapters.add(fresh, ["language"], rank=2, alpha=4, dropout=0.0)
    tensors = prepare(processor, "three pictures and a clip").load_pixels()
    base = logits(model, tensors)
    # not bit for bit: on some processors BLAS rounds by where tensors lie in memory
    torch.testing.assert_close(logits(fresh.eval(), tensors), base, atol=SAME_MATHS, rtol=0)
    assert (logits(learned[0], tensors) - base).abs().max() > 0.1
    with adapters.disabled(learned[0]):
        torch.testing.assert_close(logits(learned[0], tensors), base, atol=SAME_MATHS, rtol=0)
    assert (logits(learned[0], tensors) - base).abs().max() > 0.1


def test_merged_is_attached_and_peft_opens_the_folder_too(tiny, learned):
    from peft import PeftModel

    attached, processor, folder = learned
    tensors = prepare(processor, "three pictures and a clip").load_pixels()
    expected = logits(attached, tensors)
    merged, peft = copy.deepcopy(tiny[0]), copy.deepcopy(tiny[0])
    adapters.open_into(merged, folder)
    torch.testing.assert_close(logits(merged, tensors), expected, atol=SAME_MATHS, rtol=0)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in tiny[0].named_parameters()]
    PeftModel.from_pretrained(peft, str(folder))
    assert torch.equal(logits(peft, tensors), expected)
    assert adapters.base_of(folder) == "some/model"


def test_all_linear_layers_of_the_named_components_and_no_others_learn(learned):
    model, _, folder = learned
    shapes = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert shapes
    assert all(adapters.part_of(model, name) == "language" and "lm_head" not in name for name in shapes)
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert {target.rpartition(".")[2] for target in targets} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(adapters.MARK in name for name in learning)


def test_an_adapter_that_does_not_fit_is_refused(tiny, learned):
    _, _, folder = learned
    model = copy.deepcopy(tiny[0])
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: torch.zeros(2, 7)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="for which this model has no layer; it was trained on some/model"):
        adapters.open_into(model, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="in safetensors only"):
        adapters.open_into(model, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(CheckpointError, match="longview opens LORA"):
        adapters.open_into(model, folder)
    with pytest.raises(CheckpointError, match="does not say on which model"):
        adapters.base_of(folder)
    config.unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json"):
        adapters.open_into(model, folder)
    with pytest.raises(RecipeError, match="has no linear layers"):
        adapters.add(model, ["nothing"], 2, 4, 0.0)


DAMAGED = {
    "alpha_pattern": 3,
    "rank_pattern": None,
    "bias": 3,
    "init_lora_weights": 1.5,
    "lora_bias": True,
    "alora_invocation_tokens": [1],
    "trainable_token_indices": 1.5,
    "megatron_config": {"a": 1},
    "corda_config": {"cache_file": "nowhere"},
    "r": -1,
    "target_modules": "x",
}


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """A tiny model, and the folder of an adapter for it."""
    model, _ = tiny_model(families()["owl3"], "241101", tokenizer)
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    adapters.save(adapters.add(copy.deepcopy(model), ["language"], 2, 4, 0.0), folder, "some/model")
    return model, folder


@pytest.mark.parametrize("key", DAMAGED)
def test_an_adapter_whose_config_is_damaged_is_refused_in_one_line(saved, tmp_path, key):
    folder = Path(shutil.copytree(saved[1], tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {key: DAMAGED[key]} | ({"init_lora_weights": "corda"} if key == "corda_config" else {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=str(folder)):
        adapters.open_into(copy.deepcopy(saved[0]), folder)


def test_no_module_that_an_adapter_names_is_imported(saved, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(saved[1], tmp_path / "adapter"))
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"megatron_config": {"a": 1}, "megatron_core": "planted"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="megatron_config"):
        adapters.open_into(copy.deepcopy(saved[0]), folder)


def test_a_saved_adapter_cuts_pictures_as_where_it_was_trained(tmp_path):
    engine = longview.load("demo")
    engine.processor.cut_enable = True
    adapters.save(adapters.add(engine.model, ["language"], 2, 4, 0.0), tmp_path, "demo", engine.processor)
    assert longview.load("demo").processor.cut_enable is False
    assert longview.load(adapter=tmp_path).processor.cut_enable is True
    base = longview.load("demo")
    beside = with_adapters(base, {"cut": str(tmp_path)})["cut"]
    assert (base.processor.cut_enable, beside.processor.cut_enable) == (False, True)
    settings = tmp_path / "preprocessor_config.json"
    settings.write_text('{"cut_enable": 1}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: cut_enable is 1; expected bool"):
        longview.load(adapter=tmp_path)
    settings.unlink()
    assert longview.load(adapter=tmp_path).processor.cut_enable is False
