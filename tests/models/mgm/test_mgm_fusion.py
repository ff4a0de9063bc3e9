"""Patch info mining: which features reach which patch, in which order, with and without gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import noise, tiny_model
from tolerances import SAME_MATHS

from longview.errors import CheckpointError, RequestError
from longview.media import Frame, Medium
from longview.messages import ask, image
from longview.models import mgm
from longview.models.mgm.fusion import PatchInfoMining, grid_cells, mine_views, small_views, windows


@given(side=st.integers(1, 5), step=st.integers(1, 4), width=st.integers(1, 3))
def test_a_window_holds_the_fine_features_under_its_patch(side, step, width):
    features = torch.arange(side * step * side * step * width).float().view(1, width, side * step, side * step)
    found = windows(features, side)
    assert found.shape == (1, side**2, step**2, width)
    for row in range(side):
        for column in range(side):
            for a in range(step):
                for b in range(step):
                    expected = features[0, :, row * step + a, column * step + b]
                    assert torch.equal(found[0, row * side + column, a * step + b], expected)


@given(grid=st.integers(1, 3), side=st.integers(1, 4))
def test_grid_cells_run_row_after_row(grid, side):
    picture = torch.arange((grid * side) ** 2).float().view(1, 1, grid * side, grid * side)
    found = grid_cells(picture, grid)
    for row in range(grid):
        for column in range(grid):
            rows, columns = (slice(n * side, (n + 1) * side) for n in (row, column))
            assert torch.equal(found[0, row * grid + column, 0], picture[0, 0, rows, columns])


def mined(grid: int):
    torch.manual_seed(0)
    mining = PatchInfoMining(6, 5)
    coarse = torch.randn(1, grid**2 + (grid > 1), 9, 6)
    fine = torch.randn(1, 5, 12 * grid, 12 * grid, requires_grad=True)
    return mine_views(mining, coarse, fine, grid)[0], fine


@pytest.mark.parametrize("grid", [1, 2])
def test_a_coarse_patch_has_no_gradient_from_fine_features_outside_its_window_and_has_from_each_inside(grid):
    tokens, fine = mined(grid)
    views = [(0, 0, 12 * grid)] if grid > 1 else []  # upper, left and side of what a view covers of the fine features
    views += [(12 * row, 12 * column, 12) for row in range(grid) for column in range(grid)]
    for view, (upper, left, side) in enumerate(views):
        window = side // 3
        for patch in range(9):
            token = tokens[9 * view + patch].square().sum()
            (gradient,) = torch.autograd.grad(token, fine, retain_graph=True)
            reached = gradient[0].abs().sum(0) > 0
            expected = torch.zeros_like(reached)
            top, begin = upper + window * (patch // 3), left + window * (patch % 3)
            expected[top : top + window, begin : begin + window] = True
            assert torch.equal(reached, expected), (view, patch)


def test_mining_is_a_softmax_over_the_window_for_each_patch():
    torch.manual_seed(1)
    mining, coarse, fine = PatchInfoMining(4, 3), torch.randn(2, 4, 4), torch.randn(2, 3, 6, 6)
    found = mining(coarse, fine)
    for picture in range(2):
        for patch in range(4):
            row, column = 3 * (patch // 2), 3 * (patch % 2)
            window = fine[picture, :, row : row + 3, column : column + 3].flatten(1).T
            query, keys, values = mining.query(coarse[picture, patch]), mining.key(window), mining.value(window)
            weights = (keys @ query / math.sqrt(4)).softmax(0)
            torch.testing.assert_close(found[picture, patch], weights @ values)


def test_scores_that_half_precision_cannot_hold_are_clipped():
    mining = PatchInfoMining(4, 3).half()
    with torch.no_grad():
        for projection in (mining.query, mining.key):
            projection[1].weight.mul_(3e4)
    found = mining(torch.randn(1, 4, 4).half(), torch.randn(1, 3, 6, 6).half())
    assert torch.isfinite(found).all()


def test_fine_features_that_do_not_divide_among_the_patches_are_one_clear_error():
    with pytest.raises(CheckpointError, match="10 × 10 fine features do not divide among 4 × 4 patches"):
        windows(torch.zeros(1, 2, 10, 10), 4)


# ── the model around it ──────────────────────────────────────────────────────────────────────────────────────────────


def prepared(processor, *seeds: int) -> dict:
    pictures = [noise(seed) for seed in seeds]
    media = [Medium("image", "photo", [Frame(p, 0, None)], *p.size, 1, None, None, "digest") for p in pictures]
    return processor.prepare([ask("Compare.", *map(image, pictures))], media).load_pixels()


@pytest.mark.parametrize("variant", ["plain", "hd"])
@torch.no_grad()
def test_the_high_resolution_tower_is_the_same_in_training(tokenizer, variant):
    model, processor = tiny_model(mgm, variant, tokenizer)
    pixels = prepared(processor, 1, 2)["pixel_values"]
    used = model.encode(pixels)
    model.train()
    assert torch.equal(model.encode(pixels), used)
    model.eval()


@pytest.mark.parametrize("variant", ["plain", "hd"])
@torch.no_grad()
def test_pictures_encoded_in_chunks_have_the_same_embeddings(tokenizer, variant):
    model, _ = tiny_model(mgm, variant, tokenizer)
    side = model.config.image_size_aux
    pixels = torch.randn(5, 3, side, side)
    model.config.vision_batch_size = 100
    together = model.encode(pixels)
    model.config.vision_batch_size = 2 * model.config.image_grid**2
    calls: list = []
    apart = model.encode(pixels, lambda *step: calls.append(step))
    torch.testing.assert_close(apart, together, atol=SAME_MATHS, rtol=0)
    assert [step[:2] for step in calls] == [(2, 5), (4, 5), (5, 5)]


@torch.no_grad()
def test_mining_changes_the_embeddings_and_can_be_left_out(tokenizer):
    model, processor = tiny_model(mgm, "hd", tokenizer)
    large = prepared(processor, 1)["pixel_values"]
    images = small_views(large, 28, 2)
    mined, plain = model.encode_images(images, large), model.encode_images(images, None)
    assert mined.shape == plain.shape == (1, model.config.patches_per_picture, 64)
    assert (mined - plain).abs().max() > 100 * SAME_MATHS
    blank = torch.zeros_like(large)
    assert (model.encode_images(images, blank) - mined).abs().max() > 100 * SAME_MATHS


@torch.no_grad()
def test_the_authors_two_sizes_and_our_one_give_the_same_logits(tokenizer):
    for variant in ("plain", "hd"):
        model, processor = tiny_model(mgm, variant, tokenizer)
        tensors = prepared(processor, 1, 2)
        images, large = processor.process_images([noise(1), noise(2)])
        ours = model(input_ids=tensors["input_ids"], pixel_values=tensors["pixel_values"]).logits
        theirs = model(input_ids=tensors["input_ids"], images=images, images_aux=list(large)).logits
        torch.testing.assert_close(theirs, ours, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_a_picture_that_arrives_after_cached_text_counts_as_if_it_had_been_there(tokenizer):
    model, processor = tiny_model(mgm, "plain", tokenizer)
    tensors = prepared(processor, 1, 2)
    ids, mask, pixels = tensors["input_ids"], tensors["attention_mask"], tensors["pixel_values"]
    whole = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
    border = int((ids[0] == -200).nonzero()[1])
    first = model(input_ids=ids[:, :border], pixel_values=pixels[:1], use_cache=True)
    whole_mask = torch.cat(
        [torch.ones(1, first.past_key_values.get_seq_length(), dtype=torch.long), mask[:, border:]], dim=1
    )
    rest = model(
        input_ids=ids[:, border:],
        attention_mask=whole_mask,
        pixel_values=pixels[1:],
        past_key_values=first.past_key_values,
    )
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole, atol=SAME_MATHS, rtol=0)


@torch.no_grad()
def test_beams_equal_the_scores_of_a_plain_forward_pass(tokenizer):
    model, processor = tiny_model(mgm, "plain", tokenizer)
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


def test_pictures_and_placeholders_that_do_not_match_are_one_clear_error(tokenizer):
    model, processor = tiny_model(mgm, "plain", tokenizer)
    tensors = prepared(processor, 1, 2)
    ids, pixels = tensors["input_ids"], tensors["pixel_values"]
    images, large = processor.process_images([noise(1), noise(2)])
    for arguments, complaint in (
        ({}, "0 pictures for 2 placeholders"),
        ({"pixel_values": pixels[:1]}, "1 picture for 2 placeholders"),
        ({"images": images[:1], "images_aux": large[:1]}, "1 picture for 2 placeholders"),
        ({"images": images, "images_aux": large[:1]}, "images holds 2 pictures, images_aux 1"),
    ):
        with pytest.raises(RequestError, match=complaint):
            model(input_ids=ids, **arguments)
    with pytest.raises(RequestError, match="generate needs input_ids"):
        model.generate()
    with pytest.raises(RequestError, match="forward needs"):
        model()
    with pytest.raises(RequestError, match="init_processor"):
        _ = model.processor
    assert model.init_processor(tokenizer) is model.processor


@pytest.mark.parametrize(
    ("variant", "shape"), [("plain", (3, 28, 28)), ("hd", (1, 4, 3, 28, 28)), ("hd", (5, 3, 28, 28))]
)
def test_pictures_in_another_form_than_the_model_takes_are_one_clear_error(tokenizer, variant, shape):
    model, _ = tiny_model(mgm, variant, tokenizer)
    with pytest.raises(RequestError, match=r"images has the shape .*; this model takes \(n, "):
        model.encode_images(torch.zeros(shape), None)
