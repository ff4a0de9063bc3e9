"""Keys and values of the conversations under way: a table whose rows are conversations, for transformers' models.

    KVCache         rows × capacity positions, each row written from the left:     ▓▓▓▓▓▓▓▓▓▓░░░░░░
    DecodeBatch         those that answer now, side by side; a model reads it as      ▓▓▓▓░░░░░░░░░░░░
                  one batch, [:rows, :, :longest], with a mask where rows       ▓▓▓▓▓▓▓░░░░░░░░░
                  differ. Whoever leaves is replaced by the last row.            (free slot)

Both grow by doubling, so a token costs a write of one position and never a copy of what was there. A conversation is
prefilled in a `KVCache` of its own with one row, and then copied to a decode batch. Rows of very different lengths are
in different decode batches, or the longest would make all of them wide.

What a family keeps beside the words (`side_cache`: owl3's pictures) belongs to the row and is never padded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SMALLEST = 256
"""Positions of the smallest table."""
SHORT = 4096
"""Rows of up to so many positions share a decode batch; longer ones stand with those of the same power of four."""


class KVCacheLayer(CacheLayerMixin):
    """Keys and values (S, Hkv, C, D) of one layer, of S slots with C positions each."""

    is_sliding = False

    def __init__(self, table: KVCache) -> None:
        super().__init__()
        self.table = table
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, positions = self.table.slots, self.table.capacity
        self.keys, self.values = (
            states.new_zeros(slots, states.shape[1], positions, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (B, Hkv, T, D) behind what each of the first B rows holds; returns (B, Hkv, longest + T, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        rows, length = key_states.shape[0], key_states.shape[2]
        end = self.table.longest + length
        if self.table.ends is None:
            self.keys[:rows, :, end - length : end] = key_states
            self.values[:rows, :, end - length : end] = value_states
        else:
            numbers, ends = self.table.ends_on(key_states.device)
            self.keys[numbers, :, ends] = key_states[:, :, 0]
            self.values[numbers, :, ends] = value_states[:, :, 0]
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def resize(self, slots: int, positions: int) -> None:
        """Move to a table of another size."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            if old is None:
                continue
            new = old.new_zeros(slots, old.shape[1], positions, old.shape[3])
            new[: old.shape[0], :, : old.shape[2]] = old[:slots, :, :positions]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.table.longest + query_length, 0

    def get_seq_length(self) -> int:
        return self.table.longest

    def get_max_length(self) -> int:
        return -1


