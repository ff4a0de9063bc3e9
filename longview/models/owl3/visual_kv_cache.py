"""Keys and values of the pictures in the hyper layers: computed once a picture, kept beside the text's KV cache.

    VisualKVCache    rows         placeholder starts    keys and values, for each hyper layer
                     ├ row 0      [4, 19, 30]           K, V (Hkv, 3·P, D)
                     └ row 1      [7]                   K, V (Hkv, 1·P, D)

Only a layer itself can project features to its keys and values, so new pictures arrive in two steps: `add` takes their
features, and in the next forward pass each hyper layer calls `project` and `store`; `end_pass` then drops the features.
The authors' code computes keys and values again for every generated token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from longview.models.owl3.int8 import Int8KeyValue

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of n pictures in one layer, (Hkv, n·P, D) each."""
StoredKeyValue = KeyValue | Int8KeyValue
"""As they are kept: in the model's dtype, or in 8 bits."""
Projection = Callable[[Tensor, list[int]], KeyValue]
"""Features (n, P, hidden) and n positions → keys and values."""


def until(key_value: StoredKeyValue, keys: int) -> StoredKeyValue:
    """The first so many keys and their values."""
    if isinstance(key_value, Int8KeyValue):
        return key_value.until(keys)
    return key_value[0][:, :keys], key_value[1][:, :keys]


def joined(key_value: StoredKeyValue, more: StoredKeyValue) -> StoredKeyValue:
    """Both, one after the other."""
    if isinstance(key_value, Int8KeyValue):
        assert isinstance(more, Int8KeyValue), "a layer keeps all of its pictures in one form"
        return key_value.joined(more)
    assert not isinstance(more, Int8KeyValue), "a layer keeps all of its pictures in one form"
    return torch.cat([key_value[0], more[0]], dim=1), torch.cat([key_value[1], more[1]], dim=1)


def copied(key_value: StoredKeyValue) -> StoredKeyValue:
    """The same in memory of its own."""
    return key_value.copy() if isinstance(key_value, Int8KeyValue) else (key_value[0].clone(), key_value[1].clone())


def plain(key_value: StoredKeyValue) -> KeyValue:
    """Keys and values in the model's dtype."""
    return key_value.plain() if isinstance(key_value, Int8KeyValue) else key_value


def bytes_of(key_value: StoredKeyValue) -> int:
    """Bytes of keys and values, and of their scales."""
    if isinstance(key_value, Int8KeyValue):
        return key_value.nbytes
    return sum(tensor.numel() * tensor.element_size() for tensor in key_value)


@dataclass
class RowPictures:
    """The pictures of one row."""

    placeholder_starts: list[int] = field(default_factory=list)
    """Positions of the placeholders' first tokens in the row, ascending, one a picture."""
    sample_starts: list[int] = field(default_factory=list)
    """Positions at which further samples of a packed row begin; the pictures before are not visible to them."""
    key_values: dict[int, StoredKeyValue] = field(default_factory=dict)
    """By layer."""

    def copy(self) -> RowPictures:
        """The same pictures as a row of its own, which may get others; the tensors are shared."""
        return RowPictures(list(self.placeholder_starts), list(self.sample_starts), dict(self.key_values))

    def until(self, position: int, patches: int) -> RowPictures:
        """The pictures whose placeholders stand before a position; nothing is copied but values in 8 bits."""
        starts = [start for start in self.placeholder_starts if start < position]
        keys = len(starts) * patches
        kept = {layer: until(key_value, keys) for layer, key_value in self.key_values.items() if keys}
        return RowPictures(starts, key_values=kept)


@dataclass
class PendingPictures:
    """Pictures that the hyper layers have not projected yet."""

    features: Tensor  # (N, P, hidden), those of all rows, row after row
    positions: list[list[int]]  # MI-RoPE positions, a list for each row
    is_prepared: bool = False
    _copies: dict[torch.device, Tensor] = field(default_factory=dict)

    def prepare(self, prepared: Callable[[Tensor], Tensor]) -> None:
        """Replace the features by what all layers begin with; once."""
        if not self.is_prepared:
            self.features, self.is_prepared = prepared(self.features), True

    def features_on(self, device: torch.device) -> Tensor:
        """The features on a device; copied there once, however many layers are on it."""
        if device not in self._copies:
            self._copies[device] = self.features.to(device)
        return self._copies[device]


