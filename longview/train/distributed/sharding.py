"""One model in several processes: a copy in each (`ddp`), or a share of each weight in each (`fsdp2`).

    ddp      samples ── forward, backward in each process ── gradients, all-reduced ── the same step everywhere
    fsdp2    shards ── all-gathered for each block ── gradients, reduce-scattered ── step on shards

With fsdp2 the weights of a block of the language model are gathered and freed block by block. All the rest (towers,
connectors, embeddings, head) is gathered as one: processes have different numbers of pictures, in different numbers of
chunks, and each gathering needs all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import GradientCheckpointingLayer

from longview.train.distributed import processes

BUCKET = 1 << 25
"""Numbers that are summed over the processes at a time."""


def shard(model: Any) -> None:
    """Leave this process its shard of a model's weights; `encode`, `embed_pictures`, `forward` gather what they need.

    Source: PyTorch FSDP (arXiv 2304.11277), in its second form, `fully_shard`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(processes.device().type, (processes.count(),))
    blocks = [layer for layer in model.language_model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for unit in (*blocks, model):
        fully_shard(unit, mesh=mesh)
    for method in ("encode", "embed_pictures"):
        register_fsdp_forward_method(model, method)
    for unit in model.modules():
        if isinstance(unit, FSDPModule):  # the loss is divided by the samples of all processes: gradients add up
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "reshard")


def free_gathered(model: Any) -> None:
    """After a forward pass that no backward pass follows: free the gathered weights, which the next step changes."""
    if is_sharded(model):
        model.reshard()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients added up over the processes; a parameter that got none anywhere keeps none, as in one process."""
    learning = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if processes.count() == 1 or not learning:
        return
    found = torch.tensor([parameter.grad is not None for parameter in learning], device=learning[0].device).int()
    dist.all_reduce(found)
    gradients = []
    for parameter, times in zip(learning, found.tolist(), strict=True):
        if times:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        summed = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(summed)
        for gradient, part in zip(bucket, summed.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(each.numel() for each in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, whole; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as the parameter it belongs to is, and on its device."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def tensors_to_write(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors that this process is to write; where nothing is sharded, the first process writes them all."""
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    total, before, mine = sum(tensor.numel() for tensor in tensors.values()), 0, {}
    for name, tensor in tensors.items():
        owner = before * processes.count() // max(1, total) if sharded else 0
        before += tensor.numel()
        full = full_tensor(tensor.detach())
        if owner == processes.rank():
            mine[name] = full.cpu() if sharded else full
    return mine
