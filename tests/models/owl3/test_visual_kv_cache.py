"""Keys and values of pictures: made once, kept beside the text's, and continued turn by turn."""

from __future__ import annotations

import copy

import pytest
import torch
from owl3_samples import photo, prepared
from samples import tiny_model
from tolerances import EXACT_ATTENTION, SAME_MATHS
from transformers import DynamicCache

from longview.errors import RequestError
from longview.messages import Message, ask, image
from longview.models import owl3
from longview.models.owl3 import fusion
from longview.models.owl3.fusion import NORMED_ROWS, HyperDecoderLayer, over_root_mean_square
from longview.models.owl3.visual_kv_cache import Owl3Cache, VisualKVCache


@pytest.fixture(params=owl3.Config.variants)
def owl(request, tokenizer):
    return tiny_model(owl3, request.param, tokenizer)


@torch.no_grad()
def test_a_picture_that_arrives_after_cached_text_counts_as_if_it_had_been_there(owl):
    model, processor = owl
    processor.cut_enable = False
    inputs = prepared(processor, "Compare.", 1, 2)
    ids, (starts,), features = inputs["input_ids"], inputs["placeholder_starts"], model.encode(inputs["pixel_values"])
    whole = model(input_ids=ids, image_embeds=features, placeholder_starts=[starts]).logits
    border = starts[1] - 3
    kept = {"past_key_values": DynamicCache(config=model.config)}
    first = model(input_ids=ids[:, :border], image_embeds=features[:1], placeholder_starts=[starts[:1]], **kept)
    kept["side_cache"] = first.side_cache
    new = {"image_embeds": features[1:], "placeholder_starts": [[starts[1] - border]]}
    second = model(input_ids=ids[:, border:], **new, **kept)
    assert second.side_cache is first.side_cache, "new pictures are added in place"
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_the_pictures_of_a_pass_are_an_output_and_stay_out_of_the_texts_cache(owl):
    model, processor = owl
    inputs, cache = prepared(processor, "What?", 1), DynamicCache(config=model.config)
    output = model(**inputs, past_key_values=cache)
    assert output.side_cache.num_pictures == len(inputs["pixel_values"])
    assert not any(isinstance(value, VisualKVCache) for value in vars(cache).values())
    token = {"input_ids": torch.tensor([[7]]), "past_key_values": cache}
    with_pictures = model(**token, side_cache=output.side_cache).logits
    cache.crop(-1)
    assert not torch.allclose(model(**token).logits, with_pictures, atol=1e-2)


@torch.no_grad()
def test_without_a_cache_no_keys_and_values_are_kept(owl):
    model, processor = owl
    assert not hasattr(model(**prepared(processor, "What?", 1), use_cache=False), "side_cache")


@torch.no_grad()
def test_several_turns_with_the_cache_kept_equal_one_long_conversation(owl):
    model, processor = owl
    # 240728 cuts a lone picture only: with a second one, the first turn would change
    processor.cut_enable = processor.config.release != "240728"
    pictures = [photo(1), photo(2)]
    first = [ask("What?", image(pictures[0].frames[0].image))]
    inputs = processor.prepare(first, pictures[:1]).load_pixels()
    cache = Owl3Cache(config=model.config)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=4)
    conversation = [*first, Message.of("assistant", "A cat."), ask("And this?", image(pictures[1].frames[0].image))]
    # generation stops before its last token is in the cache, and the answer we pretend it gave is another one
    cache.crop(inputs["input_ids"].shape[1] - cache.get_seq_length())
    known = len(inputs["pixel_values"])
    inputs = processor.prepare(conversation, pictures).load_pixels()
    encoded = []
    encode = model.encode
    model.encode = lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    kept = model.generate(**inputs, past_key_values=cache, max_new_tokens=6)
    model.encode = encode
    fresh = model.generate(**inputs, max_new_tokens=6)
    assert kept.tolist() == fresh.tolist()
    assert encoded == [len(inputs["pixel_values"]) - known]


@torch.no_grad()
def test_a_cache_that_lacks_the_pictures_of_its_text_is_refused(owl):
    model, processor = owl
    processor.cut_enable = False
    inputs, cache = prepared(processor, "What?", 1), DynamicCache(config=model.config)
    model.generate(**inputs, past_key_values=cache, max_new_tokens=1)
    with pytest.raises(RequestError, match=r"holds 1 placeholder, but 0 pictures.*Owl3Cache"):
        model.generate(**inputs, past_key_values=cache, max_new_tokens=1)


