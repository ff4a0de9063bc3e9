"""The vectors of an index, in LanceDB: the only place that knows it.

LanceDB writes what is added as files of its own and never reads or rewrites those that are there, searches from the
disk, and serves the same folder from an object store; an in-memory graph (usearch, hnswlib) would have to be loaded,
and written anew, whole. Below `MIN_INDEXED` vectors a search compares with all of them, which is exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.errors import CheckpointError, MissingExtraError

TABLE = "items"
MIN_INDEXED = 100_000
"""Vectors from which on a search goes by an approximate index."""
PROBES, REFINE = 40, 10
"""Of a search by the approximate index: partitions that are looked into, and how many times as many are compared."""
ROWS = 4096
"""Rows written at a time."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """What a vector is of."""

    kind: str
    """frame, picture or passage."""
    vector_of: str
    """image or text: vectors of the two are near to each other in another sense than among themselves."""
    digest: str
    """Of the file, SHA-256 in hex."""
    place: int
    """Index of the frame in its video; number of the passage in its file; 0 for a picture."""
    seconds: float = 0.0
    until: float = 0.0
    """When the next frame that was kept is shown, or the video ends."""
    shot: int = 0
    text: str = ""
    """Of a passage; what was found by a picture of it has the text, too."""
    source: str = ""
    """Where a passage says that it comes from."""


@dataclass(frozen=True)
class Hit:
    """An item, and its cosine with what was searched for."""

    item: Item
    score: float


class Store:
    """The items of an index, on disk.

    Args:
        folder: Made if need be.
        width: Numbers of a vector.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._db = _lancedb().connect(str(folder))
        self._width = width
        import pyarrow

        columns = [pyarrow.field(each.name, _TYPES[str(each.type)](pyarrow)) for each in fields(Item)]
        vector = pyarrow.field("vector", pyarrow.list_(pyarrow.float16(), width))
        self._schema = pyarrow.schema([vector, *columns])
        self._table = self._db.create_table(TABLE, schema=self._schema, exist_ok=True)

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def add(self, items: Iterable[tuple[Item, Vectors]]) -> int:
        """Write items with their vectors (width,); returns how many."""
        iterator, count = iter(items), 0
        while batch := list(islice(iterator, ROWS)):
            self._table.add(self._batch(batch))
            count += len(batch)
        return count

    def remove(self, digests: Sequence[str]) -> None:
        """Remove all items of some files."""
        remaining = iter(digests)
        while some := list(islice(remaining, 500)):
            self._table.delete(f"digest IN ({', '.join(map(_quoted, some))})")

    def search(
        self,
        vector: Vectors,
        limit: int,
        vector_of: str,
        kinds: Sequence[str] = (),
        among: Sequence[str] | None = None,
    ) -> list[Hit]:
        """The items nearest to a vector (width,), nearest first.

        Args:
            vector_of: Only items whose vectors are of images, or of texts.
            kinds: Only items of these; of all by default.
            among: Only items of files with these digests.
        """
        query = self._table.search(np.asarray(vector, np.float32)).distance_type("cosine").limit(limit)
        conditions = [f"vector_of = {_quoted(vector_of)}"]
        conditions += [f"kind IN ({', '.join(map(_quoted, kinds))})"] if kinds else []
        conditions += [f"digest IN ({', '.join(map(_quoted, among)) or _quoted('')})"] if among is not None else []
        query = query.where(" AND ".join(conditions), prefilter=True)
        if self.is_indexed:
            query = query.nprobes(PROBES).refine_factor(REFINE)
        found = query.select([*_COLUMNS, "_distance"]).to_list()
        return [Hit(_item(row), 1.0 - float(row["_distance"])) for row in found]

    def of_file(self, digest: str) -> Iterator[Item]:
        """All items of a file, in order."""
        rows = self._table.search().where(f"digest = {_quoted(digest)}").select(list(_COLUMNS)).to_list()
        yield from sorted(map(_item, rows), key=lambda item: item.place)

    @property
    def is_indexed(self) -> bool:
        return bool(self._table.list_indices())

    def optimize(self) -> None:
        """Make searches fast: join small files, and index what is new where there is much."""
        if len(self) >= MIN_INDEXED and not self.is_indexed:
            self._table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_PQ")
        self._table.optimize()

    def _batch(self, batch: Sequence[tuple[Item, Vectors]]) -> Any:
        import pyarrow

        vectors = np.stack([vector for _, vector in batch]).astype(np.float16)
        assert vectors.shape[1] == self._width, vectors.shape
        rows = [asdict(item) for item, _ in batch]
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), self._width)
        return pyarrow.table(
            {"vector": column, **{name: [row[name] for row in rows] for name in _COLUMNS}}, schema=self._schema
        )


_COLUMNS = tuple(each.name for each in fields(Item))
_TYPES = {
    "str": lambda arrow: arrow.string(),
    "int": lambda arrow: arrow.int64(),
    "float": lambda arrow: arrow.float64(),
}


def _item(row: Mapping[str, Any]) -> Item:
    return Item(**{name: row[name] for name in _COLUMNS})


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _lancedb() -> Any:
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("an index", "lancedb") from error
    return lancedb


def check_damage(error: Exception, folder: Path) -> CheckpointError:
    """A line for what the database says of a folder that it cannot read."""
    reason = " ".join(str(error).split())[:160]
    return CheckpointError(f"{folder} cannot be read ({reason}); index the folders again into another one")
