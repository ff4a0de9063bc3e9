"""Adapters on a language model of 4 bits: what learns, what it takes, what is left behind, and what cannot be done."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil

import pytest
import torch
from PIL import Image
from runs import stage_tree
from samples import FOUR_BITS, four_bit_folders, noise
from tolerances import SAME_MATHS

import longview
from longview.errors import CheckpointError, MissingExtraError, RecipeError
from longview.models import adapters, quantization
from longview.train import run as training
from longview.train.build import add_adapter, open_model, open_spec, quantization_options
from longview.train.distributed import processes
from longview.train.plan.dry_run import dry_run
from longview.train.plan.estimate import count_four_bit, estimate
from longview.train.plan.plan import make_plan
from longview.train.recipe import Recipe, check, from_tree

QUESTION = [longview.ask("What?", longview.image(noise(1)))]


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    return four_bit_folders(tokenizer, tmp_path_factory.mktemp("qlora"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    for colour in ("red", "blue"):
        Image.new("RGB", (30, 24), colour).save(folder / f"{colour}.png")
    lines = [{"image": f"{c}.png", "query": "<image>Colour?", "response": c} for c in ("red", "blue")]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(line | {"rejected_response": "no"}) for line in lines))
    return folder


def recipe(start, rows, dtype="float32", **stage) -> Recipe:
    base = {"name": "tune", "train": ["language"], "steps": 30, "batch": 2, "warmup": 1,
            "learning_rate": 0.02, "datasets": [{"path": str(rows / "rows.jsonl")}]}  # fmt: skip
    model = {"start": str(start), "dtype": dtype, "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0}, "quantize": "nf4"}
    return from_tree({"model": model, "stages": [stage_tree(**base | stage)]})


def unquantised(wanted: Recipe) -> Recipe:
    return dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, quantize=None))


@pytest.mark.parametrize("family", FOUR_BITS)
def test_what_is_quantised_is_what_was_told_and_only_adapters_learn(family, folders, rows, tmp_path):
    from bitsandbytes.nn import Params4bit

    wanted = recipe(folders[family], rows)
    plain, _ = open_model(unquantised(wanted), tmp_path)
    model, _ = open_model(wanted, tmp_path)
    add_adapter(wanted, model)
    small = [p for p in model.parameters() if isinstance(p, Params4bit)]
    weights = sum(p.quant_state.shape.numel() for p in small)
    assert weights == count_four_bit(wanted, plain) > 10_000
    held = sum(p.numel() + p.quant_state.absmax.numel() + 4 * p.quant_state.state2.absmax.numel() for p in small)
    assert held == pytest.approx(weights * quantization.NF4_BYTES, rel=0.02)
    assert {p.quant_state.quant_type for p in small} == {"nf4"}
    assert all(adapters.MARK in name for name, p in model.named_parameters() if p.requires_grad)


def test_gradients_are_those_of_the_weights_that_four_bits_stand_for(folders, rows, tmp_path):
    wanted, found = recipe(folders["owl3"], rows), []
    for whole in (False, True):
        model, _ = open_model(wanted, tmp_path)
        if whole:
            model.dequantize()
        torch.manual_seed(0)
        add_adapter(wanted, model)
        ids = torch.arange(3, 30)[None]
        loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (small, slopes), (exact, expected) = found
    assert slopes.keys() == expected.keys()
    assert all(adapters.MARK in name for name in slopes)
    torch.testing.assert_close(small, exact, atol=SAME_MATHS, rtol=0)
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, expected[name], atol=SAME_MATHS, rtol=1e-4)
    assert max(slope.abs().max() for slope in slopes.values()) > 0.01


@pytest.mark.parametrize("stage", [{}, {"pack": 300, "gradient_checkpointing": True}], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_goes_down_through_four_bits(dtype, stage, folders, rows, tmp_path):
    training.train(recipe(folders["ovis2"], rows, dtype, **stage), tmp_path / "run", progress=False)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]


def test_preferences_are_learned_against_the_base_count_four_bit(folders, rows, tmp_path):
    pairs = {"objective": "preference", "steps": 12, "datasets": [{"path": str(rows / "pairs.jsonl")}]}
    training.train(recipe(folders["owl3"], rows, **pairs), tmp_path / "run", progress=False)
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert line["preferred"] == 1.0
    assert line["margin"] > 0.1


def test_what_is_learned_is_a_normal_adapter_for_whole_and_quantised_models(folders, rows, tmp_path):
    """PEFT opens it on a model of its own; longview on the whole model, and on one of 4 bits, as it was trained."""
    from peft import PeftModel

    start = folders["owl3"]
    adapter = training.train(recipe(start, rows), tmp_path / "run", progress=False)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(start)
    ids = torch.arange(3, 30)[None]

    def scores(model) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits.float()

    merged = longview.load(start, adapter=adapter, device="cpu")
    small = longview.load(start, adapter=adapter, device="cpu", load_4bit=True)
    base = longview.load(start, device="cpu")
    peft = PeftModel.from_pretrained(longview.load(start, device="cpu").model, str(adapter))
    torch.testing.assert_close(scores(peft), scores(merged.model), atol=1e-4, rtol=0)
    moved = (scores(merged.model) - scores(base.model)).norm()
    assert (scores(merged.model) - scores(small.model)).norm() < 0.5 * moved
    assert small.answer(QUESTION, max_tokens=2).tokens
    assert merged.answer(QUESTION, max_tokens=2).tokens


def test_the_dry_run_tells_of_four_bits_and_counts_them(folders, rows):
    whole = recipe(folders["owl3"], rows)
    told = "\n".join(dry_run(whole))
    found = re.search(r"([\d,]+) frozen ones are kept in 4 bits \(NF4\): 0\.00 GiB", told)
    assert found
    assert int(found[1].replace(",", "")) > 10_000


def test_an_adapter_on_four_bits_needs_less_memory(folders, rows, tmp_path):
    wanted, taken, small = recipe(folders["owl3"], rows), [], 0
    for each in (wanted, unquantised(wanted)):
        found = estimate(make_plan(each), open_spec(each, tmp_path))
        taken.append(found.stages[0].memory)
        small = small or found.four_bit
    saved = small * (4 - quantization.NF4_BYTES)
    assert taken[1] - taken[0] == pytest.approx(saved, rel=1e-3)


def test_what_cannot_be_done_is_told_before_anything_is_read(folders, rows, tmp_path, monkeypatch):
    wanted = recipe(folders["owl3"], rows)
    with pytest.raises(RecipeError, match=r"quantize is 'nf4', and such weights cannot learn; give model\.adapter"):
        check(dataclasses.replace(wanted, model=dataclasses.replace(wanted.model, adapter=None)))
    with pytest.raises(RecipeError, match=r"model\.quantize is 'int4'; expected one of nf4"):
        from_tree({"model": {"start": "x", "quantize": "int4"}, "stages": []})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for follow in (lambda: training.train(wanted, tmp_path / "run", progress=False), lambda: list(dry_run(wanted))):
        with pytest.raises(MissingExtraError, match=r"model\.quantize needs bitsandbytes.*pip install '?bitsandbytes"):
            follow()


def test_several_processes_each_have_a_copy_of_four_bits(rows, monkeypatch):
    wanted = recipe("x", rows)
    monkeypatch.setattr(processes, "count", lambda: 2)
    training.check_processes(wanted)
    with pytest.raises(RecipeError, match="cannot be held in shares; take parallel=ddp"):
        training.check_processes(dataclasses.replace(wanted, parallel="fsdp2"))


def test_a_model_that_is_quantised_already_is_refused(folders, rows, tmp_path):
    folder = shutil.copytree(folders["owl3"], tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(RecipeError, match=r"is quantised already; leave model\.quantize out"):
        quantization_options(recipe(folder, rows).model, None, folder)
    with pytest.raises(CheckpointError, match="quantised by gptq, but they are whole"):
        open_model(recipe(folder, rows), tmp_path / "run")
