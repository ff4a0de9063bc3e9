"""Where the fused kernels go, proven with plain functions in their place; the kernels themselves need a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.media import open_media
from longview.models.liger import fuse


def test_fused_functions_take_the_place_of_every_norm_and_gated_mlp(tiny):
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    parts = [longview.image(noise(1))]
    tensors = processor.prepare([longview.ask("What?", *parts)], open_media(parts)).load_pixels()
    calls = {"norm": 0, "gated": 0}

    def norm(x, weight, eps):
        calls["norm"] += 1
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    def gated(gate, up):
        calls["gated"] += 1
        return torch.nn.functional.silu(gate) * up

    kind = model.language_model.config.model_type
    if kind == "gemma":  # its norms add one to their weights, and its MLPs use a GELU
        with pytest.raises(longview.LongviewError, match="GemmaForCausalLM"):
            fuse(model.language_model, norm, gated)
        return
    with torch.no_grad():
        plain = model(**model.embed_pictures(tensors)).logits
        fuse(model.language_model, norm, gated)
        torch.testing.assert_close(model(**model.embed_pictures(tensors)).logits, plain, atol=SAME_MATHS, rtol=0)
    layers = model.config.get_text_config().num_hidden_layers
    assert calls["gated"] == (0 if kind == "mixtral" else layers)  # whose experts stand in one matrix
    assert calls["norm"] >= 2 * layers + 1


def test_without_a_gpu_the_kernels_are_refused_by_name(tiny):
    if torch.cuda.is_available():
        pytest.skip("this machine could run them")
    with pytest.raises(longview.LongviewError, match="run on CUDA devices only, and this model is on cpu"):
        longview.apply_liger_kernel(tiny[0])
