"""Keys and values of pictures in 8 bits: what they stand for, what attends to them, and that chunks do not matter."""

from __future__ import annotations

import pytest
import torch
from owl3_samples import prepared
from samples import tiny_model
from test_golden import CASES, GOLDEN, RELEASES, arguments
from tolerances import SAME_MATHS
from transformers import DynamicCache

import longview
from longview.errors import RequestError
from longview.models import owl3
from longview.models.owl3 import Model
from longview.models.owl3.attention import attend_single_token
from longview.models.owl3.int8 import Int8KeyValue, channels_of
from longview.models.owl3.visual_kv_cache import VisualKVCache

STEP = 1 / 254
"""Half the distance of neighbouring integers, as a part of the largest."""


def drawn(keys: int, width: int = 64, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Keys, values (2, M, D) with channels of very different sizes, and the factors of these (2, D)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 2, width).expand(2, -1)
    key, value = (torch.randn(2, keys, width, generator=generator) * sizes.unsqueeze(1) for _ in range(2))
    return key, value, sizes, sizes.flip(-1).flip(-1)


@pytest.fixture(params=owl3.Config.variants)
def owl(request, tokenizer):
    model, processor = tiny_model(owl3, request.param, tokenizer)
    processor.cut_enable = False
    return model, processor


def test_each_number_is_within_half_a_step_of_the_largest_of_its_row():
    key, value, *channels = drawn(50)
    found = Int8KeyValue.of(key, value, *channels)
    assert found.key.dtype == found.value.dtype == torch.int8
    for ours, theirs, channel in zip(found.plain(), (key, value), channels, strict=True):
        even = (theirs / channel.unsqueeze(1)).abs().amax(-1, keepdim=True)
        assert bool(((ours - theirs).abs() <= 1.001 * STEP * even * channel.unsqueeze(1)).all())


def test_channels_of_the_projection_keep_small_channels_beside_large_ones(owl):
    model, _ = owl
    layer = model.language_model.model.layers[0]
    projection = layer.self_attn.v_kv_proj
    with torch.no_grad():  # the first channel of the first key is large for all pictures, as a bias makes it
        projection.bias[0] = 1000.0
    heads = layer.self_attn.config.num_key_value_heads
    features = torch.randn(2, 4, model.config.hidden_size)
    with torch.no_grad():
        key, value = layer.project(features, [0, 3])
    evened, _ = Int8KeyValue.of(key, value, *channels_of(projection, heads)).plain()
    alike, _ = Int8KeyValue.of(key, value, *(torch.ones_like(key[:, 0]) for _ in range(2))).plain()
    errors = [float((found - key)[0, :, 1].norm() / key[0, :, 1].norm()) for found in (evened, alike)]
    assert errors[0] < 0.05 < 0.5 < errors[1]


@pytest.mark.parametrize("keys", [1, 31, 36, 100])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_a_single_token_attends_to_what_the_integers_stand_for(keys, dtype, rounding):
    key, value, *channels = (tensor.to(dtype) for tensor in drawn(keys))
    stored = Int8KeyValue.of(key, value, *(channel.float() for channel in channels))
    query = torch.randn(2, 3, 1, 64, generator=torch.Generator().manual_seed(1)).to(dtype) / 64**2
    with torch.inference_mode():
        output, lse = stored.attend(query)
        plain = tuple(each.float() for each in stored.plain())
        exact, exact_lse = attend_single_token(query.float(), *plain)
    assert float((output - exact).norm() / exact.norm()) < rounding
    torch.testing.assert_close(lse, exact_lse, atol=rounding, rtol=rounding)


def test_no_kernel_takes_heads_that_it_would_read_beyond():
    key, value, *channels = drawn(10, width=16)
    assert Int8KeyValue.of(key, value, *channels).attend(torch.ones(2, 1, 1, 16)) is None


