"""The vectors of an index, in LanceDB: the only place that knows it.

LanceDB writes what is added as files of its own and never reads or rewrites those that are there, searches from the
disk, and serves the same folder from an object store; an in-memory graph (usearch, hnswlib) would have to be loaded,
and written anew, whole. Below `MIN_INDEXED` vectors a search compares with all of them, which is exact. Above, they
are in partitions, of which the nearest are searched by one bit for each number of a vector (IVF_RQ), and the best of
these compared exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longview.errors import CheckpointError, MissingExtraError

TABLES = ("image", "text")
"""Vectors of images and of texts: a search is among either."""
MIN_INDEXED = 20_000
"""Vectors from which on a search goes by an approximate index."""
MIN_NEW = 2_000
"""Vectors outside the approximate index, which a search compares with exactly, until they are taken in."""
PROBES, REFINE = 32, 1
"""Of a search by the approximate index: partitions that are looked into, and how many times as many are compared."""
COLUMNS = ("kind", "digest", "item")
"""Beside the vector: what searches are restricted by, and the item as JSON: each column of a hit takes a read."""
BUILT = "vectors_"
"""The name of the approximate index, before the number of vectors when it was built."""
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

        vector = pyarrow.field("vector", pyarrow.list_(pyarrow.float16(), width))
        self._schema = pyarrow.schema([vector, *(pyarrow.field(name, pyarrow.string()) for name in COLUMNS)])
        self._tables = {of: self._db.create_table(of, schema=self._schema, exist_ok=True) for of in TABLES}

    def __len__(self) -> int:
        return sum(int(table.count_rows()) for table in self._tables.values())

    def add(self, items: Iterable[tuple[Item, Vectors]]) -> int:
        """Write items with their vectors (width,); returns how many."""
        iterator, count = iter(items), 0
        while batch := list(islice(iterator, ROWS)):
            for of, table in self._tables.items():
                if some := [(item, vector) for item, vector in batch if item.vector_of == of]:
                    table.add(self._batch(some))
            count += len(batch)
        return count

    def remove(self, digests: Sequence[str]) -> None:
        """Remove all items of some files."""
        remaining = iter(digests)
        while some := list(islice(remaining, 500)):
            for table in self._tables.values():
                table.delete(f"digest IN ({', '.join(map(_quoted, some))})")

    def search(
        self,
        vector: Vectors,
        limit: int,
        vector_of: str,
        kinds: Sequence[str] = (),
        among: Sequence[str] | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The items nearest to a vector (width,), nearest first.

        Args:
            vector_of: Only items whose vectors are of images, or of texts.
            kinds: Only items of these; of all by default.
            among: Only items of files with these digests.
            exact: Compare with all, whether they are indexed or not.
        """
        table = self._tables[vector_of]
        query = table.search(np.asarray(vector, np.float32)).distance_type("cosine").limit(limit)
        conditions = [f"kind IN ({', '.join(map(_quoted, kinds))})"] if kinds else []
        conditions += [f"digest IN ({', '.join(map(_quoted, among)) or _quoted('')})"] if among is not None else []
        if conditions:
            query = query.where(" AND ".join(conditions), prefilter=True)
        if exact:
            query = query.bypass_vector_index()
        elif _indexed_at(table):
            query = query.nprobes(PROBES).refine_factor(REFINE)
        found = query.select(["item", "_distance"]).to_list()
        return [Hit(_item(row), 1.0 - float(row["_distance"])) for row in found]

    def of_file(self, digest: str) -> Iterator[Item]:
        """All items of a file, in order."""
        condition = f"digest = {_quoted(digest)}"
        queries = [table.search().where(condition).select(["item"]) for table in self._tables.values()]
        yield from sorted((_item(row) for query in queries for row in query.to_list()), key=lambda item: item.place)

    def optimize(self) -> None:
        """Make searches fast: index what is new where there is much, and all anew when it has doubled."""
        for table in self._tables.values():
            count, built = int(table.count_rows()), _indexed_at(table)
            if count >= max(MIN_INDEXED, 2 * built):
                _build_index(table, count)
                if built:
                    table.drop_index(f"{BUILT}{built}")
            elif built and table.index_stats(f"{BUILT}{built}").num_unindexed_rows >= MIN_NEW:
                table.optimize()

    def _batch(self, batch: Sequence[tuple[Item, Vectors]]) -> Any:
        import pyarrow

        vectors = np.stack([vector for _, vector in batch]).astype(np.float16)
        assert vectors.shape[1] == self._width, vectors.shape
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), self._width)
        rows = {
            "kind": [item.kind for item, _ in batch],
            "digest": [item.digest for item, _ in batch],
            "item": [json.dumps(asdict(item), ensure_ascii=False) for item, _ in batch],
        }
        return pyarrow.table({"vector": column, **rows}, schema=self._schema)


def _indexed_at(table: Any) -> int:
    """Vectors that there were when the approximate index of a table was built; 0: there is none."""
    names = (index.name for index in table.list_indices())
    return max((int(name.removeprefix(BUILT)) for name in names if name.startswith(BUILT)), default=0)


def _build_index(table: Any, count: int) -> None:
    from lancedb.index import Bitmap, BTree, IvfRq

    table.create_index("vector", config=IvfRq(distance_type="cosine"), name=f"{BUILT}{count}")
    table.create_index("kind", config=Bitmap())
    table.create_index("digest", config=BTree())


def _item(row: Mapping[str, Any]) -> Item:
    return Item(**json.loads(row["item"]))


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
