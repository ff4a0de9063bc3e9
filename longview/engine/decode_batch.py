"""Decode batches: the rows of requests that are decoded in one pass, one batch per length bucket.

A pass computes every row at the length of the longest, so rows of very different lengths are in different batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from longview.engine.kv_cache import MIN_POSITIONS, KVCache
from longview.models.base import SideCache

if TYPE_CHECKING:
    from longview.engine.request import Request

SMALLEST_BUCKET = 4096
"""Largest row length, in positions, of the first length bucket; each further bucket is four times as long."""


class DecodeBatch(KVCache):
    """The KV cache of requests that are decoded in one pass, one row each. A removed row is replaced by the last one.

    Args:
        bucket: Largest row length of its length bucket; see `length_bucket`.
    """

    def __init__(self, num_layers: int, bucket: int = SMALLEST_BUCKET) -> None:
        super().__init__(num_layers)
        self.bucket = bucket
        self.requests: list[Request] = []
        """Whose rows these are, in the order of the rows."""
        self._side_caches: list[SideCache | None] = []

    @property
    def rows_per_pass(self) -> int:
        """Rows of a forward pass; those without a request come last."""
        return len(self.requests)

    def add(self, request: Request, source: KVCache, row: int = 0) -> None:
        """Copy a row of another cache. Where that fails, the batch is as it was."""
        length, number = source.lengths[row], len(self.requests)
        side_caches = [*self._side_caches, source.side_cache_of(row)]
        self.reserve(length + 1, number + 1)
        joined = self._joined(side_caches)
        self.write_row(number, source.key_values(row, length), length)
        self.requests.append(request)
        self._side_caches, self.side_cache = side_caches, joined

    def remove(self, request: Request, zero: bool = False) -> None:
        """Remove a row. Where that fails, the request is still there.

        Args:
            zero: Overwrite the row. It may hold NaN, which would reach a later row in its place even behind a mask.
        """
        row, last = self.requests.index(request), len(self.requests) - 1
        if zero:
            for tensor in (tensor for layer in self.layers for tensor in layer.tensors()):
                tensor[row].zero_()
        side_caches = list(self._side_caches)
        side_caches[row] = side_caches[last]
        joined = self._joined(side_caches[:last])
        if row != last:
            self.write_row(row, self.key_values(last, self.lengths[last]), self.lengths[last])
        self.requests[row] = self.requests[last]
        del self.requests[last], self.lengths[last], side_caches[last]
        self._side_caches, self.side_cache = side_caches, joined
        self._lengths_changed()
        if 0 < len(self.requests) <= self.row_capacity // 4:  # not at a half, where each add and remove would resize
            self._resize(self.row_capacity // 2, self.position_capacity)

    def side_cache_of(self, row: int) -> SideCache | None:
        return self._side_caches[row]

    def _joined(self, side_caches: Sequence[SideCache | None]) -> SideCache | None:
        """The side caches of the rows as that of the batch; None where no row has one."""
        first = next((side_cache for side_cache in side_caches if side_cache is not None), None)
        return None if first is None else type(first).joined(side_caches)


class DecodeBatches:
    """All decode batches: one per length bucket, but for rows that have been split off.

    Args:
        batch_class: `StaticDecodeBatch` where decoding is compiled.
    """

    def __init__(self, num_layers: int, batch_class: type[DecodeBatch] = DecodeBatch) -> None:
        self.num_layers, self.batch_class = num_layers, batch_class
        self._batches: list[DecodeBatch] = []

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[DecodeBatch]:
        return iter(list(self._batches))

    def add(self, request: Request, source: KVCache, row: int = 0) -> None:
        """Copy a prefilled row into the batch of its length bucket."""
        bucket = length_bucket(request.max_positions)
        found = [batch for batch in self._batches if batch.bucket == bucket]
        batch = found[0] if found else self.batch_class(self.num_layers, bucket)
        batch.add(request, source, row)
        request.decode_batch = batch
        if not found:
            self._batches.append(batch)

    def remove(self, request: Request, zero: bool = False) -> None:
        """Remove the row of a request; see `DecodeBatch.remove`."""
        if request.decode_batch is not None:
            request.decode_batch.remove(request, zero)
            request.decode_batch = None
            self._batches = [batch for batch in self._batches if batch.requests]

    def clear(self) -> None:
        """Remove all of them."""
        self._batches = []

    def split_off(self, request: Request) -> None:
        """Move the row of a request into a batch of its own. Where that fails, it stays."""
        batch = request.decode_batch
        if batch is not None:
            alone = self.batch_class(self.num_layers, batch.bucket)
            alone.add(request, batch, batch.requests.index(request))
            batch.remove(request)
            request.decode_batch = alone
            self._batches.append(alone)

    def merge(self) -> None:
        """Move rows that were split off back into the first batch of their bucket. Where that fails, the rest stays."""
        first: dict[int, DecodeBatch] = {}
        for batch in self:
            target = first.setdefault(batch.bucket, batch)
            if target is not batch:
                (request,) = batch.requests  # only `split_off` makes a second batch in a bucket
                target.add(request, batch)
                request.decode_batch = target
                self._batches.remove(batch)


def length_bucket(positions: int) -> int:
    """The largest row length of the bucket that a row of so many positions belongs to."""
    bucket = SMALLEST_BUCKET
    while bucket < positions:
        bucket *= 4
    return bucket


def allocated_positions(lengths: Iterable[int]) -> int:
    """Positions that are allocated for rows of these lengths, as capacities grow by doubling."""
    buckets: dict[int, list[int]] = {}
    for length in lengths:
        buckets.setdefault(length_bucket(length), []).append(length)
    return sum(_power_of_two(len(rows)) * max(MIN_POSITIONS, _power_of_two(max(rows))) for rows in buckets.values())


def _power_of_two(least: int) -> int:
    return 1 << math.ceil(math.log2(max(1, least)))
