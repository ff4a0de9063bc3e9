"""Hyper attention of a prefill to its pictures, beside the fused kernel alone on the same shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longview.engine.devices import median_seconds
from longview.errors import RequestError
from longview.models.fused_attention import fused_attention
from longview.models.owl3.attention import attend_by_runs, runs_of
from longview.models.owl3.fusion import HyperAttention

TOKENS_PER_PICTURE, QUESTION_TOKENS = 5, 30
BLOCK = 16
"""Pictures that the fused kernel attends to alone: all queries see all of them."""


@torch.inference_mode()
def attention_rates(model: Any, pictures: int, repeats: int) -> dict[str, float]:
    """Seconds and flop/s of one hyper layer's attention to so many pictures, 1 or more, and of the fused kernel alone.

    Counted are the pairs of a query and a key that it sees, four flops for each channel of a head.

    Raises:
        RequestError: the model has no hyper attention.
    """
    layer = next((module for module in model.modules() if isinstance(module, HyperAttention)), None)
    if layer is None:
        raise RequestError("attention is measured of hyper attention, which mPLUG-Owl3 has; add --dims owl3-1b")
    groups, width = layer.num_key_value_groups, layer.head_dim
    heads, patches = layer.config.num_key_value_heads, model.config.patches_per_picture
    length = TOKENS_PER_PICTURE * pictures + QUESTION_TOKENS
    query = _drawn(model, heads, groups, length, width)
    key, value = (_drawn(model, heads, pictures * patches, width) for _ in range(2))
    runs = runs_of(range(0, length - QUESTION_TOKENS, TOKENS_PER_PICTURE), 0, length, inclusive=True)
    each = 4 * width * heads * groups * patches
    flops = each * sum((run.end - run.begin) * run.pictures for run in runs)
    seconds = median_seconds(lambda: attend_by_runs(query, key, value, runs, patches), repeats, model.device)
    row = {"a layer s": seconds, "flop/s": flops / seconds}
    block = min(BLOCK, pictures)
    seen = query.flatten(1, 2)[None], key[None, :, : block * patches], value[None, :, : block * patches]
    if fused_attention(*seen) is None:
        return row
    alone = each * length * block / median_seconds(lambda: fused_attention(*seen), repeats, model.device)
    return row | {"kernel alone flop/s": alone, "share": row["flop/s"] / alone}


def _drawn(model: Any, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device=model.device).mul_(0.1).to(model.dtype)
