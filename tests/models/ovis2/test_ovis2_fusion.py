"""Visual tokens, the table, and how pictures take their places in the sequence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import noise, tiny_model
from tolerances import SAME_MATHS
from transformers import DynamicCache

from longview.errors import RequestError
from longview.media import Frame, Medium
from longview.messages import ask, image
from longview.models import ovis2
from longview.models.ovis2.fusion import BEGIN, END, INDICATORS, PLACEHOLDER, merge, merge_patches, tokenize


@given(side=st.integers(1, 7), stride=st.integers(1, 4), width=st.integers(1, 3))
def test_merged_patches_are_the_squares_of_the_grid_laid_side_by_side(side, stride, width):
    features = torch.arange(1, side * side * width + 1).float().view(1, side * side, width)
    found = merge_patches(features, stride)
    merged_side = -(-side // stride)
    assert found.shape == (1, merged_side**2, stride**2 * width)
    for row in range(merged_side):
        for column in range(merged_side):
            token = found[0, row * merged_side + column].view(stride, stride, width)
            for a in range(stride):
                for b in range(stride):
                    y, x = row * stride + a, column * stride + b
                    inside = y < side and x < side
                    expected = features[0, y * side + x] if inside else torch.zeros(width)
                    assert torch.equal(token[a, b], expected)


def test_patches_that_are_no_square_grid_cannot_be_merged():
    with pytest.raises(RequestError, match="6 patches are no square grid"):
        merge_patches(torch.zeros(1, 6, 2), 2)


def test_tokens_are_distributions_and_their_gradients_are_those_the_paper_names():
    torch.manual_seed(0)
    logits, noise_ = torch.randn(1, 5, 9, requires_grad=True), torch.randn(1, 5, 9)
    weights = torch.randn(1, 5, 9)
    references = {
        "softmax": logits.softmax(-1),
        "st_argmax": logits,
        "gumbel_argmax": ((logits + noise_) / 0.5).softmax(-1),
    }
    for function, soft in references.items():
        tokens = tokenize(logits, function, 0.5, noise_)
        torch.testing.assert_close(tokens.sum(-1), torch.ones(1, 5))
        if function != "softmax":
            hard = torch.nn.functional.one_hot(soft.argmax(-1), 9).float()
            torch.testing.assert_close(tokens, hard, atol=1e-6, rtol=0)
        (found,) = torch.autograd.grad((tokens * weights).sum(), logits, retain_graph=True)
        (expected,) = torch.autograd.grad((soft * weights).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_a_visual_word_is_drawn_by_gumbel_noise_as_often_as_by_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 1.0, 0.0]).expand(1, 4000, 3)
    shares = tokenize(logits, "gumbel_argmax", 5.0).mean((0, 1))
    torch.testing.assert_close(shares, logits[0, 0].softmax(-1), atol=0.03, rtol=0)


@st.composite
def sequences(draw):
    """Rows of text tokens, indicators and placeholders, and how many positions a crop takes."""
    ids = st.sampled_from([1, 2, 3, PLACEHOLDER, *INDICATORS])
    rows = draw(st.lists(st.lists(ids, min_size=1, max_size=8), min_size=1, max_size=3))
    return rows, draw(st.integers(1, 4)), draw(st.booleans()), draw(st.integers(1, 40))


@given(sequences())
def test_each_position_of_a_merged_sequence_is_what_stood_there(case):
    rows, crop, left, limit = case
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, length - len(row) if left else 0 :][: len(row)] = torch.tensor(row)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        mask[number, length - len(row) if left else 0 :][: len(row)] = True
    tokens = ids.clamp(min=0)[..., None].float()  # a token's embedding is its id
    pictures, expected, count = [], [], 0
    for row in ids.tolist():
        crops, flat = [], []
        for token in row:
            if token == PLACEHOLDER:
                crops.append([[1000.0 + count + t] for t in range(crop)])
                flat += [value[0] for value in crops[-1]]
                count += crop
            else:
                flat.append(float(token))
        pictures.append(torch.tensor(crops) if crops else torch.zeros(0, crop, 1))
        expected.append(flat)
    merged = merge(
        tokens, ids, mask, ids.clone(), pictures, torch.tensor([[float(i)] for i in INDICATORS]), limit, left
    )
    longest = max(map(len, expected))
    for row, flat in enumerate(expected):
        fill = [0.0] * (longest - len(flat))
        padded = fill + flat if left else flat + fill
        padded = padded[-limit:] if left else padded[:limit]
        assert merged.embeds[row, :, 0].tolist() == padded
        labels = [-100 if value >= 1000 else value for value in padded]
        found = merged.labels[row].tolist()
        kept = [bool(value) for value in padded]
        assert [int(v) for v, k in zip(labels, kept, strict=True) if k] == [
            v for v, k in zip(found, kept, strict=True) if k
        ]
        assert merged.mask[row].tolist() == kept


def test_indicator_ids_are_the_last_rows_of_the_table_in_order(tokenizer):
    model, _ = tiny_model(ovis2, "softmax", tokenizer)
    rows = model.vte.num_embeddings
    for number, indicator in enumerate(range(BEGIN, END - 1, -1)):
        embedded = model.embed_pictures({"input_ids": torch.tensor([[indicator]])})
        assert torch.equal(embedded["inputs_embeds"][0, 0], model.vte.weight[rows - 5 + number])


def prepared(processor, *seeds: int) -> dict:
    pictures = [noise(seed) for seed in seeds]
    media = [Medium("image", "photo", [Frame(p, 0, None)], *p.size, 1, None, None, "digest") for p in pictures]
    return processor.prepare([ask("Compare.", *map(image, pictures))], media).load_pixels()


@torch.no_grad()
def test_pictures_encoded_in_chunks_have_the_same_embeddings(tokenizer):
    model, _ = tiny_model(ovis2, "softmax", tokenizer)
    pixels = torch.randn(5, 3, 42, 42)
    together = model.encode(pixels)
    model.config.vision_batch_size = 2
    calls = []
    apart = model.encode(pixels, lambda *step: calls.append(step))
    torch.testing.assert_close(apart, together, atol=SAME_MATHS, rtol=0)
    assert [step[:2] for step in calls] == [(2, 5), (4, 5), (5, 5)]


@torch.no_grad()
def test_a_picture_that_arrives_after_cached_text_counts_as_if_it_had_been_there(tokenizer):
    model, processor = tiny_model(ovis2, "softmax", tokenizer)
    tensors = prepared(processor, 1, 2)
    ids, mask, pixels = tensors["input_ids"], tensors["attention_mask"], tensors["pixel_values"]
    whole = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    border = int((ids[0] == BEGIN).nonzero()[1])
    cache = DynamicCache(config=model.config)
    first = model(input_ids=ids[:, :border], pixel_values=pixels[:1], past_key_values=cache).logits
    whole_mask = torch.cat([torch.ones(1, cache.get_seq_length(), dtype=torch.long), mask[:, border:]], dim=1)
    for behind in (None, whole_mask):
        rest = model(input_ids=ids[:, border:], attention_mask=behind, pixel_values=pixels[1:], past_key_values=cache)
        torch.testing.assert_close(torch.cat([first, rest.logits], dim=1), whole, atol=SAME_MATHS, rtol=0)
        cache.crop(first.shape[1] - cache.get_seq_length())


@torch.no_grad()
def test_beams_equal_the_scores_of_a_plain_forward_pass(tokenizer):
    model, processor = tiny_model(ovis2, "softmax", tokenizer)
    tensors = prepared(processor, 1)
    found = model.generate(
        **tensors, max_new_tokens=4, num_beams=3, num_return_sequences=3, output_scores=True,
        return_dict_in_generate=True, eos_token_id=319, suppress_tokens=[319], length_penalty=0.0,
    )  # fmt: skip
    for tokens, score in zip(found.sequences, found.sequences_scores, strict=True):
        ids = torch.cat([tensors["input_ids"][0], tokens])[None]
        logits = model(input_ids=ids, pixel_values=tensors["pixel_values"]).logits[0]
        scores = logits[-len(tokens) - 1 : -1].log_softmax(-1).gather(1, tokens[:, None]).sum()
        torch.testing.assert_close(score, scores, atol=SAME_MATHS, rtol=0)


def test_rows_and_crops_that_do_not_match_are_one_clear_error(tokenizer):
    model, processor = tiny_model(ovis2, "softmax", tokenizer)
    tensors = prepared(processor, 1, 2)
    ids, pixels = tensors["input_ids"], tensors["pixel_values"]
    for pictures, complaint in (
        (None, "0 pictures for 2 placeholders"),
        ([pixels[:1]], "1 picture for 2 placeholders in row 0"),
        ([None], "0 pictures for 2 placeholders in row 0"),
        ([pixels, pixels], "describes 2 rows, but input_ids has 1"),
    ):
        with pytest.raises(RequestError, match=complaint):
            model(input_ids=ids, pixel_values=pictures)
    with pytest.raises(RequestError, match="generate needs input_ids"):
        model.generate()
    with pytest.raises(RequestError, match="forward needs"):
        model()
    with pytest.raises(RequestError, match="init_processor"):
        model.preprocess_inputs("Hello")
    assert model.init_processor(tokenizer) is model.processor


def test_the_table_is_drawn_anew_on_request(tokenizer):
    model, _ = tiny_model(ovis2, "softmax", tokenizer)
    torch.manual_seed(0)
    model.re_init_vte(3.0, 0.5)
    drawn = model.vte.weight.detach()
    assert (float(drawn.mean()), float(drawn.std())) == pytest.approx((3.0, 0.5), abs=0.05)


@torch.no_grad()
def test_components_kept_on_disk_give_the_same_answers(tokenizer, tmp_path):
    model, processor = tiny_model(ovis2, "softmax", tokenizer)
    model.save_pretrained(tmp_path)
    places = {"vte": "disk", "visual_tokenizer": "disk", "llm.lm_head": "cpu", "llm.model": "cpu"}
    split = ovis2.Model.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "off").eval()
    tensors = prepared(processor, 1)
    assert split.generate(**tensors, max_new_tokens=5).tolist() == model.generate(**tensors, max_new_tokens=5).tolist()
