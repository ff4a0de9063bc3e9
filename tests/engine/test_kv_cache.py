"""The KV cache: rows of keys and values that are written, copied, moved and resized."""

from __future__ import annotations

import pytest
import torch

from longview.engine import kv_cache
from longview.engine.compiled import StaticDecodeBatch
from longview.engine.decode_batch import DecodeBatch, length_bucket
from longview.engine.kv_cache import MIN_POSITIONS, KVCache


def states(seed: int, length: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 2, length, 8, generator=torch.Generator().manual_seed(seed))


def written(seed: int, length: int):
    """A row of two layers, written in two passes."""
    row = KVCache.empty(2, length + 1)
    keys = states(seed, length)
    for part in keys.split([length - 3, 3], dim=2):
        for layer in range(2):
            row.update(part + layer, part - layer, layer)
        row.advance(part.shape[2])
    return row, keys


def holds(cache, number: int, keys: torch.Tensor) -> bool:
    pairs = list(cache.key_values(number, keys.shape[2]))
    return all(
        torch.equal(k, keys[0] + layer) and torch.equal(v, keys[0] - layer) for layer, (k, v) in enumerate(pairs)
    )


def test_update_appends_and_returns_all_keys():
    row, keys = written(0, 10)
    assert holds(row, 0, keys)
    found, _ = row.update(states(1, 1), states(2, 1), 0)
    assert torch.equal(found, torch.cat([keys, states(1, 1)], dim=2))
    assert row.get_seq_length() == 10, "a pass counts when it has succeeded"


def test_positions_that_were_not_reserved_are_refused_before_anything_is_written():
    row = KVCache.empty(2, 10)
    with pytest.raises(RuntimeError, match="11 positions of a KV cache that has 10; reserve them first"):
        row.update(states(0, 11), states(0, 11), 0)


def test_rows_of_different_lengths_are_each_continued_at_their_own_end():
    decode_batch = DecodeBatch(2)
    rows = {name: written(seed, length) for seed, (name, length) in enumerate({"a": 5, "b": 9, "c": 7}.items())}
    for name, (row, _) in rows.items():
        decode_batch.add(name, row)
    new = states(9, 1, rows=3)
    for layer in range(2):
        found, _ = decode_batch.update(new + layer, new - layer, layer)
        assert found.shape == (3, 2, 10, 8)
    seen = decode_batch.mask(torch.device("cpu"))
    assert seen[:, 0, 0].sum(-1).tolist() == [6, 10, 8]
    decode_batch.advance(1)
    assert decode_batch.lengths == [6, 10, 8]
    for number, (_, keys) in enumerate(rows.values()):
        assert holds(decode_batch, number, torch.cat([keys, new[number : number + 1]], dim=2))


def test_the_last_row_takes_the_place_of_a_removed_one():
    decode_batch = DecodeBatch(2)
    rows = {name: written(seed, length) for seed, (name, length) in enumerate({"a": 12, "b": 9, "c": 7}.items())}
    for name, (row, _) in rows.items():
        decode_batch.add(name, row)
    decode_batch.remove("a")
    assert (decode_batch.requests, decode_batch.lengths) == (["c", "b"], [7, 9])
    assert holds(decode_batch, 0, rows["c"][1])
    assert holds(decode_batch, 1, rows["b"][1])


def test_capacities_grow_by_doubling_and_shrink_and_rows_stay_as_they_are():
    row, keys = written(3, 20)
    room = row.position_capacity
    row.reserve(room + 1)
    assert row.position_capacity == 2 * room
    assert holds(row, 0, keys)
    decode_batch = DecodeBatch(2)
    for number in range(5):
        decode_batch.add(number, row)
    assert decode_batch.row_capacity == 8
    for number in range(4):
        decode_batch.remove(number)
    assert decode_batch.row_capacity <= 4
    assert holds(decode_batch, 0, keys)


def test_a_row_that_is_removed_with_zeros_leaves_no_nan():
    decode_batch = DecodeBatch(2)
    bad, good = written(4, 30)[0], written(5, 6)
    for layer in bad.layers:
        layer.values[:, :, 10:] = torch.nan
    decode_batch.add("bad", bad)
    decode_batch.add("good", good[0])
    decode_batch.remove("bad", zero=True)
    assert holds(decode_batch, 0, good[1])
    assert all(torch.isfinite(layer.values).all() for layer in decode_batch.layers)


def test_rows_of_similar_lengths_share_a_bucket():
    assert length_bucket(1) == length_bucket(4096) < length_bucket(4097) == length_bucket(16384) < length_bucket(16385)


@pytest.mark.parametrize("batch_class", [DecodeBatch, StaticDecodeBatch])
def test_growing_without_memory_changes_nothing(batch_class, monkeypatch):
    """The second layer finds no memory; by then the first has been resized."""
    batch = batch_class(2)
    row, keys = written(6, 20)
    batch.add("a", row)
    resized, calls = kv_cache._resized, []

    def short_of_memory(*args):
        calls.append(1)
        if len(calls) > 2:
            raise MemoryError
        return resized(*args)

    with monkeypatch.context() as patch:
        patch.setattr(kv_cache, "_resized", short_of_memory)
        with pytest.raises(MemoryError):
            batch.add("b", row)
    assert (batch.requests, batch.lengths, batch.row_capacity) == (["a"], [20], 1)
    assert {tensor.shape for layer in batch.layers for tensor in layer.tensors()} == {(1, 2, MIN_POSITIONS, 8)}
    assert holds(batch, 0, keys)
    batch.add("b", row)
    assert holds(batch, 0, keys)
    assert holds(batch, 1, keys)


@pytest.mark.parametrize("batch_class", [DecodeBatch, StaticDecodeBatch])
def test_shrinking_without_memory_gives_up_capacity_only(batch_class, monkeypatch):
    batch = batch_class(2)
    row, keys = written(7, 20)
    for name in "abcd":
        batch.add(name, row)

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(kv_cache, "_resized", no_memory)
    for name in "abc":
        batch.remove(name)
    assert (batch.requests, batch.lengths, batch.row_capacity) == (["d"], [20], 2)
    assert {tensor.shape for layer in batch.layers for tensor in layer.tensors()} == {(2, 2, MIN_POSITIONS, 8)}
    assert holds(batch, 0, keys)


def test_what_is_written_behind_a_rewound_row_is_gone_afterwards():
    cache = KVCache.empty(2, 8, rows=2)
    for layer in cache.layers:
        layer.lazy_initialization(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
        layer.keys.normal_()
        layer.values.normal_()
    cache.lengths = [6, 7]
    before = [tensor.clone() for layer in cache.layers for tensor in layer.tensors()]
    with cache.rewound(1, 4) as view:
        assert view.lengths == [4]
        for number in range(2):
            keys, _ = view.update(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), number)
            assert torch.equal(keys[0, :, :4], before[2 * number][1, :, :4])
            assert (keys[0, :, 4:] == 1).all()
    assert cache.lengths == [6, 7]
    assert all(map(torch.equal, before, [tensor for layer in cache.layers for tensor in layer.tensors()]))
