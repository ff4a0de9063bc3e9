"""torch's private operators of attention are there, and give the log-sum-exp."""

from __future__ import annotations

import pytest
import torch

from longview.models.fused_attention import OPERATORS, FusedAttention, fused_attention, has_gradient


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


def gradients(attend, inputs, weights):
    """Of a sum of output and log-sum-exp, each weighted at random."""
    inputs = [states.detach().clone().requires_grad_() for states in inputs]
    output, lse = attend(*inputs)
    return torch.autograd.grad((output * weights[0]).sum() + (lse * weights[1]).sum(), inputs)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_output_and_log_sum_exp_are_those_of_plain_attention(masked, heads):
    query, key, value = drawn("cpu", torch.float32, queries=40, keys=40)
    query = torch.cat([query] * (heads // 2), 1).contiguous()
    generator = torch.Generator().manual_seed(2)
    hidden = torch.rand(40, 40, generator=generator) > 0.7 if masked else torch.ones(40, 40, dtype=torch.bool).triu(1)
    hidden.fill_diagonal_(False)
    mask = torch.zeros(1, 1, 40, 40).masked_fill(hidden, torch.finfo(torch.float32).min / 2)
    weights = torch.randn(1, heads, 40, 64, generator=generator), torch.randn(1, heads, 40, generator=generator)
    assert has_gradient(query, key, value, mask)

    def plain(query, key, value):
        key, value = (states.repeat_interleave(heads // 2, 1) for states in (key, value))
        scores = (query @ key.mT).masked_fill(hidden, -torch.inf)
        return scores.softmax(-1) @ value, scores.logsumexp(-1)

    def fused(*inputs):
        return FusedAttention.apply(*inputs, mask if masked else None, not masked)

    found = gradients(fused, (query, key, value), weights)
    for ours, exact in zip(found, gradients(plain, (query, key, value), weights), strict=True):
        torch.testing.assert_close(ours, exact, atol=2e-5, rtol=1e-5)
    without = gradients(fused, (query, key, value), (weights[0], weights[1] * 0))
    assert (found[0] - without[0]).abs().max() > 1e-2, "the log-sum-exp has a gradient of its own"


def test_without_a_gradient_of_the_output_nothing_is_divided_by_0():
    inputs = drawn("cpu", torch.float32, queries=8, keys=8)
    found = gradients(lambda *states: FusedAttention.apply(*states, None, True), inputs, (0.0, 0.0))
    assert all((states == 0).all() for states in found)


def test_tensors_of_different_dtypes_are_left_to_the_caller():
    query, key, value = drawn("cpu", torch.float32)
    assert fused_attention(query, key, value.bfloat16()) is None
    assert not has_gradient(query, key.bfloat16(), value)


def test_gradients_are_for_what_the_operator_takes():
    assert not has_gradient(*drawn("cpu", torch.bfloat16))
    assert not has_gradient(*drawn("cpu", torch.float32, width=12))