def test_what_is_stored_of_a_picture_does_not_depend_on_others():
    key, value, *channels = drawn(90)
    whole = Int8KeyValue.of(key, value, *channels)
    first, second = (Int8KeyValue.of(key[:, part], value[:, part], *channels) for part in (slice(37), slice(37, 90)))
    for ours, theirs in ((first.joined(second), whole), (whole.until(37), first), (whole.copy(), whole)):
        assert ours.count == theirs.count
        for name in ("key", "value", "key_scale", "value_scale"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert whole.copy().key.data_ptr() != whole.key.data_ptr()


@torch.no_grad()
def test_tokens_one_by_one_see_what_tokens_together_see(owl):
    model, processor = owl
    model.config.kv_dtype = "int8"
    inputs = prepared(processor, "Compare these.", 1, 2)
    ids, (starts,), features = inputs["input_ids"], inputs["placeholder_starts"], model.encode(inputs["pixel_values"])
    whole = model(input_ids=ids, image_embeds=features, placeholder_starts=[starts])
    assert all(isinstance(each, Int8KeyValue) for each in whole.side_cache.rows[0].key_values.values())
    border = starts[1] - 1
    cache = DynamicCache(config=model.config)
    first = model(
        input_ids=ids[:, :border], image_embeds=features[:1], placeholder_starts=[starts[:1]], past_key_values=cache
    )
    logits, side_cache = [first.logits], first.side_cache
    new = {"image_embeds": features[1:], "placeholder_starts": [[starts[1] - border]]}
    for place in range(border, ids.shape[1]):
        output = model(input_ids=ids[:, [place]], past_key_values=cache, side_cache=side_cache, **new)
        logits.append(output.logits)
        new, side_cache = {}, output.side_cache
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_rows_together_see_what_each_alone_sees(owl):
    model, processor = owl
    model.config.kv_dtype = "int8"
    alone = []
    for text, places in (("What?", (1,)), ("And which of them?", (1, 2))):
        inputs = prepared(processor, text, *places)
        cache = DynamicCache(config=model.config)
        output = model(**inputs, past_key_values=cache)
        token = model(input_ids=torch.tensor([[7]]), past_key_values=cache, side_cache=output.side_cache)
        alone.append((inputs["input_ids"].shape[1], output.side_cache, token.logits))
    joined = VisualKVCache.joined([cache for _, cache, _ in alone] + [None])
    layer = min(joined.rows[0].key_values)
    stored = joined.key_values(layer)
    assert [each.count for each in stored] == [each.rows[0].key_values[layer].count for _, each, _ in alone] + [0]
    assert joined.nbytes() == sum(cache.nbytes() for _, cache, _ in alone)


def test_half_the_bytes_of_bf16_as_the_plan_says(owl):
    model, processor = owl
    inputs = prepared(processor, "What?", 1)
    with torch.no_grad():
        found = {}
        for kv_dtype in (None, "int8"):
            model.config.kv_dtype = kv_dtype
            cache = model(**inputs, use_cache=True).side_cache
            found[kv_dtype] = cache.nbytes() / cache.num_pictures
            planned = model.footprint(model.config, model.dtype).picture_bytes
            columns = -model.config.patches_per_picture % 32  # what fills the kernel's width
            head = model.config.hidden_size // model.config.num_attention_heads
            extra = columns * model.config.num_key_value_heads * head * len(model.config.hyper_layers)
            assert found[kv_dtype] == planned + (extra if kv_dtype else 0)
    assert model.footprint(model.config, torch.bfloat16).picture_bytes < found[None] / 2


def test_gradients_are_of_the_model_s_own_dtype(owl):
    model, processor = owl
    model.config.kv_dtype = "int8"
    inputs = prepared(processor, "What?", 1)
    output = model(**inputs, use_cache=True)
    assert not any(isinstance(each, Int8KeyValue) for each in output.side_cache.rows[0].key_values.values())
    output.logits.sum().backward()
    assert float(model.language_model.model.layers[0].self_attn.v_kv_proj.weight.grad.abs().sum()) > 0


def test_another_kind_is_refused_and_so_is_a_family_without_such_pictures():
    with pytest.raises(RequestError, match="unknown kv_dtype 'int9'; expected int8, or leave it out"):
        longview.load("demo", kv_dtype="int9")
    with pytest.raises(RequestError, match="demo-ovis2 has no such part or setting, so kv_dtype has no meaning"):
        longview.load("demo-ovis2", kv_dtype="int8")


@pytest.mark.parametrize("release", RELEASES)
@torch.no_grad()
def test_logits_of_the_released_checkpoints_move_by_a_few_percent_of_their_spread(release):
    model = Model.from_pretrained(GOLDEN / release).eval()
    model.config.kv_dtype = "int8"
    for case in CASES:
        inputs, golden = arguments(release, case)
        output = model(**inputs, use_cache=True)
        found, exact = [output.logits], [golden["logits"]]
        for step in range(golden["decode_logits"].shape[1]):
            token = golden["generated_ids"][:, step : step + 1]
            output = model(input_ids=token, past_key_values=output.past_key_values)
            found.append(output.logits)
            exact.append(golden["decode_logits"][:, step : step + 1])
        ours, theirs = torch.cat(found, 1), torch.cat(exact, 1)
        drift = float((ours - theirs).square().mean().sqrt() / theirs.std())
        assert drift < 1e-5 if case == "text_only" else 1e-3 < drift < 0.04, (case, drift)
