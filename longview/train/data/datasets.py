"""A user's datasets as one stream of samples: which row stands at which position.

    sources.py (rows) ── RowReader ─┬─ Dataset: random access, all rows checked at first ─┬─ Mixture: the sample at
                                    └─ Stream: rows in order, a buffer in memory ─────────┘  each position

Nothing is drawn while training runs: the row at each position of each epoch follows from the recipe's seed, so a
resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

import bisect
import copy
import hashlib
import itertools
import random
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from longview.errors import RecipeError, RequestError
from longview.train.data.grouping import grouped
from longview.train.data.rows import NAMES, Example, as_caption, read_row
from longview.train.data.settings import DatasetSettings
from longview.train.data.sources import OpenedSource, Place, locate, open_source, parse
from longview.train.recipe import Stage, data_of

LOOKED_AT = 100
"""Rows of a stream that are checked before the first step."""
ROUND = 1000
"""Samples after which the mixture of streams begins anew: to each its weight's share of them."""


class RowReader:
    """How the rows of a dataset become examples in a stage."""

    def __init__(self, settings: DatasetSettings, opened: OpenedSource, stage: Stage) -> None:
        self._settings, self._opened = settings, opened
        self._plain = data_of(stage).template == "plain"
        self._rejected = stage.objective == "preference"

    def __call__(self, row: Any) -> Example:
        """Raises RecipeError: the row is not understood."""
        settings, opened = self._settings, self._opened
        row = parse(row)
        if isinstance(row, dict):
            row = self._named(row)
        example = read_row(row, opened.folder, settings.ignore, opened.caption_template)
        if opened.captions is not None and example.plain != opened.captions:
            form, found = ("caption", "conversation")[:: 1 if opened.captions else -1]
            raise RecipeError(f"the row is a {found}, and data_format says {form}")
        if (example.rejected is not None) != self._rejected:
            raise RecipeError(
                "lacks a rejected_response, which objective preference learns from" if self._rejected else
                "holds a rejected answer, which objective supervised does not learn from; use preference, or name the "
                "column under ignore"
            )  # fmt: skip
        if self._plain and not example.plain:
            example = as_caption(example)
        return replace(example, text_rich=True) if settings.text_rich else example

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with the columns' known names, and the question of every row, where it holds none."""
        settings = self._settings
        clash = next((new for old, new in settings.columns.items() if old in row and new in row), None)
        if clash:
            raise RecipeError(f"columns calls another one {clash!r}, and the row has a column of that name")
        row = {settings.columns.get(key, key): value for key, value in row.items()}
        asked = any(NAMES.get(key) in ("messages", "query", "caption") for key, value in row.items() if value)
        return row if asked or not settings.query else row | {"query": settings.query}


