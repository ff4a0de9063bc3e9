"""Fused Liger kernels for the language model: less memory in training, on a GPU. Optional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from longview.errors import MissingExtraError, RequestError
from longview.models.base import Model


def apply_liger_kernel(model: Model, rms_norm: bool = True, swiglu: bool = True) -> None:
    """Replace the language model's RMSNorm and SwiGLU by Liger's, in place. The weights stay where they are.

    Args:
        model: A model of any family, on a CUDA device.

    Raises:
        RequestError: the model is not on a CUDA device; the kernels run on no other.
        MissingExtraError: liger-kernel is not installed.
    """
    if model.device.type != "cuda":
        raise RequestError(
            f"Liger kernels run on CUDA devices only, and this model is on {model.device}; leave them out"
        )
    try:
        from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu
    except ImportError as error:
        raise MissingExtraError("apply_liger_kernel", "liger-kernel") from error
    fuse(model.language_model, liger_rms_norm if rms_norm else None, liger_swiglu if swiglu else None)


def fuse(
    language_model: nn.Module,
    norm: Callable[[Tensor, Tensor, float], Tensor] | None,
    gated: Callable[[Tensor, Tensor], Tensor] | None,
) -> None:
    """Route each RMSNorm through `norm(x, weight, eps)`, each gated MLP through `gated(gate, up)` = silu(gate) · up.

    Modules that compute something else stay as they are: the experts of Mixtral, for one.

    Raises:
        RequestError: nothing in the language model is of these forms, as in Gemma.
    """
    fused = 0
    for module in language_model.modules():
        if norm is not None and hasattr(module, "variance_epsilon"):
            module.forward, fused = _normed(module, norm), fused + 1
        elif gated is not None and _is_gated(module):
            module.forward, fused = _gated(module, gated), fused + 1
    if not fused:
        raise RequestError(f"no layer of {type(language_model).__name__} has a Liger kernel; leave them out")


def _is_gated(module: nn.Module) -> bool:
    gated = all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj"))
    return gated and type(getattr(module, "act_fn", None)).__name__.startswith("SiLU")


def _normed(module: Any, norm: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda hidden: norm(hidden, module.weight, module.variance_epsilon)


def _gated(module: Any, gated: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda hidden: module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))
