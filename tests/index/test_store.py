"""The store finds the same with an approximate index as without, through adding and removing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.index import store as module
from longview.index.store import Item, Store

WIDTH = 32


def vectors(count: int, seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def items(count: int, digest: str, of: str = "image"):
    kind = "frame" if of == "image" else "passage"
    return [(Item(kind, of, digest, number, text="ü'"), vector) for number, vector in enumerate(vectors(count, 1))]


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(module, "MIN_INDEXED", 600)
    monkeypatch.setattr(module, "MIN_NEW", 100)
    return Store(tmp_path, WIDTH)


def built(store: Store) -> dict[str, list[str]]:
    return {of: [index.name for index in table.list_indices()] for of, table in store._tables.items()}


def test_a_large_store_is_indexed_and_finds_what_is_nearest(store):
    store.add(items(599, "a"))
    store.optimize()
    assert built(store) == {"image": [], "text": []}
    store.add(items(1, "b"))
    store.optimize()
    assert "vectors_600" in built(store)["image"]
    for number, vector in enumerate(vectors(599, 1)[1:20], 1):
        hit = store.search(vector, 5, "image")[0]
        assert (hit.item.digest, hit.item.place, hit.item.text) == ("a", number, "ü'")
        assert hit.score == pytest.approx(1, abs=0.01)


def test_what_is_added_later_is_found_before_and_after_it_is_indexed(store):
    store.add(items(600, "a"))
    store.optimize()
    new = vectors(50, 2)
    store.add([(Item("frame", "image", "new", number), vector) for number, vector in enumerate(new)])
    store.optimize()
    assert store.search(new[7], 1, "image")[0].item.place == 7, "few new ones are compared exactly"
    store.add(items(551, "c"))
    store.optimize()
    assert [name for name in built(store)["image"] if name.startswith("vectors")] == ["vectors_1201"], "all anew"
    assert store.search(new[7], 1, "image")[0].item.digest == "new"
    store.remove(["new"])
    assert store.search(new[7], 1, "image")[0].item.digest != "new"
    assert len(store) == 1151


def test_searches_are_restricted_to_sorts_kinds_and_files(store):
    store.add([*items(700, "a"), *items(3, "b", "text")])
    store.add([(Item("picture", "image", "p", 0), vectors(1, 1)[0])])
    store.optimize()
    vector = vectors(1, 1)[0]
    assert {hit.item.kind for hit in store.search(vector, 5, "text")} == {"passage"}
    assert [hit.item.digest for hit in store.search(vector, 5, "image", kinds=["picture"])] == ["p"]
    assert {hit.item.digest for hit in store.search(vector, 5, "image", among=["a"])} == {"a"}
    assert store.search(vector, 5, "image", among=[]) == []
