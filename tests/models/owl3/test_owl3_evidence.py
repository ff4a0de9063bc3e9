"""mPLUG-Owl3's evidence is the part that pictures have in the fused context, which is linear in their values."""

from __future__ import annotations

import pytest
import torch
from samples import noise, tiny_model
from tolerances import EXACT_ATTENTION

from longview.media import Frame, Medium
from longview.messages import ask, image
from longview.models.families import families
from longview.models.owl3.fusion import HyperAttention


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("release", ["240728", "241014", "241101"])
@torch.no_grad()
def test_a_share_is_what_pictures_are_of_the_fused_context(release, attention, tokenizer, monkeypatch):
    model, processor = tiny_model(families()["owl3"], release, tokenizer)
    for layer in model.config.hyper_layers:
        fused = model.language_model.model.layers[layer - 1].self_attn
        if release == "241014":
            fused.gate.normal_()
    pictures = [noise(1), noise(2, 30, 60)]
    media = [Medium("image", "", [Frame(each, 0, None)], *each.size, 1, None, None, "") for each in pictures]
    inputs = processor.prepare([ask("Which?", *map(image, pictures))], media)
    arguments = model.embed_pictures(inputs.load_pixels())
    positions = processor.placeholder_positions(inputs.text_inputs)[..., 1]
    found, layers = model.evidence(positions, **arguments)
    assert layers == tuple(number - 1 for number in model.config.hyper_layers)

    model.set_attn_implementation(attention)
    shares = []
    forward = HyperAttention.forward

    def with_larger_values(self, *arguments, visual=None, **more):
        contexts = []
        hook = self.o_proj.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0]))
        forward(self, *arguments, visual=[(key, value + 1) for key, value in visual], **more)
        output = forward(self, *arguments, visual=visual, **more)
        hook.remove()
        shares.append(contexts[0] - contexts[1])
        return output

    monkeypatch.setattr(HyperAttention, "forward", with_larger_values)
    model(**arguments, use_cache=False)
    expected = torch.stack(shares)[:, 0].mean((0, -1))  # (T,), over layers, heads and channels
    assert expected[-1] > 0.01
    torch.testing.assert_close(found.sum((1, 2)), expected, atol=EXACT_ATTENTION, rtol=0)
