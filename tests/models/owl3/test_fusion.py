"""Hyper attention: runs, the streaming softmax, and what a side_cache keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import noise, tiny_model
from tolerances import EXACT_ATTENTION, SAME_MATHS
from transformers import DynamicCache

import longview.models.owl3.fusion as fusion
from longview.errors import RequestError
from longview.media import Frame, Medium
from longview.messages import Message, ask, image
from longview.models import owl3
from longview.models.owl3.fusion import PrefixAttention, Run, VisualKVCache, attention_of_one, runs_of


@given(
    starts=st.lists(st.integers(0, 40), unique=True, max_size=8).map(sorted),
    begin=st.integers(0, 30),
    length=st.integers(1, 30),
    inclusive=st.booleans(),
)
def test_runs_say_of_every_token_how_many_pictures_stand_before_it(starts, begin, length, inclusive):
    runs = runs_of(starts, begin, length, inclusive)
    visible = [0] * length
    for run in runs:
        assert run.pictures > 0
        visible[run.begin : run.end] = [run.pictures] * (run.end - run.begin)
    expected = [sum(s <= t if inclusive else s < t for s in starts) for t in range(begin, begin + length)]
    assert visible == expected
    assert len({run.pictures for run in runs}) == len(runs), "neighbouring tokens that see the same share a run"


def dense(query, key, value, runs, patches):
    """The same attention with a mask, for comparison."""
    length, num_keys = query.shape[2], key.shape[1]
    seen = torch.zeros(length, num_keys, dtype=torch.bool)
    for run in runs:
        seen[run.begin : run.end, : run.pictures * patches] = True
    scores = torch.einsum("hgtd,hmd->hgtm", query, key).masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = torch.where(seen, scores.softmax(-1), 0.0)
    return torch.einsum("hgtm,hmd->hgtd", weights, value), lse


@pytest.mark.parametrize("block_bytes", [64, 1 << 20], ids=["many blocks", "one block"])
def test_streaming_attention_equals_a_dense_masked_softmax_and_so_do_its_gradients(monkeypatch, block_bytes):
    monkeypatch.setattr(fusion, "SCORES_BYTES", block_bytes)
    torch.manual_seed(1)
    runs, patches = [Run(2, 5, 1), Run(5, 9, 3)], 4
    inputs = [torch.randn(2, 3, 9, 8), torch.randn(2, 12, 8), torch.randn(2, 12, 8)]
    grad, grad_lse = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9)
    found = []
    for attend in (PrefixAttention.apply, dense):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output, lse = attend(*leaves, runs, patches)
        blind = torch.isinf(lse)
        assert blind[:, :, :2].all()
        assert not blind[:, :, 2:].any()
        loss = (output * grad)[:, :, 2:].sum() + (lse * grad_lse)[:, :, 2:].sum()
        loss.backward()
        found.append([output[:, :, 2:], lse[:, :, 2:], *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs.nan_to_num(), atol=EXACT_ATTENTION, rtol=0)


@pytest.mark.parametrize("group", [1, 7, 8])
def test_one_token_that_sees_all_pictures_sees_what_a_streaming_softmax_sees(group):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(*shape, generator=generator) for shape in ((2, group, 1, 8), (2, 12, 8), (2, 12, 8))
    )
    found = attention_of_one(query, key, value)
    expected = PrefixAttention.apply(query, key, value, [Run(0, 1, 3)], 4)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=EXACT_ATTENTION, rtol=0)


@pytest.mark.parametrize("variant", owl3.Config.variants)
def test_rows_looked_at_as_one_batch_say_what_rows_looked_at_one_by_one_say(monkeypatch, variant, tokenizer):
    model, processor = tiny_model(owl3, variant, tokenizer)
    samples = []
    for count in (3, 0, 1):
        media = [
            Medium("image", "p", [Frame(noise(n, 40, 40), 0, None)], 40, 40, 1, None, None, "") for n in range(count)
        ]
        asked = [ask("and now?", *(image("p") for _ in media)), Message.of("assistant", "three or so")]
        samples.append(processor.prepare(asked, media, train=True))
    batch = processor.collate(samples)
    found = []
    for limit in (0, fusion.DENSE_BYTES):
        monkeypatch.setattr(fusion, "DENSE_BYTES", limit)
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        found.append([output.logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        found[-1] = [tensor.clone() for tensor in found[-1]]
    for one_by_one, together in zip(*found, strict=True):
        torch.testing.assert_close(together, one_by_one, atol=SAME_MATHS, rtol=SAME_MATHS)


def test_streaming_attention_passes_gradcheck_in_double_precision():
    torch.manual_seed(2)
    runs, patches = [Run(0, 2, 1), Run(2, 3, 2)], 3

    def attend(query, key, value):
        return PrefixAttention.apply(query, key, value, runs, patches)

    # the function computes in fp32, so the finite differences are coarse and so is the comparison
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 2, 3, 4), (1, 6, 4), (1, 6, 4))
    ]
    assert torch.autograd.gradcheck(attend, inputs, eps=1e-2, atol=2e-3)


def medium(seed: int) -> Medium:
    picture = noise(seed)
    return Medium("image", "photo", [Frame(picture, 0, None)], *picture.size, 1, None, None, "digest")


@pytest.fixture(params=owl3.Config.variants)
def owl(request, tokenizer):
    return tiny_model(owl3, request.param, tokenizer)


def prepared(processor, question: str, *seeds: int) -> dict:
    pictures = [medium(seed) for seed in seeds]
    return processor.prepare([ask(question, *(image(m.frames[0].image) for m in pictures))], pictures).load_pixels()


def starts_of(tensors) -> list[int]:
    return owl3.processor.placeholder_starts(tensors["media_offset"], 1)[0]


@torch.no_grad()
def test_a_picture_that_arrives_after_cached_text_counts_as_if_it_had_been_there(owl):
    model, processor = owl
    processor.cut_enable = False
    tensors = prepared(processor, "Compare.", 1, 2)
    ids, starts, features = tensors["input_ids"], starts_of(tensors), model.encode(tensors["pixel_values"])
    whole = model(input_ids=ids, image_embeds=features, media_offset=[starts]).logits
    border = starts[1] - 3
    cache = DynamicCache(config=model.config)
    first = model(
        input_ids=ids[:, :border], image_embeds=features[:1], media_offset=[starts[:1]], past_key_values=cache
    )
    second = model(
        input_ids=ids[:, border:], image_embeds=features[1:], media_offset=[[starts[1] - border]], past_key_values=cache
    )
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_several_turns_with_the_cache_kept_equal_one_long_conversation(owl):
    model, processor = owl
    processor.cut_enable = (
        processor.config.release != "240728"
    )  # which cuts a lone picture only: the first turn would change
    pictures = [medium(1), medium(2)]
    first = [ask("What?", image(pictures[0].frames[0].image))]
    tensors = processor.prepare(first, pictures[:1]).load_pixels()
    cache = DynamicCache(config=model.config)
    model.generate(**tensors, past_key_values=cache, max_new_tokens=4)
    conversation = [*first, Message.of("assistant", "A cat."), ask("And this?", image(pictures[1].frames[0].image))]
    # generation stops before it has read its last token, and the answer we pretend it gave is another one
    cache.crop(tensors["input_ids"].shape[1] - cache.get_seq_length())
    tensors = processor.prepare(conversation, pictures).load_pixels()
    encoded = []
    encode = model.encode
    model.encode = lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    kept = model.generate(**tensors, past_key_values=cache, max_new_tokens=6)
    model.encode = encode
    fresh = model.generate(**tensors, max_new_tokens=6)
    assert kept.tolist() == fresh.tolist()
    assert encoded == [
        len(tensors["pixel_values"]) - len(processor.prepare(first, pictures[:1]).load_pixels()["pixel_values"])
    ]


@torch.no_grad()
def test_beams_of_several_pictures_equal_beams_without_shared_keys(owl):
    """Upstream's beams look at the wrong pictures. Here each beam is scored again by a plain forward pass."""
    model, processor = owl
    processor.cut_enable = False
    batch = processor.collate(
        [
            processor.prepare([ask("Compare.", *(image(m.frames[0].image) for m in ms))], ms)
            for ms in ([medium(1), medium(2)], [medium(3)])
        ],
        padding_side="left",
    )
    found = model.generate(
        **batch, max_new_tokens=4, num_beams=3, num_return_sequences=3, output_scores=True,
        return_dict_in_generate=True, eos_token_id=319, suppress_tokens=[319], length_penalty=0.0,
    )  # fmt: skip
    features = model.encode(batch["pixel_values"])
    starts = [list(map(int, row)) for row in batch["media_offset"]]
    for number, tokens in enumerate(found.sequences):
        row = number // 3
        ids = torch.cat([batch["input_ids"][row], tokens])[None]
        mask = torch.cat([batch["attention_mask"][row], torch.ones_like(tokens)])[None]
        own = features[:2] if row == 0 else features[2:]
        logits = model(input_ids=ids, attention_mask=mask, image_embeds=own, media_offset=[starts[row]]).logits[0]
        scores = logits[-len(tokens) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None]).sum()
        torch.testing.assert_close(found.sequences_scores[number], scores, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_keys_and_values_of_pictures_are_computed_once_and_never_per_token(owl):
    model, processor = owl
    calls = []
    for layer in model.language_model.model.layers:
        if isinstance(layer, fusion.HyperDecoderLayer):
            layer.self_attn.v_kv_proj.register_forward_hook(lambda *_: calls.append(1))
    tensors = prepared(processor, "What?", 1)
    model.generate(**tensors, max_new_tokens=6, eos_token_id=[])
    assert len(calls) == len(model.config.hyper_layers)


@torch.no_grad()
def test_the_last_block_of_the_tower_is_never_run(owl):
    model, _ = owl
    last = model.vision_model.encoder.layers[-1]
    last.register_forward_hook(lambda *_: pytest.fail("its output is not read"))
    assert model.encode(torch.randn(2, 3, 28, 28)).shape == (2, 4, 64)


@torch.no_grad()
def test_pictures_encoded_in_chunks_have_the_same_features_and_keys(owl):
    model, _ = owl
    pixels = torch.randn(5, 3, 28, 28)
    together = model.encode(pixels)
    layer = next(la for la in model.language_model.model.layers if isinstance(la, fusion.HyperDecoderLayer))
    key, value = layer.project(together, [3, 9, 14, 20, 26])
    model.config.vision_batch_size = 2
    torch.testing.assert_close(model.encode(pixels), together, atol=EXACT_ATTENTION, rtol=0)
    key_in_chunks, value_in_chunks = layer.project(together, [3, 9, 14, 20, 26])
    model.config.vision_batch_size = 16
    torch.testing.assert_close(key_in_chunks, key, atol=EXACT_ATTENTION, rtol=0)
    torch.testing.assert_close(value_in_chunks, value, atol=EXACT_ATTENTION, rtol=0)


def test_no_mask_of_words_times_pictures_is_made(monkeypatch, owl):
    """Whatever the number of pictures, no tensor of the sdpa path has a row of all their keys for every word."""
    model, processor = owl
    processor.cut_enable = False
    monkeypatch.setattr(fusion, "SCORES_BYTES", 4096)
    tensors = prepared(processor, "Compare them all, please.", *range(12))
    words, keys = tensors["input_ids"].shape[1], 12 * model.config.patches_per_picture
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor) and output.dim() >= 2 and output.shape[-1] in (keys, keys + words):
                largest = max(largest, output.shape[-2])
            return output

    features = model.encode(tensors["pixel_values"])
    with torch.no_grad(), Watch():
        model(input_ids=tensors["input_ids"], image_embeds=features, media_offset=tensors["media_offset"])
    assert largest < words


