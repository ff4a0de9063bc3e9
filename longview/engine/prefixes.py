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
class Script:
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

    def shared(self, other: Script) -> int:
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

    def until(self, position: int) -> Script:
        """The beginning."""
        inside = [number for number, start in enumerate(self.starts) if start < position]
        return Script(self.words[:, :position], [self.starts[i] for i in inside], [self.pictures[i] for i in inside])


class Source(Protocol):
    """Where keys and values can be copied from: a kept conversation, or one under way."""

    @property
    def script(self) -> Script: ...

    @property
    def gallery(self) -> Any: ...

    def pairs(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (Hkv, length, D)."""


@dataclass(eq=False)
class Kept:
    """A conversation that has ended: its keys and values, and what they were computed from."""

    script: Script
    states: list[tuple[Tensor, Tensor]]
    gallery: Any

    def pairs(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        for keys, values in self.states:
            yield keys[:, :length], values[:, :length]

    @property
    def nbytes(self) -> int:
        tensors = [self.script.words, *(tensor for pair in self.states for tensor in pair)]
        held = 0 if self.gallery is None else self.gallery.nbytes()
        return held + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class PrefixStore:
    """Conversations that have ended, those used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hits = self.misses = 0
        self._kept: list[Kept] = []  # used longest ago first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def find(self, script: Script, under_way: Iterable[Source] = ()) -> tuple[Source | None, int]:
        """Who shares most with a conversation, and how many positions; all but its last one at most."""
        with self._lock:
            kept: Sequence[Source] = list(self._kept)
        best: Source | None = None
        most = WORTHWHILE - 1
        for source in (*under_way, *reversed(kept)):
            if source.script.head == script.head:
                shared = min(script.shared(source.script), script.length - 1)
                if shared > most:
                    best, most = source, shared
        with self._lock:
            if isinstance(best, Kept) and best in self._kept:
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
        script = source.script.until(length)
        with self._lock:
            alike = [old for old in self._kept if old.script.head == script.head]
            if any(script.shared(old.script) == length for old in alike):
                return
        gallery = None if source.gallery is None else source.gallery.until(length)
        new = Kept(script, [(keys.clone(), values.clone()) for keys, values in source.pairs(length)], gallery)
        with self._lock:
            covered = [old for old in alike if script.shared(old.script) == old.script.length]
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
