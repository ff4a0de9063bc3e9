"""torch's private operators of attention are there, and give the log-sum-exp."""

from __future__ import annotations

import pytest
import torch

from longview.models.fused_attention import OPERATORS, fused_attention


def reference(query, key, value):
    scores = query.double() @ key.double().transpose(-1, -2)
    return scores.softmax(-1) @ value.double(), scores.logsumexp(-1)


def drawn(device, dtype, width=64, queries=37, keys=1300):
    generator = torch.Generator().manual_seed(1)
    shapes = (2, queries, width), (2, keys, width), (2, keys, width)
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return (query * width**-0.5)[None], key[None], value[None]


def assert_equal_to_reference(device, dtype, rounding):
    inputs = drawn(device, dtype)
    found = fused_attention(*inputs)
    assert found is not None, f"torch {torch.__version__} has no {OPERATORS[device]} any more"
    output, lse = found
    assert (output.dtype, lse.dtype) == (dtype, torch.float32)
    for ours, exact in zip(found, reference(*inputs), strict=True):
        torch.testing.assert_close(ours.double(), exact, atol=rounding, rtol=0)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_the_operator_of_cpus_is_attention_with_its_log_sum_exp(dtype, rounding):
    assert_equal_to_reference("cpu", dtype, rounding)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
def test_the_operator_of_gpus_is_attention_with_its_log_sum_exp(dtype, rounding):
    assert_equal_to_reference("cuda", dtype, rounding)


def test_keys_that_are_a_slice_are_not_copied_wrongly():
    query, key, value = drawn("cpu", torch.float32)
    output, lse = fused_attention(query[:, :, 3:9], key[:, :, 100:300], value[:, :, 100:300])
    exact, exact_lse = reference(query[:, :, 3:9], key[:, :, 100:300], value[:, :, 100:300])
    torch.testing.assert_close(output.double(), exact, atol=2e-6, rtol=0)
    torch.testing.assert_close(lse.double(), exact_lse, atol=2e-6, rtol=0)


def test_what_a_mask_hides_is_not_attended_to_and_padding_is_free_of_nan():
    query, key, value = drawn("cpu", torch.float32, queries=5, keys=9)
    hidden = torch.ones(5, 9, dtype=torch.bool).triu(4)
    hidden[0] = True  # padding
    floor = torch.finfo(torch.float32).min / 2
    output, lse = fused_attention(query, key, value, torch.zeros(1, 1, 5, 9).masked_fill(hidden, floor))
    scores = (query @ key.mT).masked_fill(hidden, -torch.inf)
    assert output.isfinite().all()
    assert (lse[..., 0] < floor / 2).all(), "nothing of it is left in a softmax over more"
    torch.testing.assert_close(output[..., 1:, :], (scores.softmax(-1) @ value)[..., 1:, :], atol=2e-6, rtol=0)
    torch.testing.assert_close(lse[..., 1:], scores.logsumexp(-1)[..., 1:], atol=2e-6, rtol=0)


def test_heads_share_keys():
    query, key, value = drawn("cpu", torch.float32)
    many = torch.stack([query, query.flip(2)], 2).flatten(1, 2)
    output, _ = fused_attention(many, key, value)
    exact, _ = reference(many, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1))
    torch.testing.assert_close(output.double(), exact, atol=2e-6, rtol=0)


def test_keys_or_values_whose_numbers_are_not_side_by_side_are_left_to_the_caller():
    query, key, value = drawn("cpu", torch.float32)
    assert fused_attention(query, key, value.mT.contiguous().mT) is None


def test_what_no_operator_takes_is_left_to_the_caller(monkeypatch):
    assert fused_attention(*drawn("cpu", torch.float64)) is None
    assert fused_attention(*drawn("cpu", torch.float32, width=12)) is None
    assert fused_attention(*drawn("meta", torch.float32)) is None
    monkeypatch.setitem(OPERATORS, "cpu", "_gone")
    assert fused_attention(*drawn("cpu", torch.float32)) is None
