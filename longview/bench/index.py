"""The store of an index by its number of vectors: size, adding, searching, memory; and recall beside exact search.

The vectors are as wide as those of SigLIP so400m, and random: scenes of 64 frames each, whose directions have nothing
to do with each other. A search is for a direction near one scene, as a text's is, or for one near none.
"""

from __future__ import annotations

import functools
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longview.bench.report import Result, command, machine
from longview.errors import RequestError
from longview.index.store import MIN_INDEXED, Item, Store
from longview.wording import counted

WIDTH = 1152
"""Of google/siglip-so400m-patch14-384."""
FRAMES = 64
"""Of a scene."""
WITHIN, NEAR = 0.8, 0.5
"""Cosines of a frame, and of a search, with the direction of their scene."""
ROWS = 2048
"""Vectors that are added at a time, as indexing does."""
LIMIT = 80
"""Vectors that a search finds, of which 20 moments are made."""
SEARCHES, COMPARED, TOP = 200, 25, 20
"""Searches that are timed, those that are compared with exact ones, and the nearest that must be the same."""
LEAST, STEP = 10_000, 10
Array = NDArray[np.float32]


class Added(NamedTuple):
    """What adding has taken, up to some number of vectors."""

    seconds: float
    read_bytes: int | None
    """By this process while it added; None where the system does not count it."""
    optimize_seconds: float


class Searched(NamedTuple):
    """What searching has taken."""

    seconds: list[float]
    processor_seconds: float
    """Of one search, on all cores together."""
    exact_seconds: float
    recall: float
    recall_far: float
    """Of searches that are near no scene."""
    peak_bytes: int


def index(vectors: int) -> Result:
    """Measure the store at 10,000 vectors, 100,000 and so on up to `vectors`.

    Raises:
        RequestError: too few vectors, or too little room on the disk.
    """
    if vectors < LEAST:
        raise RequestError(f"vectors is {vectors}; give {LEAST:,} or more")
    sizes = [LEAST * STEP**power for power in range(12) if LEAST * STEP**power < vectors] + [vectors]
    hardware, rows = machine(), []
    with tempfile.TemporaryDirectory(prefix="longview-bench-") as name:
        folder, needed = Path(name), 3 * vectors * 2 * WIDTH
        if (free := shutil.disk_usage(folder).free) < needed:
            raise RequestError(f"{folder} has {free >> 30} GiB free, and this takes {(needed >> 30) + 1}; set TMPDIR")
        for before, size in zip([0, *sizes], sizes, strict=False):
            added: Added = _in_process(add, folder, before, size)
            searched: Searched = _in_process(search, folder, size)
            rows.append(_row(folder, size, size - before, added, searched))
    result = Result("index", "", {"dims": f"{WIDTH} numbers"}, rows, machine=hardware, command=command())
    result.about = (
        f"Vectors of {WIDTH} numbers in 16 bits, {ROWS:,} added at a time. A search finds {LIMIT}, of which "
        f"`longview find` makes 20 moments; recall is of the nearest {TOP} beside exact search, near a scene and far "
        "from all. Adding and searching run in processes of their own; memory is their peak, the program included."
    )
    before = sizes[-2] if len(sizes) > 1 else 0
    result.x, result.y = "vectors", ["p50 ms", "p99 ms", "exact ms"]
    last = rows[-1]
    grown = last["vectors"] / rows[0]["vectors"]
    result.findings = [
        f"{grown:,.0f}× the vectors: {last['p50 ms'] / rows[0]['p50 ms']:.1f}× the time of a search, and "
        f"{last['search GiB'] / rows[0]['search GiB']:.1f}× the memory.",
        f"{counted(vectors, 'vector')}: a search in {last['p50 ms']:.0f} ms, {last['exact ms'] / last['p50 ms']:.0f}× "
        f"faster than exactly; {last['GiB on disk'] * 2**20 / vectors:.2f} KiB on the disk for each.",
        f"Below {MIN_INDEXED:,} vectors a search is exact.",
    ]
    if last["read MiB"] is not None:
        result.findings.append(
            f"Adding the last {vectors - before:,} has read {last['read MiB']:.1f} MiB: nothing of what was there."
        )
    return result