class VisualKVCache:
    """Keys and values of pictures for the rows of a batch. Rows may share theirs, as the beams of one question do."""

    def __init__(self, num_rows: int, patches: int) -> None:
        self.rows = [RowPictures() for _ in range(num_rows)]
        self.patches = patches
        self.pending: PendingPictures | None = None
        self.attended: dict[int, Tensor] | None = None
        """By layer, attention of the tokens of a pass to the keys, (T, M), where evidence is asked for: of one row."""
        self._padded: dict[tuple[int, int], KeyValue] = {}  # by layer and batch size, until pictures are added
        self._first_visible: dict[int, Tensor] = {}  # by batch size, until pictures are added

    # ── what engine and generation do with it: `longview.models.base.SideCache` ──

    @classmethod
    def joined(cls, rows: Sequence[VisualKVCache | None]) -> VisualKVCache:
        """Several caches of one row each as one batch; None is a row without pictures."""
        given = [cache for cache in rows if cache is not None]
        assert all(len(cache.rows) == 1 and cache.pending is None for cache in given)
        batch = cls(0, given[0].patches)
        batch.rows = [RowPictures() if cache is None else cache.rows[0] for cache in rows]
        return batch

    def row(self, number: int) -> VisualKVCache | None:
        """The pictures of one row, copied, so that they do not keep those of the others; None if there are none."""
        row = self.rows[number]
        if not row.placeholder_starts:
            return None
        alone = VisualKVCache(0, self.patches)
        key_values = {layer: copied(key_value) for layer, key_value in row.key_values.items()}
        alone.rows = [RowPictures(list(row.placeholder_starts), key_values=key_values)]
        return alone

    def until(self, position: int) -> VisualKVCache:
        """The pictures whose placeholders stand before a position; nothing is copied."""
        before = VisualKVCache(0, self.patches)
        before.rows = [row.until(position, self.patches) for row in self.rows]
        return before

    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(bytes_of(key_value) for row in self.rows for key_value in row.key_values.values())

    @property
    def num_pictures(self) -> int:
        return sum(len(row.placeholder_starts) for row in self.rows)

    def row_of(self, batch_row: int, batch_size: int) -> int:
        """Which of `rows` a row of the batch uses: they are repeated in place (`repeat_interleave`), as for beams."""
        return batch_row * len(self.rows) // batch_size

    # ── new pictures ──

    def add(
        self,
        features: Tensor,
        placeholder_starts: Sequence[Sequence[int]],
        positions: list[list[int]],
        sample_starts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """New pictures of each row of the batch, which the next forward pass projects.

        Args:
            features: (N, P, hidden), row after row.
            placeholder_starts: Where the pictures of each row stand in it.
            positions: Their MI-RoPE positions.
            sample_starts: For packed rows: where the samples of each begin.

        Raises:
            RuntimeError: earlier pictures are pending, because the pass that was to project them has failed.
        """
        if self.pending is not None:
            raise RuntimeError("earlier pictures have not been projected; begin the conversation with a new cache")
        batch_size = len(placeholder_starts)
        if len(self.rows) != batch_size:  # rows that shared pictures get pictures of their own
            self.rows = [self.rows[self.row_of(number, batch_size)].copy() for number in range(batch_size)]
        for row, starts in zip(self.rows, placeholder_starts, strict=True):
            row.placeholder_starts.extend(starts)
        for row, starts in zip(self.rows, sample_starts or [], strict=sample_starts is not None):
            row.sample_starts = [start for start in starts if start]
        self.pending = PendingPictures(features, positions)
        self._padded, self._first_visible = {}, {}

    def project(
        self,
        layer: int,
        projection: Projection,
        device: torch.device,
        stored_as: Callable[[KeyValue], StoredKeyValue] = lambda key_value: key_value,
        prepared: Callable[[Tensor], Tensor] | None = None,
    ) -> list[StoredKeyValue]:
        """Keys and values of each row in a layer, those of the pending pictures included. Nothing is stored.

        Args:
            prepared: What all layers do to the features first, and is done once; `projection` gets its result.
            stored_as: The form in which this layer keeps them.
        """
        assert self.pending is not None, "there are no pending pictures; use key_values"
        positions = self.pending.positions
        if prepared is not None:
            self.pending.prepare(prepared)
        key, value = projection(self.pending.features_on(device), list(itertools.chain.from_iterable(positions)))
        sizes = [len(row) * self.patches for row in positions]
        key_values = []
        for row, new_key, new_value in zip(self.rows, key.split(sizes, dim=1), value.split(sizes, dim=1), strict=True):
            new = stored_as((new_key, new_value))
            key_values.append(joined(row.key_values[layer], new) if layer in row.key_values else new)
        return key_values

    def store(self, layer: int, key_values: Sequence[StoredKeyValue]) -> None:
        """Keep what `project` returned for a layer."""
        for row, key_value in zip(self.rows, key_values, strict=True):
            row.key_values[layer] = key_value

    def end_pass(self) -> None:
        """Every hyper layer has stored the pending pictures: their features are no longer needed."""
        self.pending = None

    # ── what a layer attends to ──

    def key_values(self, layer: int) -> list[StoredKeyValue]:
        """Keys and values of each row in a layer, as stored."""
        any_of = next(row.key_values[layer] for row in self.rows if layer in row.key_values)
        return [row.key_values[layer] if layer in row.key_values else until(any_of, 0) for row in self.rows]

    def padded(self, layer: int, key_values: Sequence[KeyValue], batch_size: int) -> KeyValue:
        """A layer's keys and values as one batch, padded to the longest row: (B, Hkv, M, D). Made once in decoding."""
        if (layer, batch_size) in self._padded:
            return self._padded[layer, batch_size]
        rows = [self.row_of(number, batch_size) for number in range(batch_size)]
        if all(key.shape == key_values[0][0].shape for key, _ in key_values):
            keys, values = (torch.stack([key_values[row][i] for row in rows]) for i in (0, 1))
        else:
            pad = nn.utils.rnn.pad_sequence
            keys, values = (pad([pair[i].transpose(0, 1) for pair in key_values], True)[rows] for i in (0, 1))
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        if self.pending is None:
            self._padded[layer, batch_size] = keys, values
        return keys, values

    def visible(self, batch_size: int, begin: int, length: int, num_keys: int, inclusive: bool, device: Any) -> Tensor:
        """Which padded keys are visible to the tokens `begin … begin + length` of each row: bool (B, 1, T, M).

        Args:
            inclusive: A picture is visible to its placeholder's first token already (241101), or from the next one on.
        """
        if batch_size not in self._first_visible:
            never = torch.iinfo(torch.long).max
            first = torch.full((batch_size, num_keys // self.patches), never)
            for number in range(batch_size):
                row = self.rows[self.row_of(number, batch_size)]
                starts = torch.tensor(row.placeholder_starts, dtype=torch.long)
                first[number, : len(starts)] = starts if inclusive else starts + 1
            self._first_visible[batch_size] = first.repeat_interleave(self.patches, -1)[:, None, None].to(device)
        tokens = torch.arange(begin, begin + length, device=device)[:, None]
        visible = self._first_visible[batch_size].to(device) <= tokens
        if any(row.sample_starts for row in self.rows):
            visible &= tokens < self._sample_ends(batch_size, num_keys).to(device)
        return visible

    def _sample_ends(self, batch_size: int, num_keys: int) -> Tensor:
        """Where the sample ends that each of the padded keys belongs to: (B, 1, 1, M)."""
        never = torch.iinfo(torch.long).max
        ends = torch.full((batch_size, num_keys // self.patches), never)
        for number in range(batch_size):
            row = self.rows[self.row_of(number, batch_size)]
            next_samples = torch.tensor([*row.sample_starts, never])
            own = torch.searchsorted(next_samples, torch.tensor(row.placeholder_starts), right=True)
            ends[number, : len(own)] = next_samples[own]
        return ends.repeat_interleave(self.patches, -1)[:, None, None]


class Owl3Cache(DynamicCache):
    """The KV cache of a conversation's text tokens, and beside it the keys and values of its pictures.

    `Owl3Model.forward` and `generate` make one where no cache is given; give it to the next turn as `past_key_values`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.side_cache: VisualKVCache | None = None

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """As `DynamicCache.crop`; pictures that stood in what is removed are removed, too."""
        super().crop(*args, **kwargs)
        if self.side_cache is not None:
            self.side_cache = self.side_cache.until(int(self.get_seq_length()))
