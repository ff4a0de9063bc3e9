"""Files of conversations as a stream of samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from runs import data_stage

from longview.errors import RecipeError
from longview.train.data.datasets import Dataset, Mixture
from longview.train.data.quarantine import Quarantine, trim_report
from longview.train.data.settings import DatasetSettings


@pytest.fixture
def rows(tmp_path):
    """Write a file of so many rows, and name it."""

    def write(name, count, rejected=False):
        path = tmp_path / name
        lines = [
            {"query": f"{name} {n}", "response": "yes"} | ({"rejected_response": "no"} if rejected else {})
            for n in range(count)
        ]
        text = json.dumps(lines) if name.endswith(".json") else "\n\n".join(json.dumps(line) for line in lines)
        path.write_text(text)
        return str(path)

    return write


def stage(*datasets, **changes):
    return data_stage(datasets=list(datasets), **changes)


def dataset(path, seed=0, **changes):
    return Dataset(DatasetSettings(path), seed, stage(**changes))


def said(data, number):
    return data[number].messages[0].text


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_rows_are_read_from_lines_and_from_a_list(rows, name):
    data = dataset(rows(name, 5))
    assert [said(data, n) for n in range(len(data))] == [f"{name} {n}" for n in range(5)]
    assert data.place(2).number == (3 if name == "a.json" else 5)  # empty lines count


def test_a_count_draws_rows_without_repeating_any_and_always_the_same(rows):
    name = rows("a.jsonl", 50)
    data = dataset(f"{name}#20", 1)
    drawn = [said(data, n) for n in range(len(data))]
    assert len(set(drawn)) == 20
    assert drawn == [said(dataset(f"{name}#20", 1), n) for n in range(20)]
    assert drawn != [said(dataset(f"{name}#20", 2), n) for n in range(20)]


def test_an_epoch_takes_each_dataset_by_its_weight(rows):
    datasets = [
        DatasetSettings(rows("a.jsonl", 6)),
        DatasetSettings(rows("b.jsonl", 4), weight=2),
        DatasetSettings(rows("c.jsonl", 8), 0.25),
    ]
    mixture = Mixture(stage(*datasets), seed=0)
    assert mixture.epoch == 6 + 8 + 2
    epochs = [[said(*mixture.at(e * 16 + n)) for n in range(16)] for e in range(4)]
    for epoch in epochs:
        seen = Counter(epoch)
        assert all(seen[f"a.jsonl {n}"] == 1 for n in range(6))
        assert all(seen[f"b.jsonl {n}"] == 2 for n in range(4))
        assert sum(seen[f"c.jsonl {n}"] for n in range(8)) == 2
    assert len({text for epoch in epochs for text in epoch if text.startswith("c")}) == 8  # four quarters are the whole
    assert epochs[0] != epochs[1]
    again = Mixture(stage(*datasets), seed=0)
    assert [said(*again.at(16 + n)) for n in range(16)] == epochs[1]  # without the epoch before


def test_the_order_does_not_depend_on_where_the_files_lie(rows, tmp_path):
    name = rows("a.jsonl", 30)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "b.jsonl"
    moved.write_bytes(Path(name).read_bytes())
    orders = [
        [said(*mixture.at(position)) for position in range(60)]
        for mixture in (
            Mixture(stage(DatasetSettings(str(path), streaming=streaming)), seed=0)
            for streaming in (False, True)
            for path in (name, moved)
        )
    ]
    assert orders[0] == orders[1]
    assert orders[2] == orders[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; give one with a row"),
        ("[]", "is empty"),
        ("[{]", "is not JSON"),
        ('{"query": "a", "response": "b"}\n\n{"query": ', "line 3: not JSON"),
        (
            '{"query": "a", "response": "b"}\n{"query": "<image>", "response": "b"}',
            "line 2: .* 1 <image>, and the row 0",
        ),
        ('[{"query": "a", "response": "b"}, {"qeury": "a"}]', "row 2: unknown column 'qeury'"),
        ('{"query": "a", "response": "b", "rejected_response": "c"}', "line 1: holds a rejected answer"),
    ],
)
def test_a_file_that_cannot_be_learned_from_is_refused_before_the_first_step(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        Mixture(stage(DatasetSettings(str(path))), seed=0)


def test_a_dataset_that_cannot_be_found_or_counted_is_named(rows, tmp_path):
    with pytest.raises(RecipeError, match=r"none\.jsonl cannot be read \(No such file"):
        dataset(str(tmp_path / "none.jsonl"))
    with pytest.raises(RecipeError, match="asks for 9 rows, and it holds 5"):
        dataset(rows("a.jsonl", 5) + "#9")
    with pytest.raises(RecipeError, match="asks for no rows"):
        dataset(rows("a.jsonl", 5) + "#0")
    with pytest.raises(RecipeError, match="line 1: lacks a rejected_response"):
        dataset(rows("a.jsonl", 5), objective="preference")
    assert dataset(rows("c.jsonl", 5, rejected=True), objective="preference")[0].rejected.text == "no"


def test_broken_samples_are_reported_until_there_are_too_many(rows, tmp_path):
    data = dataset(rows("a.jsonl", 5))
    report = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(report, 0.02, "tune", 0)
    quarantine.add(0, 1, data.place(1), "it is cut short")
    quarantine.add(3, 9, data.place(2), "it is no picture")
    with pytest.raises(
        RecipeError, match=r"3 of 12 samples are broken, .*data\.quarantine=0\.02.*a\.jsonl, line 1: gone"
    ):
        quarantine.add(4, 12, data.place(0), "gone")
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["it is cut short", "it is no picture", "gone"]
    assert lines[0] == {"stage": 0, "step": 0, "file": str(data.path), "line": 3, "reason": "it is cut short"}
    with report.open("a") as file:
        file.write('{"stage": 0, "st')
    trim_report(report, (0, 3))  # steps from 3 on are taken again
    assert [json.loads(line)["step"] for line in report.read_text().splitlines()] == [0]
    assert Quarantine(report, 0.02, "tune", 0).broken == 1