def test_rows_of_a_gallery_map_to_walls_as_generation_repeats_them():
    side_cache = VisualKVCache(2, patches=4)
    assert [side_cache.pictures_of_row(row, 6) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [side_cache.pictures_of_row(row, 2) for row in range(2)] == [0, 1]


@torch.no_grad()
def test_beams_that_shared_pictures_may_look_at_new_ones_of_their_own(owl):
    model, processor = owl
    processor.cut_enable = False
    tensors = prepared(processor, "What?", 1)
    ids, starts, features = tensors["input_ids"], starts_of(tensors), model.encode(tensors["pixel_values"])
    side_cache = VisualKVCache(1, model.config.patches_per_picture)
    side_cache.hang(features, [starts], model.picture_positions([starts], None, 0, ids.shape[1]))
    cache = DynamicCache(config=model.config)
    model(input_ids=ids.repeat(2, 1), past_key_values=cache, side_cache=side_cache)
    more = model.encode(torch.randn(2, 3, 28, 28))
    later = model(input_ids=ids.repeat(2, 1), past_key_values=cache, image_embeds=more, media_offset=[starts, starts])
    for row in range(2):
        offsets = [*starts, *(ids.shape[1] + start for start in starts)]
        both = torch.cat([features, more[row : row + 1]])
        whole = model(input_ids=ids.repeat(1, 2), image_embeds=both, media_offset=[offsets]).logits
        torch.testing.assert_close(later.logits[row], whole[0, ids.shape[1] :], atol=SAME_MATHS, rtol=0)


def test_generate_without_ids_says_what_it_needs(owl):
    with pytest.raises(RequestError, match="input_ids"):
        owl[0].generate()


def test_pictures_move_to_a_device_once_however_many_blocks_live_there(monkeypatch):
    side_cache, elsewhere = VisualKVCache(1, patches=3), torch.device("meta")
    side_cache.hang(torch.zeros(2, 3, 8), [[0, 4]], [[0, 4]])
    moves, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where: moves.append(where) or to(self, *where))

    def project(features, positions):
        assert features.device == elsewhere
        assert positions == [0, 4]
        return features.new_zeros(2, 6, 4), features.new_zeros(2, 6, 4)

    for layer in (1, 3, 5):
        side_cache.states(layer, project, elsewhere, keep=True)
    assert moves == [(elsewhere,)]
    side_cache.settled()
    assert all(key.device == elsewhere for key, _ in side_cache.walls[0].states.values()), (
        "they stay where they are read"
    )
    side_cache.states(3, project, elsewhere, keep=True)
    assert len(moves) == 1
