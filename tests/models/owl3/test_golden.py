"""Ours against the authors' numbers, on their tiny random checkpoints, through the production loader."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tolerances import FP32_ROUNDING, GOLDEN_LOGITS, GOLDEN_ROUNDING

from longview.models.owl3 import Model

GOLDEN = Path(__file__).parents[2] / "golden" / "owl3"
RELEASES = ("240728", "241014", "241101")
CASES = ("one_image", "three_images", "image_first", "text_only", "batch_2_1", "batch_0_1")


@pytest.fixture(scope="module", params=[(r, a) for r in RELEASES for a in ("sdpa", "eager")], ids="-".join)
def released(request):
    release, attention = request.param
    return release, Model.from_pretrained(GOLDEN / release, attn_implementation=attention).eval()


def arguments(release: str, case: str) -> tuple[dict, dict]:
    """A fixture's official inputs, and the whole fixture."""
    golden = load_file(GOLDEN / release / f"{case}.safetensors")
    rows = len(golden["input_ids"])
    inputs = {
        "input_ids": golden["input_ids"],
        "pixel_values": golden.get("pixel_values"),
        "media_offset": golden.get("media_offset", [golden[f"media_starts.{row}"] for row in range(rows)]),
    }
    return inputs, golden


def test_the_release_is_read_off_the_tensors(released):
    release, model = released
    assert model.config.release == release


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_released_checkpoint_gives_the_authors_numbers(released, case):
    release, model = released
    inputs, golden = arguments(release, case)
    if "image_embeds" in golden:
        embeds = model.encode(golden["pixel_values"])
        exact = copy.deepcopy(model).double().encode(golden["pixel_values"].double()).float()
        torch.testing.assert_close(exact, golden["image_embeds"], atol=GOLDEN_ROUNDING, rtol=0)
        torch.testing.assert_close(embeds, exact, atol=FP32_ROUNDING, rtol=0)
    output = model(**inputs, use_cache=True, output_hidden_states=True)
    if "hidden_states" in golden:
        hidden = torch.stack(output.hidden_states)
        torch.testing.assert_close(hidden, golden["hidden_states"], atol=GOLDEN_LOGITS, rtol=0)
    torch.testing.assert_close(output.logits, golden["logits"], atol=GOLDEN_LOGITS, rtol=0)
    for step in range(golden["decode_logits"].shape[1]):
        token = golden["generated_ids"][:, step : step + 1]
        output = model(input_ids=token, past_key_values=output.past_key_values)
        torch.testing.assert_close(output.logits[:, 0], golden["decode_logits"][:, step], atol=GOLDEN_LOGITS, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_generate_gives_the_authors_greedy_tokens(released, case):
    release, model = released
    inputs, golden = arguments(release, case)
    tokens = model.generate(**inputs, max_new_tokens=5)
    assert tokens.tolist() == golden["generated_ids"][:, : tokens.shape[1]].tolist()


@pytest.mark.parametrize("release", RELEASES)
@torch.no_grad()
def test_the_first_hyper_layer_computes_the_authors_intermediates(release):
    model = Model.from_pretrained(GOLDEN / release).eval()
    _, golden = arguments(release, "three_images")
    inner = load_file(GOLDEN / release / "three_images.layer0.safetensors")
    layer = model.language_model.model.layers[0]
    normed = layer.input_layernorm(golden["image_embeds"])
    torch.testing.assert_close(normed, inner["normed_image_embeds"], atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.self_attn.v_kv_proj(normed), inner["v_kv_proj_out"], atol=1e-5, rtol=0)
    if "visual_key_after_rope_bhsd" in inner:
        starts = golden["media_starts.0"].tolist()
        (positions,) = model.picture_positions([starts], None, past=0, length=golden["input_ids"].shape[1])
        key, _ = layer.project(golden["image_embeds"], positions)
        torch.testing.assert_close(key, inner["visual_key_after_rope_bhsd"][0], atol=1e-5, rtol=0)
