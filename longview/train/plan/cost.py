"""The cost of a pass through a model on the meta device: operations, and bytes kept for the backward pass.

On PyTorch's `meta` device every layer runs and no number is computed. So nothing here knows any architecture: what is
counted is what will be computed, adapters and frozen parts included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import GradientCheckpointingLayer

MULTIPLYING = (
    *(functional.linear, functional.conv2d, functional.scaled_dot_product_attention),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch._grouped_mm),
)
"""Where nearly all operations are, and what autocast computes in half precision."""


class PassCost(NamedTuple):
    """Of one pass; multiplications and additions count one each."""

    forward: float
    """Operations of the forward pass."""
    backward: float
    """Operations of the backward pass; 0 where nothing learns."""
    kept: float
    """Bytes kept between them."""
    blocks_forward: float
    """Of `forward`, those in blocks that checkpointing computes again."""
    kept_checkpointed: float
    """Bytes kept where blocks are computed again: their inputs, all of one block, and what is outside of blocks."""

    @classmethod
    def nothing(cls) -> PassCost:
        return cls(0, 0, 0, 0, 0)

    def __add__(self, other: Any) -> PassCost:
        return PassCost(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: PassCost) -> PassCost:
        return PassCost(*(a - b for a, b in zip(self, other, strict=True)))

    def times(self, count: float) -> PassCost:
        return PassCost(*(count * value for value in self))

    def operations(self, checkpointing: bool) -> float:
        return self.forward + self.backward + (self.blocks_forward if checkpointing and self.backward else 0.0)

    def bytes(self, checkpointing: bool) -> float:
        return self.kept_checkpointed if checkpointing else self.kept


class _Attention(torch.autograd.Function):
    """Fused attention, which keeps its inputs and its output, and no weights."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output


class _Counter(TorchFunctionMode):
    """Counts the operations of matrix products, and makes autocast's casts, which `meta` does not."""

    def __init__(self, half: bool) -> None:
        super().__init__()
        self.forward = self.backward = 0.0
        self._half = half
        self._cast: dict[Tensor, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in MULTIPLYING:
            return func(*args, **(kwargs or {}))
        if self._half:
            args = tuple(self._lower(each) if isinstance(each, Tensor) else each for each in args)
        if func is functional.scaled_dot_product_attention:
            output = _Attention.apply(*args[:3])
            operations = 4.0 * args[0].numel() * args[1].shape[-2]
            self.backward += 2.5 * operations * output.requires_grad  # its weights are computed again
        else:
            left, right = args[:2]
            if func is torch._grouped_mm:  # not on `meta`: each row is multiplied with one expert's matrix
                right, func, kwargs = right[0], torch.matmul, {}
            output = func(left, right, *args[2:], **(kwargs or {}))
            terms = right[0].numel() if func is functional.conv2d else left.shape[-1]
            operations = 2.0 * output.numel() * terms
            self.backward += operations * (left.requires_grad + right.requires_grad)
        self.forward += operations
        return output

    def _lower(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.bfloat16()
        if tensor not in self._cast:
            self._cast[tensor] = tensor.bfloat16()
        return self._cast[tensor]


def cost_of(model: nn.Module, run: Callable[[], Tensor], half: bool = False) -> PassCost:
    """Cost of a forward pass, and of the backward pass from its result, where something learns.

    Args:
        model: On the device `meta`.
        half: As under autocast to bfloat16.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, int] = {}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in saved:
            saved[storage._cdata] = storage.nbytes()
            total += storage.nbytes()
        return tensor

    begun: list[tuple[int, float]] = []
    inside: list[tuple[int, float, int]] = []
    """Of each block: bytes kept, operations, and bytes of its inputs."""

    def enter(*_: Any) -> None:
        begun.append((total, counter.forward))

    def leave(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
        before, operations = begun.pop()
        entering = sum(each.nbytes for each in inputs if isinstance(each, Tensor))
        inside.append((total - before, counter.forward - operations, entering))

    hooks = []
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    counter = _Counter(half)
    try:
        with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            result = run()
    finally:
        for hook in hooks:
            hook.remove()
    learned = [block for block in inside if block[0]]
    outside = total - sum(kept for kept, _, _ in learned)
    largest = max((kept for kept, _, _ in learned), default=0)
    again = sum(operations for _, operations, _ in learned)
    entering = sum(size for _, _, size in learned)
    backward = counter.backward * result.requires_grad
    return PassCost(counter.forward, backward, total, again, outside + largest + entering)
