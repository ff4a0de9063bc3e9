"""Where rows lie: Parquet, folders and names of Hugging Face datasets, Ovis's dataset info; held, or streamed."""

from __future__ import annotations

import io
import json
import sys
import types
from collections import Counter
from pathlib import Path

import datasets as hf
import pyarrow
import pyarrow.parquet
import pytest
from runs import data_stage
from samples import noise

from longview import hubs
from longview.errors import MissingExtraError, RecipeError, RequestError
from longview.messages import Message, image
from longview.train.data.datasets import ROUND, Dataset, Mixture, Stream
from longview.train.data.settings import DatasetSettings
from longview.train.recipe import ModelSettings, Recipe, Stage, check


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Copies that the library makes of tables end with the test."""
    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def stage(*datasets: DatasetSettings, **changes) -> Stage:
    return data_stage(datasets=list(datasets), **changes)


def opened(path, seed=0, **settings):
    dataset = DatasetSettings(str(path), **settings)
    return (Stream if dataset.streaming else Dataset)(dataset, seed, stage(dataset))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(seed, 8, 6).save(file, "PNG")
    return file.getvalue()


def table(count: int) -> hf.Dataset:
    """Rows with pictures inside."""
    rows = [{"image": {"bytes": png(n), "path": None}, "query": f"<image>{n}", "response": "yes"} for n in range(count)]
    features = {"image": hf.Image(), "query": hf.Value("string"), "response": hf.Value("string")}
    return hf.Dataset.from_list(rows, features=hf.Features(features))


def asked(data, number: int) -> str:
    return data[number].messages[0].text


def write(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


ROWS = [{"query": f"{n}", "response": "yes"} for n in range(30)]


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["file", "folder", "saved", "splits"])
def tables(request, tmp_path) -> Path:
    """A table of twelve rows in each of the forms it is given away in."""
    rows, folder = table(12), tmp_path / "rows"
    if request.param == "file":
        rows.to_parquet(tmp_path / "rows.bin")  # known by what it holds
        return tmp_path / "rows.bin"
    if request.param == "folder":
        folder.mkdir()
        for number in range(2):
            rows.shard(2, number, contiguous=True).to_parquet(folder / f"train-{number:05d}-of-00002.parquet")
    else:
        (hf.DatasetDict(train=rows, test=rows.select([0])) if request.param == "splits" else rows).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_is_read_with_the_pictures_inside_it(tables, streaming):
    data = opened(tables, streaming=streaming)
    assert {asked(data, number) for number in range(12)} == {str(number) for number in range(12)}
    first = next(number for number in range(12) if asked(data, number) == "3")
    assert data[first].media == [image(png(3))]
    assert (data.place(first).unit, data.place(first).number) == ("row", 4)
    few = opened(f"{tables}#5", streaming=streaming)
    assert len({asked(few, number) for number in range(5)}) == 5
    with pytest.raises(RecipeError, match="asks for 20 rows, and it holds 12"):
        opened(f"{tables}#20", streaming=streaming)


def test_what_tells_a_folder_from_another_is_what_it_holds(tmp_path):
    for name, count in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        table(count).to_parquet(tmp_path / name / "train.parquet")
    digests = [opened(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("{}/splits", {"split": "dev"}, "has no split 'dev'; it has test, train"),
        ("{}/saved", {"split": "dev"}, "is a single table, which has no splits"),
        ("{}/folder", {"split": "dev"}, r"cannot be read \(Unknown split"),
        ("{}/folder:french", {}, r"cannot be read \(.*'french' not found"),
        ("{}/nothing", {}, "cannot be read"),
        ("{}/rows.jsonl", {"split": "dev"}, "is a file, which has no splits"),
        ("{}/rows.json", {"streaming": True}, "is a JSON list, which cannot be streamed"),
        ("{}/cut.parquet", {}, "cannot be read"),
        ("nobody/nothing", {}, "nobody/nothing cannot be read .*; give a file, a folder of data files, or a name"),
        ("nobody/nothing:part#5", {"streaming": True}, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_opened_is_one_clear_line(tmp_path, path, settings, message):
    rows = table(2)
    hf.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "splits")
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nothing").mkdir()
    rows.to_parquet(tmp_path / "folder" / "train.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "folder" / "train.parquet").read_bytes()[:200])
    write(tmp_path / "rows.jsonl", ROWS)
    write(tmp_path / "rows.json", ROWS)
    with pytest.raises(RecipeError, match=message) as caught:
        opened(path.format(tmp_path), **settings)
    assert "\n" not in str(caught.value)


def test_columns_are_renamed_and_a_question_is_given_to_all(tmp_path):
    """As a table of pictures and their formulas is learned."""
    write(tmp_path / "rows.jsonl", [{"image": "a.png", "text": "x^2"}])
    example = opened(tmp_path / "rows.jsonl", columns={"text": "response"}, query="Read the formula.")[0]
    picture = image(str(tmp_path / "a.png"))
    assert example.messages == (Message.of("user", picture, "Read the formula."), Message.of("assistant", "x^2"))
    write(tmp_path / "rows.jsonl", [{"text": "x^2", "question": "What?"}])
    assert opened(tmp_path / "rows.jsonl", columns={"text": "response"}, query="Read.")[0].messages[0].text == "What?"
    with pytest.raises(RecipeError, match=r"line 1: columns calls another one 'question', and the row has a column of"):
        opened(tmp_path / "rows.jsonl", columns={"text": "question"})
    with pytest.raises(RecipeError, match=r"columns names unknown 'respones'; the nearest known column is 'response'"):
        check_stage(stage(DatasetSettings("rows.jsonl", columns={"text": "respones"})))


def test_a_dataset_is_fetched_from_modelscope_by_its_client(tmp_path, monkeypatch):
    """The client is none of ours and needs a network; what it would leave behind stands here already."""
    table(3).to_parquet(tmp_path / "train.parquet")

    def fetch(name, local_files_only=False):
        if name != "AI/rows":
            raise OSError("404")
        return str(tmp_path)

    monkeypatch.setenv("MODELSCOPE_DOMAIN", "127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(dataset_snapshot_download=fetch))
    assert len(opened("modelscope:AI/rows#2")) == 2
    with pytest.raises(RecipeError, match=r"dataset 'AI/none' .*127.0.0.1:9 cannot be reached"):
        opened("modelscope:AI/none")
    monkeypatch.setattr(hubs, "_unreachable", lambda endpoint: "")
    with pytest.raises(RecipeError, match=r"modelscope has no dataset 'AI/none' to fetch \(404\)"):
        opened("modelscope:AI/none")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtraError, match=r"pip install '?modelscope"):
        opened("modelscope:AI/rows")


# ── Ovis's dataset info ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def info(tmp_path) -> Path:
    """A dataset info as its users have it: captions in Parquet, and conversations."""
    (tmp_path / "meta").mkdir()
    captions = {"caption": ["A cat.", "<image> A dog. "], "image_path": ["a.png", "b.png"], "max_partition": [None, 4]}
    pyarrow.parquet.write_table(pyarrow.table(captions), tmp_path / "meta" / "captions.parquet")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    write(tmp_path / "meta" / "talk.json", [{"id": "1", "image": "a.png", "max_partition": 2, "conversations": turns}])
    entry = {"storage_type": "hybrid", "image_dir": "pictures"}
    entries = {
        "captions": entry | {"meta_file": "meta/captions.parquet", "data_format": "caption"},
        "framed": entry
        | {"meta_file": "meta/captions.parquet", "data_format": "caption", "caption_template": "See: <image>\n"},
        "talk": entry | {"meta_file": "meta/talk.json", "data_format": "conversation"},
        "wrong": entry | {"meta_file": "meta/talk.json", "data_format": "caption"},
        "odd": entry | {"meta_file": "meta/talk.json", "data_format": "captions"},
        "lost": {"image_dir": "pictures"},
        "typo": {"meta_file": "x", "imagedir": "pictures"},
    }
    return write(tmp_path / "info.json", entries)


def test_the_datasets_of_an_info_file_are_named_after_a_colon(info):
    pictures = info.parent / "pictures"
    captions = opened(f"{info}:captions")
    first, second = (captions[number] for number in range(2))
    assert first.plain
    assert first.messages == (Message.of("user", image(str(pictures / "a.png"))), Message.of("assistant", "A cat."))
    assert (first.max_partition, second.max_partition) == (None, 4)
    assert second.messages[1].text == "A dog."
    framed = opened(f"{info}:framed#1", seed=3)[0].messages[0]
    assert [part.text for part in framed.parts] == ["See: ", "", "\n"]
    talk = opened(f"{info}:talk")[0]
    assert (talk.plain, talk.max_partition) == (False, 2)
    assert talk.media == [image(str(pictures / "a.png"))]
    assert opened(f"{info}:talk", folder="/elsewhere")[0].media == [image("/elsewhere/a.png")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":captoins", "names no dataset 'captoins'; the nearest one is 'captions'"),
        ("", "is a dataset info; name one of its datasets, as in .*info.json:NAME: captions, framed, talk"),
        (":wrong", "row 1: the row is a conversation, and data_format says caption"),
        (":odd", "data_format is 'captions'; expected caption or conversation"),
        (":lost", "meta_file must be there"),
        (":typo", "unknown key 'imagedir'; the nearest known one is 'image_dir'"),
    ],
)
def test_an_info_file_that_does_not_say_what_is_meant_is_refused(info, name, message):
    if name == "":
        entries = json.loads(info.read_text())
        write(info, {key: entries[key] for key in ("captions", "framed", "talk")})
    with pytest.raises(RecipeError, match=message):
        opened(f"{info}{name}")


def test_a_name_after_a_file_that_is_no_info_is_refused(tmp_path):
    write(tmp_path / "rows.json", ROWS)
    with pytest.raises(RecipeError, match=r"is no dataset info, an object of .*; leave out :talk"):
        opened(f"{tmp_path}/rows.json:talk")


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_gives_each_row_once_a_pass_and_shuffles_what_lies_near(tmp_path):
    data = opened(write(tmp_path / "rows.jsonl", ROWS), streaming=True, buffer=8)
    passes = [[asked(data, number) for number in range(begin, begin + 30)] for begin in (0, 30)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(row["query"] for row in ROWS)
    assert passes[0] != passes[1]
    assert {*passes[0][:8]} == {str(number) for number in range(8)}
    assert passes[0][:8] != [str(number) for number in range(8)]
    again = opened(tmp_path / "rows.jsonl", streaming=True, buffer=8)
    assert [asked(again, number) for number in range(37, 45)] == passes[1][7:15], "without those before"
    assert asked(again, 2) == passes[0][2], "and back"
    other = opened(tmp_path / "rows.jsonl", seed=1, streaming=True, buffer=8)
    assert [asked(other, number) for number in range(30)] != passes[0]


def test_of_a_stream_no_more_is_held_than_its_buffer(tmp_path):
    data = opened(write(tmp_path / "rows.jsonl", ROWS), streaming=True, buffer=4)
    for number in range(60):
        assert data[number].messages
        assert len(data._rows) <= 4


def test_the_first_rows_of_a_stream_are_checked_and_later_ones_are_broken_samples(tmp_path):
    path = write(tmp_path / "rows.jsonl", [*ROWS[:3], {"qeury": "x", "response": "y"}])
    with pytest.raises(RecipeError, match=r"rows\.jsonl, line 4: unknown column 'qeury'"):
        opened(path, streaming=True)
    path = write(tmp_path / "rows.jsonl", [*ROWS * 4, {"qeury": "x", "response": "y"}])
    data = opened(path, streaming=True, buffer=1)
    with pytest.raises(RequestError, match="unknown column 'qeury'"):
        data[120]
    assert data.place(120).number == 121
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(RecipeError, match="is empty"):
        opened(tmp_path / "empty.jsonl", streaming=True)


def test_streams_and_datasets_are_mixed_by_weight(tmp_path):
    paths = [write(tmp_path / f"{name}.jsonl", [row | {"response": name} for row in ROWS]) for name in "abc"]
    datasets = [
        DatasetSettings(str(paths[0]), 3.0, streaming=True),
        DatasetSettings(str(paths[1]), 6.0, streaming=True, buffer=7),
        DatasetSettings(str(paths[2]), 1.0),
    ]
    mixture = Mixture(stage(*datasets), seed=0)
    found = [data[number] for data, number in map(mixture.at, range(2 * ROUND))]
    assert Counter(example.messages[-1].text for example in found) == {"a": 600, "b": 1200, "c": 200}
    seen = {
        name: [example.messages[0].text for example in found if example.messages[-1].text == name] for name in "abc"
    }
    assert len({*seen["a"][:30]}) == len({*seen["b"][30:60]}) == 30, "a pass of a stream gives each row once"
    assert set(Counter(seen["c"]).values()) == {6, 7}, "and of a dataset, before any comes again"
    again = Mixture(stage(*datasets), seed=0)
    data, number = again.at(1234)
    assert data[number] == found[1234]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0, "epochs": 1.0}, "epochs means nothing to a.jsonl, a stream"),
        ({"group_by_length": True}, "group_by_length means nothing to a.jsonl, a stream"),
    ],
)
def test_what_needs_all_rows_is_refused_of_a_stream(changes, message):
    with pytest.raises(RecipeError, match=message):
        check_stage(stage(DatasetSettings("a.jsonl", streaming=True), **changes))
    with pytest.raises(RecipeError, match="buffer means nothing without streaming"):
        check_stage(stage(DatasetSettings("a.jsonl", buffer=9)))


def check_stage(which: Stage) -> None:
    check(Recipe(ModelSettings("x"), [which]))
