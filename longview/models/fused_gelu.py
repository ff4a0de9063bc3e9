"""A linear layer and the GELU behind it in one kernel, for SigLIP's towers in bfloat16 on a CPU.

torch takes a pass of its own for the tanh form of GELU, 3 to 5 ns a number, as long as the matrix product before it
where a processor has matrix units. oneDNN applies it to what its product has just computed, before that is rounded. The
operator is the one that compiled graphs call, and private: this is the only place that calls it. Where it is missing,
or does not take the tensors, the layer computes as transformers has it; test_fused_gelu.py says if a release of torch
has taken it away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longview.models.transformers_seams import GELUTanh, SiglipMLP

OPERATOR = "_linear_pointwise"


def linear_gelu(states: Tensor, linear: nn.Linear) -> Tensor | None:
    """gelu(states weightᵀ + bias), its tanh form: (…, in) → (…, out); None where there is no operator for it."""
    operator = getattr(torch.ops.mkldnn, OPERATOR, None) if torch.backends.mkldnn.is_available() else None
    plain = type(linear) is nn.Linear and states.device.type == linear.weight.device.type == "cpu"
    if operator is None or not plain or torch.is_grad_enabled():
        return None
    if not states.dtype == linear.weight.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"):
        return None
    return operator(states, linear.weight, linear.bias, "gelu", [], "tanh")


class FusedSiglipMLP(SiglipMLP):
    """transformers' layer; `linear_gelu` where that is possible."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, hidden) → (…, hidden)."""
        fused = linear_gelu(hidden_states, self.fc1) if isinstance(self.activation_fn, GELUTanh) else None
        return super().forward(hidden_states) if fused is None else self.fc2(fused)


def fuse_gelu(tower: Any) -> None:
    """Let the feed-forward layers of a SigLIP tower use `linear_gelu`; nothing else about them changes."""
    for module in tower.modules():
        if type(module) is SiglipMLP:
            module.__class__ = FusedSiglipMLP
