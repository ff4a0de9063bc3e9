"""The prefix cache: keys and values of finished requests. A request with the same prefix prefills only the rest.

A later turn of a conversation repeats the turns before it, and a second question about a video repeats the video. How
much two requests share is found by comparing what their keys and values were computed from: tokens (or embeddings,
where a family puts pictures into the sequence) position by position, and pictures by the keys of their features.
Positions are compared, not hashed, so there are no collisions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from longview.engine.kv_cache import KVCache
from longview.models.base import SideCache

MIN_SHARED_POSITIONS = 16
"""A shorter common prefix is not worth a copy."""
MAX_PREFIXES = 64
"""Prefixes kept at most; a new request is compared with each."""


@dataclass
class PrefixKey:
    """What a row of keys and values is computed from."""

    tokens_or_embeds: Tensor
    """Token ids (1, L), or embeddings (1, L, D)."""
    picture_starts: list[int] = field(default_factory=list)
    """First positions, ascending, of pictures that are no part of `tokens_or_embeds`."""
    picture_keys: list[str] = field(default_factory=list)
    """For each of those pictures, the key of its features and which crop it is."""

    @property
    def length(self) -> int:
        """Positions of the language sequence."""
        return self.tokens_or_embeds.shape[1]

    @property
    def _pictures(self) -> list[tuple[int, str]]:
        return list(zip(self.picture_starts, self.picture_keys, strict=True))

    @cached_property
    def first_positions(self) -> object:
        """Equal for any two keys that share at least `MIN_SHARED_POSITIONS`; unequal ones need not be compared."""
        begin = self.tokens_or_embeds[0, :MIN_SHARED_POSITIONS].flatten().view(torch.uint8).cpu().numpy().tobytes()
        pictures = [picture for picture in self._pictures if picture[0] < MIN_SHARED_POSITIONS]
        return begin, self.tokens_or_embeds.dtype, pictures

    def shared(self, other: PrefixKey) -> int:
        """The number of first positions at which both have the same tokens after the same pictures."""
        ours, theirs = self.tokens_or_embeds, other.tokens_or_embeds
        length = min(self.length, other.length)
        if not length or ours.shape[2:] != theirs.shape[2:] or ours.dtype != theirs.dtype:
            return 0
        same = ours[0, :length] == theirs[0, :length].to(ours.device)
        same = same if same.dim() == 1 else same.all(-1)
        count = length if bool(same.all()) else int(same.to(torch.uint8).argmin())
        pictures = zip([*self._pictures, (length, "")], [*other._pictures, (length, "")], strict=False)
        first_difference = next((pair for pair in pictures if pair[0] != pair[1]), None)
        return count if first_difference is None else min(count, *(start for start, _ in first_difference))

    def until(self, position: int) -> PrefixKey:
        """The key of the positions before this one."""
        pictures = [picture for picture in self._pictures if picture[0] < position]
        starts, keys = [start for start, _ in pictures], [key for _, key in pictures]
        return PrefixKey(self.tokens_or_embeds[:, :position], starts, keys)


class PrefixSource(Protocol):
    """Where a prefix can be copied from: the prefix cache, or a request that is decoding."""

    @property
    def prefix_key(self) -> PrefixKey: ...

    @property
    def side_cache(self) -> SideCache | None: ...

    def key_values(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (Hkv, length, D)."""


@dataclass(eq=False)
class CachedPrefix:
    """Keys and values of a finished request, and what they were computed from."""

    prefix_key: PrefixKey
    layers: list[tuple[Tensor, Tensor]]
    side_cache: SideCache | None

    @classmethod
    def of_row(cls, prefix_key: PrefixKey, rows: KVCache, row: int) -> CachedPrefix:
        """A copy of the first positions of a row, as many as the key has."""
        side_cache = rows.side_cache_of(row)
        layers = [(keys.clone(), values.clone()) for keys, values in rows.key_values(row, prefix_key.length)]
        return cls(prefix_key, layers, None if side_cache is None else side_cache.until(prefix_key.length))

    def key_values(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        for keys, values in self.layers:
            yield keys[:, :length], values[:, :length]

    @cached_property
    def key_value_bytes(self) -> int:
        """Bytes of keys and values, those of pictures beside the sequence included."""
        beside = 0 if self.side_cache is None else self.side_cache.nbytes()
        return beside + sum(tensor.nbytes for pair in self.layers for tensor in pair)

    @property
    def nbytes(self) -> int:
        return self.key_value_bytes + self.prefix_key.tokens_or_embeds.nbytes


class PrefixCache:
    """The least recently used prefixes are dropped when they exceed a number of bytes.

    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._prefixes: list[CachedPrefix] = []  # least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self._prefixes)

    @property
    def key_value_bytes(self) -> int:
        return sum(prefix.key_value_bytes for prefix in self._prefixes)

    def find(
        self, prefix_key: PrefixKey, running: Iterable[PrefixSource] = (), among_kept: bool = True
    ) -> tuple[PrefixSource | None, int]:
        """The source with the longest common prefix, and its length; the last position is always left to be computed.

        Args:
            running: Sources besides those that are kept.
            among_kept: Whether those that are kept are searched, too.
        """
        with self._lock:
            kept: Sequence[PrefixSource] = list(self._prefixes) if among_kept else ()
        best: PrefixSource | None = None
        longest = MIN_SHARED_POSITIONS - 1
        for source in (*running, *reversed(kept)):
            if source.prefix_key.first_positions == prefix_key.first_positions:
                shared = min(prefix_key.shared(source.prefix_key), prefix_key.length - 1)
                if shared > longest:
                    best, longest = source, shared
        with self._lock:
            if isinstance(best, CachedPrefix) and best in self._prefixes:
                self._prefixes.remove(best)
                self._prefixes.append(best)
        if best is None:
            self.misses += 1
            return None, 0
        self.hits += 1
        return best, longest

    def put(self, source: PrefixSource, length: int) -> None:
        """Keep a copy of the first positions of a source, in place of the kept prefixes that they begin with."""
        if not self.max_bytes or length < MIN_SHARED_POSITIONS:
            return
        prefix_key = source.prefix_key.until(length)
        with self._lock:
            comparable = [old for old in self._prefixes if old.prefix_key.first_positions == prefix_key.first_positions]
            if any(prefix_key.shared(old.prefix_key) == length for old in comparable):
                return
        if isinstance(source, CachedPrefix) and source.prefix_key.length == length:
            new = source  # a copy already
        else:
            side_cache = None if source.side_cache is None else source.side_cache.until(length)
            copies = [(keys.clone(), values.clone()) for keys, values in source.key_values(length)]
            new = CachedPrefix(prefix_key, copies, side_cache)
        with self._lock:
            replaced = [old for old in comparable if prefix_key.shared(old.prefix_key) == old.prefix_key.length]
            self._prefixes = [old for old in self._prefixes if old not in replaced]
            if new.nbytes > self.max_bytes:
                return
            self._prefixes.append(new)
            while len(self._prefixes) > MAX_PREFIXES or self.nbytes > self.max_bytes:
                self._prefixes.pop(0)

    def clear(self) -> None:
        """Drop all prefixes."""
        with self._lock:
            self._prefixes.clear()
