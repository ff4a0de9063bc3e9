"""torch's fused attention with the log-sum-exp of its scores, which `scaled_dot_product_attention` does not return.

The operators behind it do, but are private: this is the only place that calls them. Where one is missing, or does not
take the tensors, `fused_attention` is None, and the caller computes in plain torch; test_fused_attention.py says if a
release of torch has taken one away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

OPERATORS = {"cpu": "_scaled_dot_product_flash_attention_for_cpu", "cuda": "_scaled_dot_product_flash_attention"}
"""By type of device; each takes query, key and value (B, H, T, D), and returns output, log-sum-exp (B, H, T), …"""
BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.bfloat16, torch.float16),
}
MAX_HEAD_DIM = {"cpu": 1 << 16, "cuda": 256}


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor] | None:
    """softmax(query keyᵀ + mask) value, and the log-sum-exp of the scores; None where there is no operator for it.

    Args:
        query: (B, H, T, D), scaled.
        key, value: (B, H or Hkv, M, D), M > 0.
        mask: Additive, (B or 1, 1, T, M), of the query's dtype, and finite; a CPU's operator alone takes one.
        causal: Query t attends to keys 0 … t; there are as many of both, and no mask.

    Returns:
        Output (B, H, T, D), computed in fp32 and rounded to the dtype of `value`, and log-sum-exp (B, H, T), fp32.
    """
    operator = _operator(query, key, value, mask)
    if operator is None:
        return None
    masked = {} if mask is None else {"attn_mask": mask}
    output, lse = operator(query, key, value, is_causal=causal, scale=1.0, **masked)[:2]
    return output, lse


def has_gradient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> bool:
    """Whether `FusedAttention` takes such tensors: those of a CPU, in fp32."""
    known = query.device.type == "cpu" and query.dtype == torch.float32 and hasattr(torch.ops.aten, BACKWARD)
    return known and _operator(query, key, value, mask) is not None


def _operator(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
    """The operator that takes such tensors, or None."""
    device = query.device.type
    operator = getattr(torch.ops.aten, OPERATORS.get(device, ""), None)
    width = query.shape[-1]
    if operator is None or query.dtype not in DTYPES[device] or width > MAX_HEAD_DIM[device] or width % 8:
        return None
    if not query.dtype == key.dtype == value.dtype:  # under autocast they may differ
        return None
    if any(states.stride(-1) != 1 for states in (query, key, value)):  # the CPU's reads the others' numbers
        return None
    if device == "cuda" and (mask is not None or torch.cuda.get_device_capability(query.device) < (8, 0)):
        return None
    return operator


class FusedAttention(torch.autograd.Function):
    """`fused_attention`, whose log-sum-exp has a gradient, too; for tensors of which `has_gradient` holds."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor]:
        """See `fused_attention`."""
        found = fused_attention(query, key, value, mask, causal)
        assert found is not None, "has_gradient says so"
        ctx.save_for_backward(query, key, value, mask, *found)
        ctx.causal = causal
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, lse = ctx.saved_tensors
        stand_in = with_gradient_of_lse(output, *grads)
        return *fused_gradients(query, key, value, stand_in, lse, grads[0], mask, ctx.causal), None, None


def with_gradient_of_lse(output: Tensor, grad_output: Tensor, grad_lse: Tensor) -> Tensor:
    """What stands for the output O in `fused_gradients`, so that the log-sum-exp's gradient counts.

    With weights P and scores S, dS = P · (dO Vᵀ − Σ dO · O + d lse). The sum, over the width of a head, is all that the
    operator needs O for; so it is given O − dO · d lse / Σ dO².

    Args:
        output, grad_output: (…, T, D), fp32.
        grad_lse: (…, T).
    """
    squares = grad_output.square().sum(-1)
    # where dO is 0, so is d lse: what was merged has no gradient at all
    share = torch.where(squares > torch.finfo(squares.dtype).tiny, grad_lse / squares, 0.0)
    return output - grad_output * share.unsqueeze(-1)


def fused_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value; for tensors of which `has_gradient` holds, see `fused_attention`.

    Args:
        output: Of the softmax, which may be one over more keys than these; or `with_gradient_of_lse`. (B, H, T, D).
        lse: Of the same softmax, (B, H, T).
    """
    operator = getattr(torch.ops.aten, BACKWARD)
    return operator(grad_output, query, key, value, output, lse, 0.0, causal, attn_mask=mask, scale=1.0)
