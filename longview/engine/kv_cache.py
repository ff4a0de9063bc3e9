"""The KV cache of running requests: rows of keys and values, as a `Cache` of transformers.

    rows × positions, allocated in advance; each row is filled from the left:    ▓▓▓▓▓▓▓▓▓▓░░░░░░
    a model sees them as one batch, [:rows, :, :longest], with a mask            ▓▓▓▓░░░░░░░░░░░░
    where their lengths differ                                                   ▓▓▓▓▓▓▓░░░░░░░░░
                                                                                 (free row)

Both capacities grow by doubling, so a new token writes one position and copies nothing. A prompt is prefilled in a
`KVCache` of its own with one row, which is then copied into a `DecodeBatch`.

What a family keeps beside the KV cache (`side_cache`: owl3's keys and values of pictures) belongs to the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, CacheLayerMixin

from longview.models.base import SideCache

MIN_POSITIONS = 256
"""Positions of a row that are allocated at first."""


class KVCacheLayer(CacheLayerMixin):
    """Keys and values (rows, Hkv, positions, D) of one layer; shapes are the capacities of the cache it belongs to."""

    is_sliding = False

    def __init__(self, cache: KVCache) -> None:
        super().__init__()
        self.cache = cache
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate, with the heads, width, dtype and device of (B, Hkv, T, D)."""
        self.keys, self.values = (
            states.new_zeros(self.cache.row_capacity, states.shape[1], self.cache.position_capacity, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Keys and values, of a layer that has been written to."""
        if self.keys is None or self.values is None:
            raise RuntimeError("this layer of the KV cache has not been written to")
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, T, D) to the first B rows; returns their keys and values, (B, Hkv, longest + T, D).

        T is 1 where the rows' lengths differ.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.tensors()
        rows, length = key_states.shape[0], key_states.shape[2]
        end = self.cache.longest + length
        if end > keys.shape[2]:
            raise RuntimeError(f"{end} positions of a KV cache that has {keys.shape[2]}; reserve them first")
        if self.cache.write_positions is None:
            keys[:rows, :, end - length : end] = key_states
            values[:rows, :, end - length : end] = value_states
        else:
            numbers, write_positions = self.cache.write_positions_on(key_states.device)
            keys[numbers, :, write_positions] = key_states[:, :, 0]
            values[numbers, :, write_positions] = value_states[:, :, 0]
        return keys[:rows, :, :end], values[:rows, :, :end]

    def resize(self, rows: int, positions: int) -> None:
        """Copy what fits into newly allocated tensors of another size."""
        if not self.is_initialized:
            return
        self.keys, self.values = (_resized(tensor, rows, positions) for tensor in self.tensors())

    def narrow(self, rows: int, positions: int) -> None:
        """Reduce the capacities to a view: nothing is allocated, and nothing is freed."""
        if self.is_initialized:
            self.keys, self.values = (tensor[:rows, :, :positions] for tensor in self.tensors())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.longest

    def get_max_length(self) -> int:
        return -1


def _resized(old: Tensor, rows: int, positions: int) -> Tensor:
    new = old.new_zeros(rows, old.shape[1], positions, old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old[:rows, :, :positions]
    return new


class KVCache(Cache):
    """Rows of keys and values, which transformers' models read and append to.

    The rows' lengths change in `advance`, after a pass has succeeded: what a failed pass has written does not count.

    Args:
        positions: Positions of a row that are allocated at first.
        rows: Rows that are allocated at first.
    """

    layers: list[KVCacheLayer]

    def __init__(self, num_layers: int, positions: int = MIN_POSITIONS, rows: int = 1) -> None:
        self.row_capacity, self.position_capacity = rows, positions
        self.lengths: list[int] = []
        super().__init__(layers=[KVCacheLayer(self) for _ in range(num_layers)])
        self.side_cache: SideCache | None = None
        """What the family keeps of the same rows beside the KV cache."""
        self._write_positions_on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._lengths_changed()

    @classmethod
    def empty(cls, num_layers: int, positions: int, rows: int = 1) -> KVCache:
        """Rows of length 0, with room for just so many positions: they are not kept for long."""
        cache = cls(num_layers, positions, rows)
        cache.lengths = [0] * rows
        return cache

    def _lengths_changed(self) -> None:
        self.longest = max(self.lengths, default=0)
        # where each row's next token is written; None: at the same position of all, as one slice
        self.write_positions: list[int] | None = self.lengths if len(set(self.lengths)) > 1 else None
        self._write_positions_on = {}

    def write_positions_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows' indices, and the position at which each row's next token is written: two tensors (B,)."""
        if device not in self._write_positions_on:
            write_positions = self.lengths if self.write_positions is None else self.write_positions
            self._write_positions_on[device] = (
                torch.arange(len(write_positions), device=device),
                torch.tensor(write_positions, device=device),
            )
        return self._write_positions_on[device]

    def reserve(self, positions: int, rows: int = 1) -> None:
        """Grow the capacities, by doubling, to at least so many positions and rows."""
        position_capacity, row_capacity = self.position_capacity, self.row_capacity
        while position_capacity < positions:
            position_capacity *= 2
        while row_capacity < rows:
            row_capacity *= 2
        self._resize(row_capacity, position_capacity)

    def _resize(self, rows: int, positions: int) -> None:
        """Change the capacities. Where there is no memory to grow, they stay as they are; shrinking never fails."""
        if (rows, positions) == (self.row_capacity, self.position_capacity):
            return
        grows = rows > self.row_capacity or positions > self.position_capacity
        try:
            for layer in self.layers:
                layer.resize(rows, positions)
        except BaseException:
            # some layers have been resized and some have not: all of them take the smaller of the two sizes
            rows, positions = min(rows, self.row_capacity), min(positions, self.position_capacity)
            for layer in self.layers:
                layer.narrow(rows, positions)
            if grows:
                raise
        self.row_capacity, self.position_capacity = rows, positions

    def advance(self, *positions: int) -> None:
        """A pass has written so many positions: of each row, or one number for all of them."""
        each = positions if len(positions) == len(self.lengths) else positions * len(self.lengths)
        self.lengths = [length + new for length, new in zip(self.lengths, each, strict=True)]
        self._lengths_changed()

    def write_rows(self, key_values: Iterator[tuple[Tensor, Tensor]], length: int) -> None:
        """Write the same first positions to all rows, and set their lengths."""
        self.reserve(length + 1, len(self.lengths))
        for layer, (new_keys, new_values) in zip(self.layers, key_values, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(new_keys[None], new_values[None])
            for held, new in zip(layer.tensors(), (new_keys, new_values), strict=True):
                held[: len(self.lengths), :, :length] = new
        self.lengths = [length] * len(self.lengths)
        self._lengths_changed()

    @contextmanager
    def level(self) -> Iterator[None]:
        """For a pass that is not to be kept: its tokens are written behind the longest row, and a mask says who sees
        what."""
        lengths, self.lengths = self.lengths, [self.longest] * len(self.lengths)
        self._lengths_changed()
        try:
            yield
        finally:
            self.lengths = lengths
            self._lengths_changed()

    def mask(self, device: torch.device) -> Tensor | None:
        """What each row attends to in a pass of one token a row: bool (B, 1, 1, longest + 1); None if everything."""
        if self.write_positions is None:
            return None
        _, write_positions = self.write_positions_on(device)
        return (torch.arange(self.longest + 1, device=device) <= write_positions[:, None])[:, None, None]

    def key_values(self, row: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the keys and values of each layer, (Hkv, length, D), of a row's first positions."""
        for layer in self.layers:
            keys, values = layer.tensors()
            yield keys[row, :, :length], values[row, :, :length]

    def write_row(self, row: int, key_values: Iterator[tuple[Tensor, Tensor]], length: int) -> None:
        """Write a row's first positions in all layers, and set its length. It is one of the rows, or the next one."""
        self.reserve(length + 1, row + 1)
        for layer, (new_keys, new_values) in zip(self.layers, key_values, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(new_keys[None], new_values[None])
            keys, values = layer.tensors()
            keys[row, :, :length] = new_keys
            values[row, :, :length] = new_values
        self.lengths[row : row + 1] = [length]
        self._lengths_changed()

    @contextmanager
    def rewound(self, row: int, length: int) -> Iterator[KVCache]:
        """One row up to a length, in place: what a pass writes behind it is there until the context ends."""
        end = self.lengths[row]
        view = KVCache(len(self.layers), self.position_capacity)
        for own, layer in zip(view.layers, self.layers, strict=True):
            keys, values = layer.tensors()
            own.keys, own.values, own.is_initialized = keys[row : row + 1], values[row : row + 1], True
        view.lengths = [length]
        view._lengths_changed()
        before = [
            (keys[:, length:end].clone(), values[:, length:end].clone()) for keys, values in self.key_values(row, end)
        ]
        try:
            yield view
        finally:
            for (keys, values), (old_keys, old_values) in zip(self.key_values(row, end), before, strict=True):
                keys[:, length:end], values[:, length:end] = old_keys, old_values

    def alone(self, row: int) -> KVCache:
        """A copy of one row."""
        length = self.lengths[row]
        copy = KVCache.empty(len(self.layers), length + 1)
        copy.write_row(0, self.key_values(row, length), length)
        copy.side_cache = self.side_cache_of(row)
        return copy

    def side_cache_of(self, row: int) -> SideCache | None:
        """The side cache of one row, or None."""
        if self.side_cache is None or len(self.lengths) == 1:
            return self.side_cache
        return self.side_cache.row(row)

    def nbytes(self) -> int:
        """Bytes that are allocated."""
        tensors = [tensor for layer in self.layers if layer.is_initialized for tensor in layer.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
