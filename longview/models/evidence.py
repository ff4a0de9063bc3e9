"""Attention to pictures in the language sequence, recorded by the plain formula while a pass computes it.

A pass under `recorded` has the results that it has without, but for the last bits: attention is softmax(q Kᵀ/√D) V for
the tokens of this pass only, whatever implementation is set. So fast kernels stay as they are, and nothing is slower
where nobody asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from longview.models.transformers_seams import attention_set_to

NAME = "longview_recorded"
"""The implementation of attention, in transformers' registry."""


class AttentionRecord:
    """Sums of attention over heads' means, layer by layer.

    Args:
        positions: Of keys, (…): what is recorded is attention to these.
    """

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self.layers: list[int] = []
        self._total: Tensor | None = None

    def add(self, layer: int, weights: Tensor) -> None:
        """Attention of one layer, (H, T, S); what has no key at a position gives it nothing."""
        places = self.positions.flatten().to(weights.device)
        there = places < weights.shape[-1]
        found = weights.float().mean(0)[:, places.clamp(max=weights.shape[-1] - 1)] * there
        self._total = found if self._total is None else self._total + found.to(self._total.device)
        self.layers.append(layer)

    def mean(self, tokens: int) -> Tensor:
        """(T, …), the mean over the layers so far."""
        if self._total is None:
            return torch.zeros(tokens, *self.positions.shape)
        return (self._total / len(self.layers)).view(tokens, *self.positions.shape)


@contextlib.contextmanager
def recorded(config: Any, positions: Tensor) -> Iterator[AttentionRecord]:
    """Within, passes of a language model with this config record to what is yielded, given as `evidence`."""
    with attention_set_to(config, NAME):
        yield AttentionRecord(positions)


def attend_and_record(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    evidence: AttentionRecord | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An implementation of attention as transformers calls it, of one row: (1, H, T, D) → (1, T, H, D).

    Args:
        attention_mask: Boolean, (1, 1, T, S); None: causal.
    """
    groups, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = query.unflatten(1, (-1, groups))  # (1, Hkv, G, T, D)
    scores = (grouped @ key.unsqueeze(2).transpose(-1, -2)).float() * scale  # (1, Hkv, G, T, S)
    if attention_mask is None:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        attention_mask = causal.tril(scores.shape[-1] - scores.shape[-2])
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1)
    if evidence is not None:
        evidence.add(module.layer_idx, weights[0].flatten(0, 1))
    context = weights.to(value.dtype) @ value.unsqueeze(2)
    return context.flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend_and_record)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