@torch.no_grad()
def test_a_cache_that_is_cropped_forgets_the_pictures_of_what_is_removed(owl):
    model, processor = owl
    processor.cut_enable = False
    inputs, cache = prepared(processor, "Compare.", 1, 2), Owl3Cache(config=model.config)
    (starts,) = inputs["placeholder_starts"]
    output = model(**inputs, past_key_values=cache)
    assert cache.side_cache is output.side_cache
    cache.crop(starts[1] - cache.get_seq_length())
    assert [row.placeholder_starts for row in cache.side_cache.rows] == [starts[:1]]
    assert cache.side_cache.nbytes() == output.side_cache.nbytes() / 2


@torch.no_grad()
def test_beams_of_several_pictures_equal_beams_without_shared_keys(owl):
    """Upstream's beams attend to the wrong pictures. Here each beam is scored again by a plain forward pass."""
    model, processor = owl
    processor.cut_enable = False
    batch = processor.collate(
        [
            processor.prepare([ask("Compare.", *(image(m.frames[0].image) for m in media))], media)
            for media in ([photo(1), photo(2)], [photo(3)])
        ],
        padding_side="left",
    )
    found = model.generate(
        **batch, max_new_tokens=4, num_beams=3, num_return_sequences=3, output_scores=True,
        return_dict_in_generate=True, eos_token_id=319, suppress_tokens=[319], length_penalty=0.0,
    )  # fmt: skip
    features, starts = model.encode(batch["pixel_values"]), batch["placeholder_starts"]
    for number, tokens in enumerate(found.sequences):
        row = number // 3
        ids = torch.cat([batch["input_ids"][row], tokens])[None]
        mask = torch.cat([batch["attention_mask"][row], torch.ones_like(tokens)])[None]
        own = {"image_embeds": features[:2] if row == 0 else features[2:], "placeholder_starts": [starts[row]]}
        logits = model(input_ids=ids, attention_mask=mask, **own).logits[0]
        scores = logits[-len(tokens) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None]).sum()
        torch.testing.assert_close(found.sequences_scores[number], scores, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_keys_and_values_of_pictures_are_computed_once_and_never_per_token(owl):
    model, processor = owl
    calls = []
    for layer in model.language_model.model.layers:
        if isinstance(layer, HyperDecoderLayer):
            layer.self_attn.v_kv_proj.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**prepared(processor, "What?", 1), max_new_tokens=6, eos_token_id=[])
    assert len(calls) == len(model.config.hyper_layers)


@torch.no_grad()
def test_the_last_block_of_the_tower_is_never_run(owl):
    model, _ = owl
    last = model.vision_model.encoder.layers[-1]
    last.register_forward_hook(lambda *_: pytest.fail("its output is not used"))
    assert model.encode(torch.randn(2, 3, 28, 28)).shape == (2, 4, 64)