class KVCache(Cache):
    """A table of rows, as transformers' models write and read it.

    The rows' lengths change in `advance`, after a pass has succeeded: a pass that fails half-way leaves nothing behind.

    Args:
        capacity: Positions of a row at first.
    """

    def __init__(self, num_layers: int, capacity: int = SMALLEST) -> None:
        self.slots, self.capacity = 1, capacity
        self.lengths: list[int] = []
        super().__init__(layers=[KVCacheLayer(self) for _ in range(num_layers)])
        self.side_cache: Any = None
        self._ends: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._measure()

    def _measure(self) -> None:
        self.longest = max(self.lengths, default=0)
        # equal lengths are written as one slice; None says so
        self.ends: list[int] | None = self.lengths if len(set(self.lengths)) > 1 else None
        self._ends = {}

    def ends_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The numbers of the rows, and their lengths: two tensors (B,)."""
        if device not in self._ends:
            ends = self.lengths if self.ends is None else self.ends
            self._ends[device] = torch.arange(len(ends), device=device), torch.tensor(ends, device=device)
        return self._ends[device]

    def make_room(self, positions: int, slots: int = 1) -> None:
        """Grow so that rows hold so many positions, and there are so many rows."""
        capacity, count = self.capacity, self.slots
        while capacity < positions:
            capacity *= 2
        while count < slots:
            count *= 2
        self._resize(count, capacity)

    def _resize(self, slots: int, capacity: int) -> None:
        if (slots, capacity) != (self.slots, self.capacity):
            for layer in self.layers:
                layer.resize(slots, capacity)
            self.slots, self.capacity = slots, capacity

    def advance(self, *positions: int) -> None:
        """A pass has written so many positions: to each row, or to all of them the same number."""
        each = positions if len(positions) == len(self.lengths) else positions * len(self.lengths)
        self.lengths = [length + new for length, new in zip(self.lengths, each, strict=True)]
        self._measure()

    def mask(self, device: torch.device) -> Tensor | None:
        """Who sees what when each row adds one position: bool (B, 1, 1, longest + 1); None where all see everything."""
        if self.ends is None:
            return None
        _, ends = self.ends_on(device)
        return (torch.arange(self.longest + 1, device=device) <= ends[:, None])[:, None, None]

    def pairs(self, row: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer of a row's first positions, (Hkv, length, D): views."""
        for layer in self.layers:
            assert layer.keys is not None
            assert layer.values is not None
            yield layer.keys[row, :, :length], layer.values[row, :, :length]

    def put(self, row: int, pairs: Iterator[tuple[Tensor, Tensor]], length: int) -> None:
        """Write a row's first positions in all layers, and set its length; the row is there, or the next one."""
        if row == len(self.lengths):
            self.lengths.append(length)
        self.lengths[row] = length
        self.make_room(length + 1, row + 1)
        for layer, (keys, values) in zip(self.layers, pairs, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(keys[None], values[None])
            layer.keys[row, :, :length] = keys
            layer.values[row, :, :length] = values
        self._measure()

    def side_cache_of(self, row: int) -> Any:
        """What a family keeps beside the words of one row, or None."""
        if self.side_cache is None or len(self.lengths) == 1:
            return self.side_cache
        return self.side_cache.row(row)

    def nbytes(self) -> int:
        """Bytes of the whole table."""
        tensors = [tensor for layer in self.layers for tensor in (layer.keys, layer.values) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def empty_rows(num_layers: int, positions: int, rows: int = 1) -> KVCache:
    """A table for conversations that are about to be read."""
    table = KVCache(num_layers)
    table.lengths = [0] * rows
    table.make_room(positions, rows)
    return table


class DecodeBatch(KVCache):
    """Conversations that answer side by side. `rows` are their owners, whoever they are, in the order of the rows.

    Args:
        kind: What sort of rows stand here; see `length_bucket`.
    """

    def __init__(self, num_layers: int, kind: int = SHORT) -> None:
        super().__init__(num_layers)
        self.kind = kind
        self.rows: list[Any] = []
        self._side_caches: list[Any] = []

    @property
    def width(self) -> int:
        """Rows of a pass."""
        return len(self.rows)

    def add(self, owner: Any, row: KVCache, number: int = 0) -> None:
        """Copy a row of another table."""
        length = row.lengths[number]
        self.put(len(self.rows), row.pairs(number, length), length)
        self.rows.append(owner)
        self._side_caches.append(row.side_cache_of(number))
        self._join()

    def remove(self, owner: Any, wipe: bool = False) -> None:
        """Forget a row; the last one takes its place.

        Args:
            wipe: It may hold what is no number, which would spoil whoever comes after, even behind a mask.
        """
        row, last = self.rows.index(owner), len(self.rows) - 1
        if wipe:
            for layer in self.layers:
                layer.keys[row].zero_()
                layer.values[row].zero_()
        if row != last:
            self.put(row, self.pairs(last, self.lengths[last]), self.lengths[last])
            self.rows[row], self._side_caches[row] = self.rows[last], self._side_caches[last]
        self.rows.pop()
        self._side_caches.pop()
        self.lengths.pop()
        self._measure()
        self._join()
        if 0 < len(self.rows) <= self.slots // 4:  # give memory back, but not at each coming and going
            self._resize(self.slots // 2, self.capacity)

    def side_cache_of(self, row: int) -> Any:
        return self._side_caches[row]

    def _join(self) -> None:
        present = [side_cache for side_cache in self._side_caches if side_cache is not None]
        self.side_cache = type(present[0]).joined(self._side_caches) if present else None


def length_bucket(positions: int) -> int:
    """The kind of decode batch for a row of so many positions: the most that rows on it hold."""
    most = SHORT
    while most < positions:
        most *= 4
    return most
