"""MGM's sampler: samples of one modality side by side."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from runs import data_stage

from longview.train.data.datasets import Mixture, generator
from longview.train.data.grouping import deal, grouped
from longview.train.data.settings import DatasetSettings


def test_a_step_is_dealt_out_as_the_authors_trainer_does():
    """Each sample, the longest first, to the chunk with the smallest sum that has room."""
    lengths = np.array([9, 1, 7, 3, 8, 2])
    dealt = deal(np.arange(6), lengths, 2).tolist()
    assert dealt == [0, 3, 5, 4, 2, 1]  # 9 3 2 and 8 7 1: the first sum is 9, so 8 and 7 go to the second
    assert deal(np.arange(5), lengths[:5], 2).tolist() == [0, 2, 1, 4, 3]  # what does not divide is dealt by turns
    assert deal(np.arange(6), lengths, 6).tolist() == [0, 4, 2, 3, 5, 1]


@pytest.mark.parametrize("lead", [0, 3])
def test_steps_hold_pictures_or_none_but_for_the_last(lead):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 103) * np.where(rng.random(103) < 0.7, 1, -1)
    order = grouped(lengths, 8, 4, generator("x"), lead)
    assert sorted(order) == list(range(103)), "each once"
    steps = [lengths[order[begin : begin + 8]] > 0 for begin in range(lead, 103 - 16, 8)]
    assert all(step.all() or not step.any() for step in steps)
    assert any(step.all() for step in steps)
    assert any(not step.any() for step in steps)
    kinds = [bool(step[0]) for step in steps]
    assert kinds != sorted(kinds), "in a drawn order"
    assert (order != grouped(lengths, 8, 4, generator("y"), lead)).any()
    assert (order == grouped(lengths, 8, 4, generator("x"), lead)).all()


@pytest.mark.parametrize(("shown", "told", "batch"), [(20, 0, 8), (0, 5, 8), (3, 2, 8), (1, 0, 1)])
def test_few_samples_and_one_modality_are_grouped_too(shown, told, batch):
    lengths = np.array([5] * shown + [-5] * told)
    assert sorted(grouped(lengths, batch, batch, generator("x"), lead=1)) == list(range(shown + told))


def test_every_epoch_is_grouped_and_holds_the_same_rows(tmp_path):
    """Also the second, which begins in the middle of a step; and a fraction of a dataset goes on in it."""
    rows = {"shown": {"image": "a.png", "response": "x"}, "told": {"response": "a long answer"}}
    for name, row in rows.items():
        lines = [json.dumps(row | {"query": f"{name} {n} " + "word " * n}) for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    datasets = [
        DatasetSettings(str(tmp_path / "shown.jsonl")),
        DatasetSettings(str(tmp_path / "told.jsonl"), weight=0.5),
    ]
    stage = data_stage(batch=4, datasets=datasets, micro_batch=2, group_by_length=True)
    mixture = Mixture(stage, seed=0)
    assert mixture.epoch == 30
    found = [data[number] for data, number in map(mixture.at, range(60))]
    seen = [Counter(example.messages[0].text.split()[0] for example in found[begin:][:30]) for begin in (0, 30)]
    assert seen == [{"shown": 20, "told": 10}] * 2
    told = [example.messages[0].text for example in found if not example.media]
    assert len(set(told)) == 20, "the other half comes in the second epoch"
    mixed = [
        step for step in range(15) if len({bool(example.media) for example in found[4 * step : 4 * step + 4]}) == 2
    ]
    assert set(mixed) <= {5, 6, 7, 13, 14}, "the last steps of an epoch alone"
    for step in {*range(15)} - {5, 6, 7, 13, 14}:
        words = [example.words for example in found[4 * step : 4 * step + 4]]
        assert words[0] + words[1] >= words[2] + words[3] or max(words) == words[0]
        assert abs(sum(words[:2]) - sum(words[2:])) <= max(words) - min(words)
    again = Mixture(stage, seed=0)
    data, number = again.at(47)
    assert data[number] == found[47]