@torch.no_grad()
def test_pictures_encoded_in_chunks_have_the_same_features_and_keys(owl):
    model, _ = owl
    pixels = torch.randn(5, 3, 28, 28)
    together = model.encode(pixels)
    layer = next(each for each in model.language_model.model.layers if isinstance(each, HyperDecoderLayer))
    key, value = layer.project(together, [3, 9, 14, 20, 26])
    model.config.vision_batch_size = 2
    torch.testing.assert_close(model.encode(pixels), together, atol=EXACT_ATTENTION, rtol=0)
    key_in_chunks, value_in_chunks = layer.project(together, [3, 9, 14, 20, 26])
    model.config.vision_batch_size = 16
    torch.testing.assert_close(key_in_chunks, key, atol=EXACT_ATTENTION, rtol=0)
    torch.testing.assert_close(value_in_chunks, value, atol=EXACT_ATTENTION, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_features_are_normalised_once_for_all_layers_and_to_the_bit_as_each_would(owl, monkeypatch, dtype):
    model = copy.deepcopy(owl[0]).to(dtype)
    patches = model.config.patches_per_picture
    features = (torch.randn(40, patches, model.config.hidden_size) * 3).to(dtype)
    assert features.shape[0] * patches > 2 * NORMED_ROWS["cpu"], "several blocks"
    hyper = [layer for layer in model.language_model.model.layers if isinstance(layer, HyperDecoderLayer)]
    for layer in hyper:
        torch.nn.init.normal_(layer.input_layernorm.weight)
    positions = list(range(40))
    expected = [layer.project(features, positions) for layer in hyper]
    side_cache, norms, given = VisualKVCache(1, patches), [], features.clone()
    side_cache.add(features, [positions], [positions])
    monkeypatch.setattr(
        fusion, "over_root_mean_square", lambda *a, **b: norms.append(1) or over_root_mean_square(*a, **b)
    )
    found = [layer._key_values(side_cache, features.device, store=True)[0] for layer in hyper]
    assert len(norms) == 1 < len(hyper)
    assert torch.equal(features, given), "a cache may keep them"
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_rows_of_a_batch_read_the_rows_of_the_cache_as_generation_repeats_them():
    side_cache = VisualKVCache(2, patches=4)
    assert [side_cache.row_of(row, 6) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [side_cache.row_of(row, 2) for row in range(2)] == [0, 1]


@torch.no_grad()
def test_beams_that_shared_pictures_may_get_new_ones_of_their_own(owl):
    model, processor = owl
    processor.cut_enable = False
    inputs = prepared(processor, "What?", 1)
    ids, (starts,), features = inputs["input_ids"], inputs["placeholder_starts"], model.encode(inputs["pixel_values"])
    side_cache = VisualKVCache(1, model.config.patches_per_picture)
    side_cache.add(features, [starts], model.picture_positions([starts], None, 0, ids.shape[1]))
    kept = {"past_key_values": DynamicCache(config=model.config), "side_cache": side_cache}
    twice = ids.repeat(2, 1)
    model(input_ids=twice, **kept)
    more = model.encode(torch.randn(2, 3, 28, 28))
    later = model(input_ids=twice, image_embeds=more, placeholder_starts=[starts, starts], **kept)
    for row in range(2):
        both = torch.cat([features, more[row : row + 1]])
        all_starts = [*starts, *(ids.shape[1] + start for start in starts)]
        whole = model(input_ids=ids.repeat(1, 2), image_embeds=both, placeholder_starts=[all_starts]).logits
        torch.testing.assert_close(later.logits[row], whole[0, ids.shape[1] :], atol=SAME_MATHS, rtol=0)


def test_features_move_to_a_device_once_however_many_layers_are_there(monkeypatch):
    side_cache, elsewhere = VisualKVCache(1, patches=3), torch.device("meta")
    side_cache.add(torch.zeros(2, 3, 8), [[0, 4]], [[0, 4]])
    moves, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where: moves.append(where) or to(self, *where))

    def project(features, positions):
        assert features.device == elsewhere
        assert positions == [0, 4]
        return features.new_zeros(2, 6, 4), features.new_zeros(2, 6, 4)

    for layer in (1, 3, 5):
        side_cache.store(layer, side_cache.project(layer, project, elsewhere))
    side_cache.end_pass()
    assert moves == [(elsewhere,)]
    for layer in (1, 3, 5):
        assert all(key.device == elsewhere for key, _ in side_cache.key_values(layer)), "they stay where they are read"


@torch.no_grad()
def test_pictures_that_a_failed_pass_left_behind_are_told(owl, monkeypatch):
    model, processor = owl
    inputs, cache = prepared(processor, "What?", 1), Owl3Cache(config=model.config)
    kept = model(**inputs, past_key_values=cache).side_cache
    monkeypatch.setattr(model.language_model, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**inputs, past_key_values=cache)
    monkeypatch.undo()
    assert kept.pending is not None
    with pytest.raises(RuntimeError, match="new cache"):
        model(**inputs, past_key_values=cache)


def test_what_is_projected_without_being_stored_leaves_nothing_behind():
    side_cache = VisualKVCache(2, patches=3)
    side_cache.add(torch.zeros(1, 3, 8), [[], [4]], [[], [4]])
    keys = torch.ones(2, 3, 4)
    for _ in range(2):
        found = side_cache.project(1, lambda *_: (keys, keys), keys.device)
        assert [key.shape[1] for key, _ in found] == [0, 3]
    assert side_cache.nbytes() == 0