def _row(folder: Path, size: int, count: int, added: Added, searched: Searched) -> dict[str, Any]:
    seconds = np.array(searched.seconds) * 1000
    return {
        "vectors": size,
        "add ms a thousand": 1e6 * added.seconds / count,
        "read MiB": None if added.read_bytes is None else added.read_bytes / 2**20,
        "index s": added.optimize_seconds,
        "GiB on disk": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**30,
        "p50 ms": float(np.percentile(seconds, 50)),
        "p99 ms": float(np.percentile(seconds, 99)),
        "processor ms": 1000 * searched.processor_seconds,
        "exact ms": 1000 * searched.exact_seconds,
        "recall": searched.recall,
        "recall far": searched.recall_far,
        "search GiB": searched.peak_bytes / 2**30,
    }


def _in_process(measure: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own, so that peaks do not mix."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def add(folder: Path, begin: int, end: int) -> Added:
    """Add vectors by their numbers."""
    store, seconds = Store(folder, WIDTH), 0.0
    read_before, read = _bytes_read(), 0
    for first in range(begin, end, ROWS):
        items = [(_item(number), frame(number)) for number in range(first, min(first + ROWS, end))]
        start = time.perf_counter()
        store.add(items)
        seconds += time.perf_counter() - start
    if read_before is not None:
        read = (_bytes_read() or 0) - read_before
    start = time.perf_counter()
    store.optimize()
    return Added(seconds, None if read_before is None else read, time.perf_counter() - start)


def search(folder: Path, size: int) -> Searched:
    """Search for scenes of which there are frames, and for directions near none."""
    store, rng = Store(folder, WIDTH), np.random.default_rng(0)
    scenes = rng.integers(0, size // FRAMES, SEARCHES)
    near = [_beside(_direction(int(scene)), rng, NEAR) for scene in scenes]
    far = [_unit(rng.standard_normal(WIDTH, np.float32)) for _ in range(COMPARED)]
    for vector in near[:5]:  # what is read first stays in memory
        store.search(vector, LIMIT, "image")
    seconds, processor = [], time.process_time()
    for vector in near:
        start = time.perf_counter()
        store.search(vector, LIMIT, "image")
        seconds.append(time.perf_counter() - start)
    processor = (time.process_time() - processor) / SEARCHES
    peak = _peak()
    start = time.perf_counter()
    exact = [_nearest(store, vector, True) for vector in near[:COMPARED]]
    exact_seconds = (time.perf_counter() - start) / COMPARED
    recall = [len(found & _nearest(store, vector)) / TOP for found, vector in zip(exact, near, strict=False)]
    recall_far = [len(_nearest(store, vector, True) & _nearest(store, vector)) / TOP for vector in far]
    return Searched(seconds, processor, exact_seconds, float(np.mean(recall)), float(np.mean(recall_far)), peak)


def _nearest(store: Store, vector: Array, exact: bool = False) -> set[tuple[str, int]]:
    hits = store.search(vector, LIMIT, "image", exact=exact)[:TOP]
    return {(hit.item.digest, hit.item.place) for hit in hits}


def _item(number: int) -> Item:
    return Item("frame", "image", f"{number // 4096:064x}", number % 4096, float(number), number + 1.0)


def frame(number: int) -> Array:
    """The vector of a frame: of a scene, which has a direction of its own."""
    return _beside(_direction(number // FRAMES), np.random.default_rng([1, number]), WITHIN)


@functools.lru_cache(1024)
def _direction(scene: int) -> Array:
    return _unit(np.random.default_rng([0, scene]).standard_normal(WIDTH, np.float32))


def _beside(direction: Array, rng: np.random.Generator, cosine: float) -> Array:
    """A random unit vector with about this cosine with another one."""
    return _unit(cosine * direction + (1 - cosine**2) ** 0.5 * _unit(rng.standard_normal(WIDTH, np.float32)))


def _unit(vector: Array) -> Array:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _bytes_read() -> int | None:
    counts = Path("/proc/self/io")
    return int(counts.read_text().split()[1]) if counts.exists() else None


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
