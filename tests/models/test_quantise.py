"""Weights in fewer bits: close to what they were, only where they may be, and refused where they cannot run."""

from __future__ import annotations

import re

import pytest
import torch
from samples import tiny_model
from torch import nn

import longview
from longview.engine import Engine
from longview.errors import RequestError
from longview.models import quantise
from longview.models.families import families


def linear(inner: int = 96, outer: int = 64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inner, outer).to(torch.bfloat16)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("rows", [1, quantise.FEW, quantise.FEW + 1])
def test_eight_bits_are_close_by_either_way(rows):
    layer, hidden = linear(), torch.randn(2, rows, 96).to(torch.bfloat16)
    assert error(quantise.Int8Linear(layer)(hidden), layer(hidden)) < 0.02


def test_four_bits_are_close_and_hold_half_a_byte_a_weight():
    layer, hidden = linear(), torch.randn(3, 5, 96).to(torch.bfloat16)
    small = quantise.Int4Linear(layer)
    assert error(small(hidden), layer(hidden)) < 0.12
    assert small.weight.numel() * small.weight.element_size() * 2 == layer.weight.numel()


def test_four_bits_keep_weights_that_are_all_of_one_sign():
    layer = linear()
    with torch.no_grad():
        layer.weight.abs_().add_(1.0)
    hidden = torch.rand(1, 4, 96).to(torch.bfloat16)
    assert error(quantise.Int4Linear(layer)(hidden), layer(hidden)) < 0.02


@pytest.mark.parametrize("kind", quantise.KINDS)
@pytest.mark.parametrize(("family", "variant"), [("owl3", "240728"), ("ovis2", "siglip"), ("mgm", "plain")])
def test_only_the_language_models_blocks_become_smaller_and_it_still_answers(family, variant, kind, tokenizer):
    model, processor = tiny_model(families()[family], variant, tokenizer)
    before = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    quantise.quantise(model.to(torch.bfloat16), kind)
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


def test_a_place_without_such_kernels_is_told():
    with pytest.raises(RequestError, match="not on mps"):
        quantise.check("int8", "mps", None)
    with pytest.raises(RequestError, match="two ways to the same"):
        longview.load("demo", device="cpu", quantize="int8", load_8bit=True)
