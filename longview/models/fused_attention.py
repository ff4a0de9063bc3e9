"""torch's fused attention with the log-sum-exp of its scores, which `scaled_dot_product_attention` does not return.

The operators behind it do, but are private: this is the only place that calls them. Where one is missing, or does not
take the tensors, `fused_attention` is None, and the caller computes in plain torch; test_fused_attention.py says if a
release of torch has taken one away.
"""

from __future__ import annotations

import torch
from torch import Tensor

OPERATORS = {"cpu": "_scaled_dot_product_flash_attention_for_cpu", "cuda": "_scaled_dot_product_flash_attention"}
"""By type of device; each takes query, key and value (B, H, T, D), and returns output, log-sum-exp (B, H, T), …"""
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.bfloat16, torch.float16),
}
MAX_HEAD_DIM = {"cpu": 1 << 16, "cuda": 256}


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """softmax(query keyᵀ + mask) value, and the log-sum-exp of the scores; None where there is no operator for it.

    Args:
        query: (B, H, T, D), scaled.
        key, value: (B, H or Hkv, M, D), M > 0.
        mask: Additive, (B or 1, 1, T, M), of the query's dtype, and finite; a CPU's operator alone takes one.

    Returns:
        Output (B, H, T, D), computed in fp32 and rounded to the dtype of `value`, and log-sum-exp (B, H, T), fp32.
    """
    device = query.device.type
    operator = getattr(torch.ops.aten, OPERATORS.get(device, ""), None)
    width = query.shape[-1]
    if operator is None or query.dtype not in DTYPES[device] or width > MAX_HEAD_DIM[device] or width % 8:
        return None
    if any(states.stride(-1) != 1 for states in (query, key, value)):  # the CPU's reads the others' numbers
        return None
    if device == "cuda" and (mask is not None or torch.cuda.get_device_capability(query.device) < (8, 0)):
        return None
    masked = {} if mask is None else {"attn_mask": mask}
    output, lse = operator(query, key, value, scale=1.0, **masked)[:2]
    return output, lse
