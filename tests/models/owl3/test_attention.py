"""The kernels of hyper attention against its dense equations, and the runs that they go by."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from owl3_samples import photo, prepared
from samples import tiny_model
from tolerances import EXACT_ATTENTION, SAME_MATHS

from longview.messages import Message, ask, image
from longview.models import owl3
from longview.models.owl3 import attention, fusion
from longview.models.owl3.attention import (
    PrefixAttention,
    Run,
    attend_by_runs,
    attend_text,
    rectangles_of,
    runs_of,
    text_mask,
)
from longview.models.owl3.fusion import joint_attention, merge_softmaxes, visual_attention

STARTS = st.lists(st.integers(0, 40), unique=True, max_size=8).map(sorted)
SAMPLES = st.lists(st.integers(1, 40), unique=True, max_size=3).map(sorted)


@given(starts=STARTS, begin=st.integers(0, 30), length=st.integers(1, 30), inclusive=st.booleans())
def test_runs_say_of_every_token_how_many_pictures_stand_before_it(starts, begin, length, inclusive):
    runs = runs_of(starts, begin, length, inclusive)
    visible = [0] * length
    for run in runs:
        assert run.pictures > 0
        visible[run.begin : run.end] = [run.pictures] * (run.end - run.begin)
    expected = [sum(s <= t if inclusive else s < t for s in starts) for t in range(begin, begin + length)]
    assert visible == expected
    assert len({run.pictures for run in runs}) == len(runs), "neighbouring tokens that see the same share a run"


@given(starts=STARTS, samples=SAMPLES, inclusive=st.booleans())
def test_a_token_of_a_packed_row_sees_the_pictures_of_its_own_sample_before_it(starts, samples, inclusive):
    runs = runs_of(starts, 0, 45, inclusive, samples)
    seen = {token: set() for token in range(45)}
    for run in runs:
        for token in range(run.begin, run.end):
            seen[token] = set(range(run.first, run.pictures))
    own = [max([0, *(sample for sample in samples if sample <= token)]) for token in range(45)]
    for token in range(45):
        before = {n for n, start in enumerate(starts) if (start <= token if inclusive else start < token)}
        assert seen[token] == {n for n in before if starts[n] >= own[token]}


@given(starts=STARTS, samples=st.lists(st.integers(1, 40), unique=True, max_size=2), begin=st.integers(0, 30))
def test_rectangles_hold_each_pair_of_the_runs_once(starts, samples, begin):
    runs = runs_of(starts, begin, 30, True, samples)

    def pairs(parts):
        both = (itertools.product(range(part.begin, part.end), range(part.first, part.pictures)) for part in parts)
        return sorted(itertools.chain.from_iterable(both))

    assert pairs(rectangles_of(runs)[0]) == pairs(runs)


def test_a_staircase_is_cut_into_a_rectangle_a_step_and_few_large_ones():
    rectangles, staircases = rectangles_of([Run(step, step + 1, step + 1) for step in range(64)])
    sizes = sorted(((r.end - r.begin) * (r.pictures - r.first) for r in rectangles), reverse=True)
    assert not staircases
    assert len(rectangles) < 128
    assert sum(sizes[:16]) > 0.75 * sum(sizes)


@given(starts=STARTS, samples=st.lists(st.integers(1, 40), unique=True, max_size=2), most=st.integers(0, 60))
def test_staircases_hold_whole_runs_and_rectangles_the_rest(starts, samples, most):
    runs = runs_of(starts, 0, 45, True, samples)
    rectangles, staircases = rectangles_of(runs, most)
    seen = {
        (query, picture)
        for run in runs
        for query in range(run.begin, run.end)
        for picture in range(run.first, run.pictures)
    }
    found = [
        (q, p) for part in rectangles for q in range(part.begin, part.end) for p in range(part.first, part.pictures)
    ]
    for part in staircases:
        assert (part.end - part.begin) * (part.pictures - part.first) <= most
        inside = itertools.product(range(part.begin, part.end), range(part.first, part.pictures))
        found += [pair for pair in inside if pair in seen]
    assert sorted(found) == sorted(seen)


def dense(query, key, value, runs, patches):
    """`visual_attention` of one row, with the mask that the runs mean."""
    visible = torch.zeros(query.shape[2], key.shape[1], dtype=torch.bool)
    for run in runs:
        visible[run.begin : run.end, run.first * patches : run.pictures * patches] = True
    output, lse = visual_attention(query[None], key[None], value[None], visible[None, None])
    return output[0], lse[0]


def drawn(*shapes, seed=1, **settings):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, **settings) for shape in shapes]


@pytest.fixture
def plain(monkeypatch):
    """No fused operator is there."""
    monkeypatch.setattr(attention, "fused_attention", lambda *_: None)


@pytest.mark.parametrize("block_bytes", [64, 1 << 20, None], ids=["many blocks", "one block", "fused"])
@pytest.mark.parametrize(
    "runs", [[Run(2, 5, 1), Run(5, 9, 3)], [Run(2, 4, 1), Run(5, 7, 2, first=1), Run(7, 9, 3, first=1)]]
)
def test_streaming_attention_equals_the_dense_one_and_so_do_its_gradients(request, monkeypatch, block_bytes, runs):
    if block_bytes is not None:
        request.getfixturevalue("plain")
        monkeypatch.setattr(attention, "SCORES_BYTES", block_bytes)
    inputs = drawn((2, 3, 9, 8), (2, 12, 8), (2, 12, 8))
    grad, grad_lse = drawn((2, 3, 9, 8), (2, 3, 9), seed=2)
    found = []
    for attend in (PrefixAttention.apply, dense):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output, lse = attend(*leaves, runs, 4)
        sees = torch.isfinite(lse)
        assert not sees[:, :, :2].any()
        assert (output[~sees] == 0).all()
        ((output * grad).sum() + (lse[sees] * grad_lse[sees]).sum()).backward()
        found.append([output, lse, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=EXACT_ATTENTION, rtol=0)


@pytest.mark.parametrize("stairs_bytes", [400, 2000, 1 << 20])
def test_runs_of_a_staircase_that_are_computed_at_once_have_the_dense_context(monkeypatch, stairs_bytes):
    monkeypatch.setattr(attention, "STAIRCASE_BYTES", {"cpu": stairs_bytes})
    inputs = drawn((2, 3, 16, 8), (2, 20, 8), (2, 20, 8))
    (grad,) = drawn((2, 3, 16, 8), seed=2)
    for runs in (
        [Run(2, 5, 1), Run(5, 7, 2), Run(7, 9, 4), Run(9, 16, 5)],
        [Run(1, 4, 1), Run(5, 8, 3, 1), Run(8, 9, 5, 1)],
    ):
        found = []
        for attend in (PrefixAttention.apply, dense):
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            output, lse = attend(*leaves, runs, 4)
            (output * grad).sum().backward()
            found.append([output, lse, *(leaf.grad for leaf in leaves)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=EXACT_ATTENTION, rtol=0)


@pytest.mark.parametrize(("pieces", "piece_keys"), [(16, 4096), (1, 12), (3, 4), (5, 2)])
@pytest.mark.parametrize("group", [1, 7, 8])
@torch.no_grad()
def test_a_single_token_that_sees_all_pictures_has_the_dense_context(monkeypatch, group, pieces, piece_keys):
    monkeypatch.setattr(attention, "PIECES", pieces)
    monkeypatch.setattr(attention, "PIECE_KEYS", piece_keys)
    monkeypatch.setattr(attention.PrefixAttention, "apply", lambda *_: pytest.fail("it has a kernel of its own"))
    query, key, value = drawn((2, group, 1, 8), (2, 12, 8), (2, 12, 8))
    runs = [Run(0, 1, 3)]
    for ours, theirs in zip(attend_by_runs(query, key, value, runs, 4), dense(query, key, value, runs, 4), strict=True):
        torch.testing.assert_close(ours, theirs, atol=EXACT_ATTENTION, rtol=0)


@torch.no_grad()
def test_a_single_token_that_sees_some_pictures_has_the_dense_context():
    query, key, value = drawn((2, 3, 1, 8), (2, 12, 8), (2, 12, 8))
    for runs in ([Run(0, 1, 2)], [Run(0, 1, 3, first=1)], []):
        for ours, theirs in zip(
            attend_by_runs(query, key, value, runs, 4), dense(query, key, value, runs, 4), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=EXACT_ATTENTION, rtol=0)


@pytest.mark.parametrize("block_bytes", [64, 1 << 20, None], ids=["many blocks", "one block", "fused"])
@pytest.mark.parametrize("kind", ["causal", "padding", "boolean", "additive"])
@torch.no_grad()
def test_two_softmaxes_merged_are_the_joint_one(request, monkeypatch, block_bytes, kind):
    if block_bytes is not None:
        request.getfixturevalue("plain")
        monkeypatch.setattr(attention, "SCORES_BYTES", block_bytes)
    batch, groups, length, cached, patches, scale = 2, 3, 9, 4, 4, 8**-0.5
    query, key, value, visual_key, visual_value = drawn(
        (batch, 2 * groups, length, 8), *[(batch, 2, cached + length, 8)] * 2, *[(batch, 2, 3 * patches, 8)] * 2
    )
    mask = None
    if kind != "causal":
        mask = torch.ones(batch, cached + length, dtype=torch.bool)
        mask[1, :2] = False
    readable = text_mask(mask, length, cached + length, torch.device("cpu"))
    if kind == "boolean":
        mask = readable
    elif kind == "additive":
        mask = torch.zeros(readable.shape).masked_fill(~readable, torch.finfo(torch.float32).min)
    runs = [Run(2, 5, 1), Run(5, 9, 3)]
    visible = torch.zeros(batch, 1, length, 3 * patches, dtype=torch.bool)
    for run in runs:
        visible[:, :, run.begin : run.end, : run.pictures * patches] = True
    expected = joint_attention(query, (key, value), readable, (visual_key, visual_value), visible, scale)
    grouped = query.unflatten(1, (2, -1)) * scale
    rows = [attend_by_runs(*row, runs, patches) for row in zip(grouped, visual_key, visual_value, strict=True)]
    visual, visual_lse = (torch.stack(part) for part in zip(*rows, strict=True))
    found = merge_softmaxes(*attend_text(grouped, key, value, mask), visual, visual_lse).flatten(1, 2)
    torch.testing.assert_close(found, expected, atol=EXACT_ATTENTION, rtol=0)


def test_streaming_attention_passes_gradcheck_in_double_precision():
    runs, patches = [Run(0, 2, 1), Run(2, 3, 2)], 3

    def attend(query, key, value):
        return PrefixAttention.apply(query, key, value, runs, patches)

    # the function computes in fp32, so the finite differences are coarse and so is the comparison
    inputs = drawn((1, 2, 3, 4), (1, 6, 4), (1, 6, 4), seed=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(attend, [tensor.requires_grad_() for tensor in inputs], eps=1e-2, atol=2e-3)


@pytest.mark.parametrize("variant", owl3.Config.variants)
def test_rows_computed_as_one_dense_batch_and_row_by_row_agree(monkeypatch, variant, tokenizer):
    model, processor = tiny_model(owl3, variant, tokenizer)
    samples = []
    for count in (3, 0, 1):
        media = [photo(seed) for seed in range(count)]
        asked = ask("and now?", *(image(medium.frames[0].image) for medium in media))
        samples.append(processor.prepare([asked, Message.of("assistant", "three or so")], media, train=True))
    batch = processor.collate(samples)
    found = []
    for limit in (0, fusion.DENSE_BYTES):
        monkeypatch.setattr(fusion, "DENSE_BYTES", limit)
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        found.append([output.logits.detach(), *copy.deepcopy(gradients)])
    for by_row, dense_batch in zip(*found, strict=True):
        torch.testing.assert_close(dense_batch, by_row, atol=SAME_MATHS, rtol=SAME_MATHS)


@pytest.mark.parametrize("variant", owl3.Config.variants)
def test_no_mask_of_text_tokens_times_visual_keys_is_made(monkeypatch, plain, variant, tokenizer):
    """Whatever the number of pictures, no tensor of the sdpa path has a row of all their keys for every token."""
    model, processor = tiny_model(owl3, variant, tokenizer)
    processor.cut_enable = False
    monkeypatch.setattr(attention, "SCORES_BYTES", 4096)
    inputs = prepared(processor, "Compare them all, please.", *range(12))
    tokens, keys = inputs["input_ids"].shape[1], 12 * model.config.patches_per_picture
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            output = function(*args, **(kwargs or {}))
            if isinstance(output, torch.Tensor) and output.dim() >= 2 and output.shape[-1] in (keys, keys + tokens):
                largest = max(largest, output.shape[-2])
            return output

    arguments = model.embed_pictures(inputs)
    with torch.no_grad(), Watch():
        model(**arguments)
    assert largest < tokens
