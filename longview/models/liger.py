"""Fused Liger kernels for the language model: less memory in training, on a GPU. Optional, and only when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from longview.errors import MissingExtraError, RequestError


def apply_liger_kernel(model: Any, rms_norm: bool = True, swiglu: bool = True) -> None:
    """Replace the language model's RMSNorm and SwiGLU by Liger's, in place. The weights stay where they are.

    Args:
        model: Any family's model, on a CUDA device.

    Raises:
        RequestError: the model is not on a CUDA device, where alone the kernels run.
        MissingExtraError: liger-kernel is not installed.
    """
    if model.device.type != "cuda":
        raise RequestError(
            f"Liger kernels run on CUDA devices only, and this model is on {model.device}; leave them out"
        )
    try:
        from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu
    except ImportError as error:
        raise MissingExtraError("apply_liger_kernel", "liger-kernel", "liger") from error
    fuse(model.language_model, liger_rms_norm if rms_norm else None, liger_swiglu if swiglu else None)


def fuse(
    language_model: nn.Module,
    norm: Callable[[Tensor, Tensor, float], Tensor] | None,
    gated: Callable[[Tensor, Tensor], Tensor] | None,
) -> None:
    """Route each RMSNorm through `norm(x, weight, eps)`, each gated MLP through `gated(gate, up)` = silu(gate) · up."""
    for module in language_model.modules():
        if norm is not None and type(module).__name__.endswith("RMSNorm"):
            module.forward = _normed(module, norm)
        elif gated is not None and all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
            module.forward = _gated(module, gated)


def _normed(module: Any, norm: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda hidden: norm(hidden, module.weight, module.variance_epsilon)


def _gated(module: Any, gated: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda hidden: module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))
