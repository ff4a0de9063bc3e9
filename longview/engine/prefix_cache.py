"""Keys and values of conversations that have been read: who begins alike need not be read again.

A later turn repeats the turns before it, and a second question about a film repeats the film. What two conversations
share is found by comparing what was computed from what: words (or embeddings, where a family puts pictures among them)
position by position, and pictures by the key of their features. Nothing is hashed together, so nothing can collide.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

WORTHWHILE = 16
"""Positions that must be shared for it to be worth copying them."""
MOST = 64
"""Conversations kept at most; each new one is compared with all of them."""


@dataclass
class PrefixKey:
    """What a row of keys and values is computed from."""

    words: Tensor
    """Ids (1, L), or embeddings (1, L, D)."""
    starts: list[int] = field(default_factory=list)
    """Where pictures stand that are no part of `words`; ascending."""
    pictures: list[str] = field(default_factory=list)
    """What those pictures are."""

    @property
    def length(self) -> int:
        return self.words.shape[1]

    @cached_property
    def head(self) -> object:
        """What two conversations that share enough must both begin with."""
        begin = self.words[0, :WORTHWHILE].flatten().view(torch.uint8).cpu().numpy().tobytes()
        pictures = zip(self.starts, self.pictures, strict=True)
        return begin, self.words.dtype, [each for each in pictures if each[0] < WORTHWHILE]

    def shared(self, other: PrefixKey) -> int:
        """The first positions at which both have the same words after the same pictures."""
        length = min(self.length, other.length)
        if not length or self.words.shape[2:] != other.words.shape[2:] or self.words.dtype != other.words.dtype:
            return 0
        same = self.words[0, :length] == other.words[0, :length].to(self.words.device)
        same = same if same.dim() == 1 else same.all(-1)
        count = length if bool(same.all()) else int(same.to(torch.uint8).argmin())
        ours, theirs = ([*zip(s.starts, s.pictures, strict=True), (length, "")] for s in (self, other))
        parting = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), None)
        return count if parting is None else min(count, *(start for start, _ in parting))

    def until(self, position: int) -> PrefixKey:
        """The beginning."""
        inside = [number for number, start in enumerate(self.starts) if start < position]
        return PrefixKey(self.words[:, :position], [self.starts[i] for i in inside], [self.pictures[i] for i in inside])


class Source(Protocol):
    """Where keys and values can be copied from: a kept conversation, or one under way."""

    @property
    def prefix_key(self) -> PrefixKey: ...

    @property
    def side_cache(self) -> Any: ...

    def pairs(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (Hkv, length, D)."""


@dataclass(eq=False)
class CachedPrefix:
    """A conversation that has ended: its keys and values, and what they were computed from."""

    prefix_key: PrefixKey
    states: list[tuple[Tensor, Tensor]]
    side_cache: Any

    def pairs(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        for keys, values in self.states:
            yield keys[:, :length], values[:, :length]

    @property
    def nbytes(self) -> int:
        tensors = [self.prefix_key.words, *(tensor for pair in self.states for tensor in pair)]
        held = 0 if self.side_cache is None else self.side_cache.nbytes()
        return held + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PrefixCache:
    """Conversations that have ended, those used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = 0
        self._kept: list[CachedPrefix] = []  # used longest ago first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def find(self, prefix_key: PrefixKey, under_way: Iterable[Source] = ()) -> tuple[Source | None, int]:
        """Who shares most with a conversation, and how many positions; all but its last one at most."""
        with self._lock:
            kept: Sequence[Source] = list(self._kept)
        best: Source | None = None
        most = WORTHWHILE - 1
        for source in (*under_way, *reversed(kept)):
            if source.prefix_key.head == prefix_key.head:
                shared = min(prefix_key.shared(source.prefix_key), prefix_key.length - 1)
                if shared > most:
                    best, most = source, shared
        with self._lock:
            if isinstance(best, CachedPrefix) and best in self._kept:
                self._kept.remove(best)
                self._kept.append(best)
        if best is None:
            self.misses += 1
            return None, 0
        self.hits += 1
        return best, most

    def put(self, source: Source, length: int) -> None:
        """Keep the first positions of a conversation, in place of those that are its beginning."""
        if not self.limit or length < WORTHWHILE:
            return
        prefix_key = source.prefix_key.until(length)
        with self._lock:
            alike = [old for old in self._kept if old.prefix_key.head == prefix_key.head]
            if any(prefix_key.shared(old.prefix_key) == length for old in alike):
                return
        side_cache = None if source.side_cache is None else source.side_cache.until(length)
        new = CachedPrefix(
            prefix_key, [(keys.clone(), values.clone()) for keys, values in source.pairs(length)], side_cache
        )
        with self._lock:
            covered = [old for old in alike if prefix_key.shared(old.prefix_key) == old.prefix_key.length]
            self._kept = [old for old in self._kept if old not in covered]
            if new.nbytes > self.limit:
                return
            self._kept.append(new)
            while len(self._kept) > MOST or self.nbytes > self.limit:
                self._kept.pop(0)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