class Dataset:
    """The rows of one source, or as many of them as its name says; each is checked on opening.

    Raises:
        RecipeError: the source cannot be read or is empty, or a row is not understood; names its line.
    """

    streams = False

    def __init__(self, settings: DatasetSettings, seed: int, stage: Stage, which: int = 0) -> None:
        """Args:
        which: Its number among the stage's datasets; each has an order of its own.
        """
        opened = open_source(settings)
        self.path, self.digest = opened.path, opened.digest
        self._source, self._read = opened.source, RowReader(settings, opened, stage)
        held, wanted = len(self._source), locate(settings.path).count
        if not held:
            raise RecipeError(f"dataset {settings.path} is empty; give one with a row or more")
        if wanted > held:
            raise RecipeError(f"dataset {settings.path} asks for {wanted} rows, and it holds {held}; ask for fewer")
        chosen = random.Random(f"{seed} {settings.path}").sample(range(held), wanted) if wanted else range(held)
        self._chosen = np.array(sorted(chosen), np.int64)
        self._seed = f"{seed} {stage.name} dataset {which}"
        self._split = f"{seed} {settings.path}"
        self._pass = lru_cache(maxsize=2)(self._draw_pass)
        self.lengths = np.zeros(len(self), np.int32)
        """Words of each row, see `Example.words`; negative where it has no media."""
        self.cuts = False
        """Whether a row has a `max_partition` of its own."""
        for number in range(len(self)):
            example = self[number]
            self.lengths[number] = example.words * (1 if example.media else -1)
            self.cuts |= example.max_partition is not None

    def __len__(self) -> int:
        return len(self._chosen)

    def hold_out(self, count: int) -> Dataset:
        """Take some rows out: a dataset of them, the same ones in every stage."""
        order, held = shuffled(len(self), f"{self._split} validation"), copy.copy(self)
        chosen, lengths = self._chosen, self.lengths
        for data, places in ((held, np.sort(order[:count])), (self, np.sort(order[count:]))):
            data._chosen, data.lengths = chosen[places], lengths[places]
        return held

    def place(self, number: int) -> Place:
        return Place(self.path, self._source.unit, self._source.number(int(self._chosen[number])))

    def __getitem__(self, number: int) -> Example:
        try:
            return self._read(self._source.row(int(self._chosen[number])))
        except RecipeError as error:
            raise RecipeError(f"{self.place(number)}: {error}") from error

    def numbers(self, begin: int, count: int) -> np.ndarray:
        """The rows that come after `begin` others: pass after pass, each in an order of its own."""
        turns = np.arange(begin, begin + count)
        passes = [self._pass(passed) for passed in range(begin // len(self), (begin + count - 1) // len(self) + 1)]
        return np.concatenate(passes)[turns - begin // len(self) * len(self)]

    def _draw_pass(self, passed: int) -> np.ndarray:
        return shuffled(len(self), f"{self._seed} pass {passed}")


class Stream:
    """The rows of one source in its own order, shuffled a buffer at a time; only that many are in memory.

    Row after row is numbered through all passes. A row can be asked for while its buffer is held; for an earlier one,
    and for the first one of a resumed run, the source is walked through again from its beginning, without opening
    pictures.

    Raises:
        RecipeError: the source cannot be read or is empty, or one of the first rows is not understood.
    """

    streams = True

    def __init__(self, settings: DatasetSettings, seed: int, stage: Stage, which: int = 0) -> None:
        """Args:
        which: Its number among the stage's datasets; each has an order of its own.
        """
        opened = open_source(settings)
        self.path, self.digest, self.cuts = opened.path, opened.digest, False
        self._source, self._read = opened.source, RowReader(settings, opened, stage)
        self._name, self._buffer, self._wanted = settings.path, settings.buffer, locate(settings.path).count or None
        self._seed = f"{seed} {stage.name} dataset {which}"
        self._walks: list[Any] = []
        weakref.finalize(self, _close, self._walks)  # before its libraries are unloaded at exit
        seen = 0
        for number, row in itertools.islice(self._walk(), self._wanted or LOOKED_AT):
            try:
                self.cuts |= self._read(row).max_partition is not None
            except RecipeError as error:
                raise RecipeError(f"{Place(self.path, self._source.unit, number)}: {error}") from error
            seen += 1
        if not seen:
            raise RecipeError(f"dataset {self._name} is empty; give one with a row or more")
        if self._wanted and seen < self._wanted:
            raise RecipeError(f"dataset {self._name} asks for {self._wanted} rows, and it holds {seen}; ask for fewer")
        self._rewind()

    def _walk(self) -> Iterator[tuple[int, Any]]:
        self._walks[:] = [walk := self._source.walk()]
        return itertools.islice(walk, self._wanted)

    def _rewind(self) -> None:
        self._passed = self._blocks = self._begin = 0
        self._rows: list[tuple[int, Any]] = []
        self._rest = self._walk()

    def _find(self, number: int) -> tuple[int, Any]:
        """A row, from the buffer that it falls into."""
        if number < self._begin:
            self._rewind()
        while number >= self._begin + len(self._rows):
            self._begin += len(self._rows)
            rows = list(itertools.islice(self._rest, self._buffer))
            if not rows:
                self._passed, self._blocks, self._rows, self._rest = self._passed + 1, 0, [], self._walk()
                continue
            order = shuffled(len(rows), f"{self._seed} pass {self._passed} buffer {self._blocks}")
            self._rows = [rows[place] for place in order]
            self._blocks += 1
        return self._rows[number - self._begin]

    def place(self, number: int) -> Place:
        return Place(self.path, self._source.unit, self._find(number)[0])

    def __getitem__(self, number: int) -> Example:
        """Raises RequestError: the row is not understood; it is read here for the first time."""
        try:
            return self._read(self._find(number)[1])
        except RecipeError as error:
            raise RequestError(str(error)) from error


def _close(walks: list[Any]) -> None:
    for walk in walks:
        walk.close()


class Mixture:
    """Datasets as one endless stream, epoch after epoch, each in an order of its own.

    An epoch takes weight · rows of each dataset; the rest of a fraction comes in the next epochs. Where any of them
    streams, its length is unknown, and weights are shares of the samples instead.
    """

    def __init__(self, stage: Stage, seed: int) -> None:
        self._settings, self._seed = data_of(stage), f"{seed} {stage.name}"
        wanted = self._settings.datasets
        if not wanted:
            raise RecipeError(f"stages.{stage.name}.data.datasets is empty; name one file or more")
        self.datasets = [
            (Stream if settings.streaming else Dataset)(settings, seed, stage, which)
            for which, settings in enumerate(wanted)
        ]
        self.streams = any(data.streams for data in self.datasets)
        self.validation: list[tuple[Dataset, int]] = []
        """Rows that are held out: their dataset, and their number there."""
        if self._settings.validation:
            self._hold_out(stage)
        if self.streams:
            total = sum(settings.weight for settings in wanted)
            shares = [ROUND * settings.weight / total for settings in wanted]
        else:
            shares = [s.weight * len(data) for s, data in zip(wanted, self.datasets, strict=True)]  # type: ignore[arg-type]
        self._shares = [max(1, round(share)) for share in shares]
        self._ends = list(itertools.accumulate(self._shares))
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._numbers = lru_cache(maxsize=2)(self._draw_numbers)

    def _hold_out(self, stage: Stage) -> None:
        """Take the rows for validation out of the datasets, of each its share of them."""
        datasets = [data for data in self.datasets if isinstance(data, Dataset)]
        ends, wanted = [0, *itertools.accumulate(map(len, datasets))], self._settings.validation
        share = wanted if wanted < 1 else wanted / ends[-1]
        counts = [round(share * end) - round(share * begin) for begin, end in itertools.pairwise(ends)]
        if not sum(counts) or any(count >= len(data) for count, data in zip(counts, datasets, strict=True)):
            raise RecipeError(
                f"stages.{stage.name}.data.validation {wanted:g} of {ends[-1]:,} rows leaves none to judge by, or none "
                "to learn from; give another share"
            )
        for data, count in zip(datasets, counts, strict=True):
            held = data.hold_out(count)
            self.validation += [(held, number) for number in range(count)]

    @property
    def epoch(self) -> int:
        """Samples of one epoch; with streams, which have none, of one round through their shares."""
        return self._ends[-1]

    def at(self, position: int) -> tuple[Dataset | Stream, int]:
        """The sample at a position of the stream: its dataset, and its number there."""
        epoch, within = divmod(position, self.epoch)
        slot = int(self._order(epoch)[within])
        return self.datasets[bisect.bisect_right(self._ends, slot)], int(self._numbers(epoch)[slot])

    def digests(self) -> dict[str, str]:
        return {str(data.path): data.digest for data in self.datasets}

    def _draw_numbers(self, epoch: int) -> np.ndarray:
        """The row of each slot of an epoch, in its dataset; the slots of one dataset lie side by side."""
        found = []
        for data, share in zip(self.datasets, self._shares, strict=True):
            turns = np.arange(epoch * share, (epoch + 1) * share)
            found.append(turns if isinstance(data, Stream) else data.numbers(epoch * share, share))
        return np.concatenate(found)

    def _draw_order(self, epoch: int) -> np.ndarray:
        """The slot at each position of an epoch. Those of a stream follow one another."""
        name = f"{self._seed} epoch {epoch}"
        if self._settings.group_by_length:
            lengths = np.concatenate([data.lengths for data in self.datasets if isinstance(data, Dataset)])
            begins = np.cumsum([0, *(len(data) for data in self.datasets[:-1] if isinstance(data, Dataset))])
            rows = self._numbers(epoch) + np.repeat(begins, self._shares)
            batch, chunks = self._settings.batch, max(1, self._settings.batch // self._settings.micro_batch)
            return grouped(lengths[rows], batch, chunks, generator(name), lead=-epoch * self.epoch % batch)
        order = shuffled(self.epoch, name)
        for data, share, end in zip(self.datasets, self._shares, self._ends, strict=True):
            if data.streams:
                places = (order >= end - share) & (order < end)
                order[places] = np.arange(end - share, end)
        return order


def generator(name: str) -> np.random.Generator:
    """A random generator of its own for each name."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")))


def shuffled(count: int, name: str) -> np.ndarray:
    return generator(name).permutation(count)
