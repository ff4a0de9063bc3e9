"""Linear layer and GELU in one kernel: the operator is there, and the tower computes with it what it did without."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from longview.models import fused_gelu
from longview.models.fused_gelu import FusedSiglipMLP, fuse_gelu, linear_gelu

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def drawn(rows=37, width=48, wide=64, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return torch.randn(2, rows, width).to(dtype), nn.Linear(width, wide).to(dtype)


@needs_onednn
@torch.inference_mode()
def test_the_operator_is_there_and_nearer_to_the_truth_than_two_passes():
    states, linear = drawn()
    found = linear_gelu(states, linear)
    assert found is not None, f"torch {torch.__version__} has no mkldnn.{fused_gelu.OPERATOR} any more"
    exact = functional.gelu(
        functional.linear(states.double(), linear.weight.double(), linear.bias.double()), approximate="tanh"
    )
    two_passes = functional.gelu(linear(states), approximate="tanh")
    assert (found.double() - exact).abs().mean() <= (two_passes.double() - exact).abs().mean()
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0)


def test_what_the_operator_is_not_for_is_left_to_the_caller(monkeypatch):
    states, linear = drawn()
    assert linear_gelu(states, linear) is None, "gradients"
    with torch.inference_mode():
        assert linear_gelu(*drawn(dtype=torch.float32)) is None
        assert linear_gelu(states.float(), linear) is None
        assert linear_gelu(states, type("Adapted", (nn.Linear,), {})(48, 64).bfloat16()) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_gelu(states, linear) is None
        monkeypatch.setattr(fused_gelu, "OPERATOR", "_gone")
        assert linear_gelu(states, linear) is None


@needs_onednn
@torch.inference_mode()
def test_a_tower_gives_the_same_features(monkeypatch):
    config = SiglipVisionConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                                image_size=32, patch_size=8)  # fmt: skip
    torch.manual_seed(0)
    plain = SiglipVisionModel(config).eval().bfloat16()
    fused = copy.deepcopy(plain)
    fuse_gelu(fused)
    assert sum(isinstance(module, FusedSiglipMLP) for module in fused.modules()) == 4, "three, and that of the head"
    assert fused.state_dict().keys() == plain.state_dict().keys()
    called = []
    monkeypatch.setattr(fused_gelu, "linear_gelu", lambda *given: called.append(1) or linear_gelu(*given))
    pixels = torch.randn(2, 3, 32, 32).bfloat16()
    one, other = (tower(pixels).last_hidden_state.float() for tower in (plain, fused))
    assert len(called) == 4
    assert functional.cosine_similarity(one, other, dim=-1).min() > 0.999


def test_another_activation_is_not_touched(monkeypatch):
    config = SiglipVisionConfig(hidden_size=64, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4,
                                image_size=32, patch_size=8, hidden_act="gelu")  # fmt: skip
    torch.manual_seed(0)
    plain = SiglipVisionModel(config).eval().bfloat16()
    fused = copy.deepcopy(plain)
    fuse_gelu(fused)
    with torch.inference_mode():
        pixels = torch.randn(1, 3, 32, 32).bfloat16()
        torch.testing.assert_close(fused(pixels).last_hidden_state, plain(pixels).last_hidden_state, atol=0, rtol=0)
