"""Language models in 8 and 4 bits: what stays as it is, how near the answers stay, and what cannot be done."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from samples import four_bit_folders, noise, tiny_model
from torch import nn

import longview
from longview import names
from longview.engine import Engine, load
from longview.errors import MissingExtraError, RequestError
from longview.models import quantization
from longview.models.families import families

# ── PyTorch's kernels for CPUs ───────────────────────────────────────────────────────────────────────────────────────


def linear(inner: int = 96, outer: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inner, outer).to(torch.bfloat16)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("rows", [1, quantization.FEW, quantization.FEW + 1])
def test_eight_bits_are_close_by_either_way(rows):
    layer, hidden = linear(), torch.randn(2, rows, 96).to(torch.bfloat16)
    assert error(quantization.Int8Linear(layer)(hidden), layer(hidden)) < 0.02


def test_four_bits_are_close_and_hold_half_a_byte_a_weight():
    layer, hidden = linear(), torch.randn(3, 5, 96).to(torch.bfloat16)
    small = quantization.Int4Linear(layer)
    assert error(small(hidden), layer(hidden)) < 0.12
    assert small.weight.numel() * small.weight.element_size() * 2 == layer.weight.numel()


def test_four_bits_keep_weights_that_are_all_of_one_sign():
    layer = linear()
    with torch.no_grad():
        layer.weight.abs_().add_(1.0)
    hidden = torch.rand(1, 4, 96).to(torch.bfloat16)
    assert error(quantization.Int4Linear(layer)(hidden), layer(hidden)) < 0.02


@pytest.mark.parametrize("kind", names.QUANTIZE)
@pytest.mark.parametrize(("family", "variant"), [("owl3", "240728"), ("ovis2", "siglip"), ("mgm", "plain")])
def test_only_the_language_models_blocks_become_smaller_and_it_still_answers(family, variant, kind, tokenizer):
    model, processor = tiny_model(families()[family], variant, tokenizer)
    before = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantization.quantize(model.to(torch.bfloat16), kind)
    after = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    gone = before - after
    assert gone
    assert all(".layers." in name and "vision" not in name and "visual" not in name for name in gone)
    assert not any("v_kv_proj" in name or "self_attn.gate_proj" in name for name in gone)
    assert any(name.endswith("mlp.gate_proj") for name in gone)
    answers = list(Engine(model, processor).batch(["Hello", "Who are you, and what do you see?"], max_tokens=4))
    assert all(len(answer.tokens) >= 1 for answer in answers)


def test_the_demo_answers_in_eight_bits():
    from longview.world.render import render
    from longview.world.scenes import Picture, Thing

    question = longview.ask(
        "What colour is the circle?", longview.image(render(Picture((Thing("red", "circle", "large", 0.5, 0.5),))))
    )
    assert (
        longview.load("demo", device="cpu", quantize="int8").answer([question]).text.strip().lower().rstrip(".")
        == "red"
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"quantize": "int2"}, "unknown quantize 'int2'; expected int8 or int4"),
        ({"quantize": "int8", "dtype": "float32"}, "computes in bfloat16 on a CPU, not in torch.float32"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_opened(settings, complaint):
    with pytest.raises(RequestError, match=re.escape(complaint)):
        longview.load("no such model", device="cpu", **settings)


def test_a_device_without_such_kernels_is_named():
    with pytest.raises(RequestError, match="not on mps"):
        quantization.check("int8", "mps", None)
    with pytest.raises(RequestError, match="two ways to the same"):
        longview.load("demo", device="cpu", quantize="int8", load_8bit=True)


# ── bitsandbytes ─────────────────────────────────────────────────────────────────────────────────────────────────────

BITS = {"load_8bit": Linear8bitLt, "load_4bit": Linear4bit}


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    return four_bit_folders(tokenizer, tmp_path_factory.mktemp("quantised"))


@pytest.mark.parametrize("family", ["mgm", "owl3", "ovis2"])
@pytest.mark.parametrize("bits", BITS)
def test_only_the_language_models_own_matrices_are_quantised(folders, family, bits):
    loaded = longview.load(folders[family], device="cpu", **{bits: True})
    model, kind = loaded.model, BITS[bits]
    quantised = {name for name, module in model.named_modules() if isinstance(module, kind)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    kept = linear - quantised
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    others = [mark for part, marks in model.parts.items() if part != "language" for mark in marks]
    assert kept == {name for name in linear if name == head or any(mark in f"{name}." for mark in others)}
    assert len([name for name in quantised if ".layers." in name]) == len(quantised) > 10
    exact = longview.load(folders[family], device="cpu")
    question = [longview.ask("What?", longview.image(noise(1)))]
    assert loaded.answer(question, max_tokens=3).tokens
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        found, expected = loaded.model(input_ids=ids).logits, exact.model(input_ids=ids).logits
    alike = torch.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0)
    assert 0.9 < alike < 0.9999999, "near, and not the same"


@pytest.mark.parametrize("bits", BITS)
def test_towers_mining_and_projector_of_mgm_are_bit_for_bit_what_they_were(folders, bits):
    pixels = torch.randn(1, 3, 64, 64)
    exact, loaded = longview.load(folders["mgm"]), longview.load(folders["mgm"], **{bits: True})
    with torch.no_grad():
        assert torch.equal(loaded.model.encode(pixels), exact.model.encode(pixels))


def test_what_cannot_be_quantised_is_named(monkeypatch, folders):
    model = families()["mgm"].Model
    for arguments, complaint in (
        ((True, True, "cpu"), "contradict each other"),
        ((False, True, "mps"), "--load-4bit needs bitsandbytes, which does not run on mps"),
    ):
        with pytest.raises(RequestError, match=complaint):
            quantization.bitsandbytes_config(model, *arguments, None)
    assert "lm_head" in quantization.unquantised(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"--load-8bit needs bitsandbytes.*pip install '?bitsandbytes"):
        quantization.bitsandbytes_config(model, True, False, "cuda", None)


def test_folders_of_towers_are_for_the_family_that_has_them(folders):
    for option in ("vision_tower", "vision_tower_aux", "model_base"):
        with pytest.raises(RequestError, match=f"{option} has no meaning for it"):
            load(folders["owl3"], **{option: "x"})
