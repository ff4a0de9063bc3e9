"""`longview bench index`: sizes grow as they are told, and what was there is not read when more is added."""

from __future__ import annotations

import pytest

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.bench import index as module
from longview.bench.index import frame, index
from longview.errors import RequestError
from longview.index import store


def test_frames_are_near_their_scene_and_far_from_others():
    first, second, other = frame(0), frame(1), frame(module.FRAMES)
    assert first @ second == pytest.approx(module.WITHIN**2, abs=0.1)
    assert first @ other == pytest.approx(0, abs=0.15)


def test_every_size_is_measured_and_saved(monkeypatch):
    monkeypatch.setattr(module, "LEAST", 300)
    monkeypatch.setattr(module, "_in_process", lambda measure, *arguments: measure(*arguments))
    monkeypatch.setattr(store, "MIN_INDEXED", 1000)
    monkeypatch.setattr(module, "SEARCHES", 6)
    monkeypatch.setattr(module, "COMPARED", 3)
    result = index(4000)
    assert [row["vectors"] for row in result.rows] == [300, 3000, 4000]
    assert result.rows[0]["recall"] == 1.0, "a search of few vectors is exact"
    assert all(row["recall"] > 0.6 for row in result.rows)
    assert all(row["read MiB"] is None or row["read MiB"] < 0.5 for row in result.rows)
    assert "p50 ms" in result.page()
    with pytest.raises(RequestError, match="vectors is 100; give 300 or more"):
        index(100)
