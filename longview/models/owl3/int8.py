"""Keys and values of pictures in 8 bits (`kv_dtype="int8"`): half the memory of bf16, and half the bytes to read.

    x ≈ channel · scale · integer      of keys and of values: a factor for each head and channel, from the weights of
                                       the projection; and a scale for each key, from its largest number

The factors even out channels that are large for all pictures, as a projection's bias makes them; they are folded into
the query and the output. So what is stored of a picture depends on that picture alone, whatever came with it. A single
token attends to the integers themselves by PyTorch's kernel of 8-bit weights on CPUs; several tokens, and other
devices, attend to what they stand for, which is computed for one layer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

KERNEL_WIDTH = 32
"""The kernel reads so many columns of a matrix at a time, also where the matrix has fewer left."""
LARGEST = 127


@dataclass(frozen=True, eq=False)
class Int8KeyValue:
    """Keys and values of pictures in one layer, M of them."""

    key: Tensor
    """int8 (Hkv, M, D)."""
    value: Tensor
    """int8 (Hkv, D, M'), where M' is the next multiple of `KERNEL_WIDTH`; what is behind M is 0."""
    key_scale: Tensor
    """fp32 (Hkv, M)."""
    value_scale: Tensor
    """fp32 (Hkv, M)."""
    key_channel: Tensor
    """fp32 (Hkv, D)."""
    value_channel: Tensor
    """fp32 (Hkv, D)."""
    dtype: torch.dtype
    """Of what they stand for."""

    @classmethod
    def of(cls, key: Tensor, value: Tensor, key_channel: Tensor, value_channel: Tensor) -> Int8KeyValue:
        """Keys and values (Hkv, M, D), with the factors (Hkv, D) of their channels, in 8 bits."""
        keys, key_scale = _rounded(key, key_channel)
        values, value_scale = _rounded(value, value_channel)
        return cls(
            keys, _columns(values.transpose(1, 2)), key_scale, value_scale, key_channel, value_channel, key.dtype
        )

    @property
    def count(self) -> int:
        """M."""
        return self.key.shape[1]

    def plain(self) -> tuple[Tensor, Tensor]:
        """What they stand for: (Hkv, M, D) each."""
        value = self.value[:, :, : self.count].transpose(1, 2)
        pairs = ((self.key, self.key_scale, self.key_channel), (value, self.value_scale, self.value_channel))
        key, value = ((x * scale.unsqueeze(-1) * channel.unsqueeze(1)).to(self.dtype) for x, scale, channel in pairs)
        return key, value.contiguous()

    def until(self, count: int) -> Int8KeyValue:
        """The first so many; values are copied where that is fewer than all."""
        if count == self.count:
            return self
        return replace(
            self,
            key=self.key[:, :count],
            value=_columns(self.value[:, :, :count]),
            key_scale=self.key_scale[:, :count],
            value_scale=self.value_scale[:, :count],
        )

    def joined(self, more: Int8KeyValue) -> Int8KeyValue:
        """These and further ones of the same layer."""
        return replace(
            self,
            key=torch.cat([self.key, more.key], dim=1),
            value=_columns(torch.cat([each.value[:, :, : each.count] for each in (self, more)], dim=2)),
            key_scale=torch.cat([self.key_scale, more.key_scale], dim=1),
            value_scale=torch.cat([self.value_scale, more.value_scale], dim=1),
        )

    def copy(self) -> Int8KeyValue:
        """The same in memory of its own."""
        names = ("key", "value", "key_scale", "value_scale")
        return replace(self, **{name: getattr(self, name).clone() for name in names})

    @property
    def nbytes(self) -> int:
        tensors = (self.key, self.value, self.key_scale, self.value_scale)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def attend(self, query: Tensor) -> tuple[Tensor, Tensor] | None:
        """Attention of a single token that sees all of them; None where there is no kernel for it.

        query (Hkv, G, 1, D), scaled → output (Hkv, G, 1, D) and log-sum-exp (Hkv, G, 1), fp32.
        """
        if query.device.type != "cpu" or query.shape[-1] % KERNEL_WIDTH or not self.count:
            return None
        outputs, totals = [], []
        padding = self.value.shape[2] - self.count
        for head in range(len(query)):
            rows = (query[head, :, 0].float() * self.key_channel[head]).to(query.dtype)
            scores = _product(rows, self.key[head]).float() * self.key_scale[head]  # (G, M)
            weights = scores.softmax(-1)
            totals.append(scores.amax(-1) - weights.amax(-1).log())
            scaled = nn.functional.pad((weights * self.value_scale[head]).to(query.dtype), (0, padding))
            outputs.append(_product(scaled, self.value[head]).float() * self.value_channel[head])
        return torch.stack(outputs).unsqueeze(2), torch.stack(totals).unsqueeze(2)


def channels_of(projection: nn.Linear, kv_heads: int) -> tuple[Tensor, Tensor]:
    """How large keys and values are by channel, (Hkv, D) each, as far as the weights say; see `project_pictures`.

    Keys are rotated afterwards, which mixes the two numbers of a pair: they have one factor.
    """
    squares = projection.weight.detach().float().square().sum(1)
    if projection.bias is not None:
        squares = squares + projection.bias.detach().float().square()
    key, value = squares.clamp(min=1e-12).unflatten(0, (kv_heads, 2, -1)).unbind(1)
    first, second = key.chunk(2, dim=-1)
    return (first + second).repeat(1, 2).sqrt(), value.sqrt()


def _rounded(states: Tensor, channel: Tensor) -> tuple[Tensor, Tensor]:
    """States (Hkv, M, D) as integers, and the scale of each row of D, (Hkv, M)."""
    even = states.float() / channel.unsqueeze(1)
    scale = (even.abs().amax(-1) / LARGEST).clamp(min=1e-12)
    return (even / scale.unsqueeze(-1)).round_().to(torch.int8), scale


def _columns(values: Tensor) -> Tensor:
    """Contiguous, with columns of zeros up to a multiple of `KERNEL_WIDTH`."""
    return nn.functional.pad(values, (0, -values.shape[-1] % KERNEL_WIDTH)).contiguous()


def _product(rows: Tensor, integers: Tensor) -> Tensor:
    """Rows (G, K) times integers (N, K), transposed: (G, N)."""
    ones = torch.ones(len(integers), dtype=rows.dtype)
    return torch.ops.aten._weight_int8pack_mm(rows.contiguous(), integers.contiguous(), ones)
