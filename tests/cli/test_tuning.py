"""longview train on a user's data, and what comes after it: ask --adapter, merge, export."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file

from longview.errors import CheckpointError
from longview.models.official import files_beside


@pytest.fixture
def recipe(random_model, media, tmp_path):
    """A fine-tune of the random model by an adapter, in one long step."""
    rows = [{"image": "red.jpg", "query": "<image>\nColour?", "response": "red"},
            {"videos": ["clip.mp4"], "query": "<video>\nWhat happens?", "response": "much"}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = {"path": str(tmp_path / "rows.jsonl"), "folder": str(media)}
    stage = {"name": "tune", "objective": "supervised", "train": ["language"], "steps": 2, "warmup": 0,
             "learning_rate": 0.5, "data": {"batch": 2, "frames": 2, "datasets": [dataset]}}  # fmt: skip
    model = {"start": str(random_model), "adapter": {"rank": 2, "alpha": 8, "dropout": 0.0}}
    path = tmp_path / "lora.yaml"
    path.write_text(yaml.safe_dump({"model": model, "stages": [stage]}))
    return path


def test_an_adapter_is_trained_asked_merged_and_exported(longview, refused, recipe, random_model, tmp_path):
    run = tmp_path / "run"
    ran = longview("train", recipe, "--output", run)
    assert (ran.code, ran.out) == (0, f"{run / 'adapter'}\n")
    first, *middle, report, asking, merging = ran.err.splitlines()
    assert first.startswith("hint: the whole run has 2 steps")
    assert re.fullmatch(r"tune  step 2 of 2  rate \S+  loss \d+\.\d{3}  .* tokens/s.*", middle[0])
    assert re.fullmatch(rf"trained   {run / 'adapter'}, \d+\.\d MiB", middle[-1])
    assert report == f"report    {run / 'report.html'}"
    assert asking == f'next      longview ask --adapter {run / "adapter"} photo.jpg "What is it?"'
    assert merging == f"          longview merge {run / 'adapter'} my-model"
    question = ("--quiet", "--max-tokens", 12, "Hello?")
    base = longview("ask", "--model", random_model, *question).out
    tuned = longview("ask", "--adapter", run / "adapter", *question)
    assert tuned.code == 0
    assert tuned.out != base
    assert longview("ask", "--adapter", run / "adapter", "--model", random_model, *question).out == tuned.out
    merged = tmp_path / "merged"
    assert longview("merge", run / "adapter", merged, "--dtype", "float32").out == f"{merged}\n"
    assert longview("ask", "--model", merged, *question).out == tuned.out
    assert longview("merge", run / "adapter", tmp_path / "half", "--dtype", "bfloat16").code == 0
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    early = tmp_path / "early"
    assert longview("export", run, early).out == f"{early}\n"
    assert (early / "adapter_model.safetensors").read_bytes() == (
        run / "adapter/adapter_model.safetensors"
    ).read_bytes()
    assert "exists and is not an empty folder" in refused("export", run, early)
    assert "exists and is not an empty folder" in refused("merge", run / "adapter", merged)


def test_what_is_no_run_and_no_adapter_is_named(refused, random_model, tmp_path):
    assert "holds no run" in refused("export", tmp_path, tmp_path / "out")
    assert "is a whole model and no adapter" in refused("merge", random_model, tmp_path / "out")
    assert "is a whole model and no adapter" in refused("ask", "--adapter", random_model, "Hello?")
    assert "holds no adapter_config.json" in refused("ask", "--adapter", tmp_path, "Hello?")


def test_a_full_run_exports_a_model_at_any_time(longview, recipe, random_model, tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    assert longview("train", recipe, "model.adapter=null", "--output", run).code == 0
    shutil.rmtree(run / "model")
    (run / "model").mkdir()
    assert longview("export", run, model).code == 0
    assert longview("ask", "--model", model, "--max-tokens", 3, "Hello?").code == 0


def test_a_report_is_left_by_each_run_and_made_at_any_time(longview, refused, recipe, tmp_path):
    run = tmp_path / "run"
    assert longview("train", recipe, "--output", run, "--answers", 1).code == 0
    assert "Sample answers" in (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert longview("report", run, "--answers", 0).out == f"{run / 'report.html'}\n"
    assert "Sample answers" not in (run / "report.html").read_text()
    assert "holds no run" in refused("report", tmp_path)


def test_an_official_folder_is_merged_and_exported(longview, refused, recipe, tmp_path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    assert longview("train", recipe, "--output", run, "--answers", 0).code == 0
    told = refused("export", run, tmp_path / "early", "--official")
    assert f"longview merge {run / 'adapter'} FOLDER --official" in told
    assert not (tmp_path / "early").exists()
    assert longview("merge", run / "adapter", merged, "--official").code == 0
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == ["mPLUGOwl3Model"]
    assert "gate" not in config
    question = ("--quiet", "--max-tokens", 12, "Hello?")
    tuned = longview("ask", "--adapter", run / "adapter", *question).out
    assert longview("ask", "--model", merged, *question).out == tuned


@contextlib.contextmanager
def full_disk(room: int):
    """Files can be written up to so many bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_and_a_read_only_one_leave_nothing(longview, refused, recipe, tmp_path, monkeypatch):
    run, lora, target = tmp_path / "run", tmp_path / "lora", tmp_path / "out" / "model"
    assert longview("train", recipe, "model.adapter=null", "--output", run, "--answers", 0).code == 0
    assert longview("train", recipe, "--output", lora, "--answers", 0).code == 0
    weights = (run / "model" / "model.safetensors").stat().st_size
    commands = [("merge", lora / "adapter", target), ("export", run, target), ("export", lora, target)]
    (tmp_path / "out").mkdir()
    for command in commands:
        for room in (10, 3000, weights // 20):  # no config, no tokenizer, no weights
            with full_disk(room):
                assert f"{target} could not be written (File too large); make room" in refused(*command)
            assert not list((tmp_path / "out").iterdir())
        target.mkdir()  # one that exists stays, empty
        with full_disk(3000):
            assert "File too large" in refused(*command)
        assert not list(target.iterdir())
        (target / ".unfinished").mkdir()  # a killed attempt
        assert longview(*command).code == 0
        assert not list(target.glob("*.unfinished"))
        assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o666 & ~umask()}
        shutil.rmtree(target)
        (tmp_path / "file").write_text("")
        assert "could not be written (Not a directory)" in refused(*command[:2], tmp_path / "file" / "model")

    def read_only(self, other):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.rename", read_only)
    for command in commands:
        assert f"{target} could not be written (Read-only file system)" in refused(*command)
        assert not list((tmp_path / "out").iterdir())


def umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_a_link_out_of_a_models_folder_is_not_copied(longview, refused, recipe, broken_model, tmp_path):
    run, secret = tmp_path / "run", tmp_path / "secret"
    secret.write_text("of nobody's business")
    changed = f"model.start={broken_model}"
    assert longview("train", recipe, changed, "--output", run, "--answers", 0).code == 0
    merge = ("merge", run / "adapter", tmp_path / "merged", "--official")
    (broken_model / "notes.txt").symlink_to(secret)
    assert f"{broken_model / 'notes.txt'} is a link out of its folder, and is not copied" in refused(*merge)
    assert "is a link out of its folder" in refused("merge", run / "adapter", tmp_path / "merged")
    (broken_model / "notes.txt").unlink()
    (broken_model / "notes.txt").symlink_to("README.md")  # one within it, as hubs' caches have them
    (broken_model / "README.md").write_text("of everybody's business")
    assert longview(*merge).code == 0
    assert (tmp_path / "merged" / "notes.txt").read_text() == "of everybody's business"
    assert not (tmp_path / "merged" / "notes.txt").is_symlink()


def test_links_of_the_hubs_cache_into_its_own_blobs_are_copied(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "ab12").write_text("{}")
    (snapshot / "vocab.json").symlink_to("../../blobs/ab12")
    assert files_beside(snapshot) == [snapshot / "vocab.json"]
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "merges.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"merges\.txt is a link out of its folder"):
        files_beside(snapshot)


def test_an_ovis2_goes_to_transformers_and_back(longview, refused, random_model, tmp_path):
    theirs, back = tmp_path / "theirs", tmp_path / "back"
    assert longview("export", "demo-ovis2", theirs, "--transformers").out == f"{theirs}\n"
    config = json.loads((theirs / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("ovis2", ["Ovis2ForConditionalGeneration"])
    assert longview("info", theirs).code == 0
    question = ("--quiet", "--max-tokens", 12, "Where is the red star?")
    answer = longview("ask", "--model", theirs, *question).out
    assert answer == longview("ask", "--model", "demo-ovis2", *question).out != ""
    assert longview("export", theirs, back, "--official").code == 0
    assert longview("ask", "--model", back, *question).out == answer
    assert "two forms of a folder" in refused("export", theirs, tmp_path / "x", "--official", "--transformers")
    assert "no model of family 'owl3'" in refused("export", random_model, tmp_path / "y", "--transformers")
    assert "holds no run" in refused("export", theirs, tmp_path / "z")


class Hub:
    """What a hub was asked for."""

    said: ClassVar[dict] = {}
    fails: ClassVar[Exception | None] = None

    def __init__(self, **_) -> None: ...

    def create_repo(self, name, **settings):
        if self.fails:
            raise self.fails
        self.said["created"] = (name, settings)
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id, folder_path, **_):
        self.said["uploaded"] = (repo_id, {path.name: path.read_bytes() for path in folder_path.iterdir()})
        return SimpleNamespace(repo_url=f"https://hub.example/{repo_id}")


def test_models_go_to_the_hub_with_a_card(longview, refused, recipe, random_model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    run, folder = tmp_path / "run", tmp_path / "folder"
    assert longview("train", recipe, "--output", run, "--answers", 0).code == 0
    assert "hf auth login" in refused("export", run, folder, "--push-to-hub", "me/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    assert "no name on the hub" in refused("export", run, folder, "--push-to-hub", "mine")
    assert "--push-to-hub" in refused("export", run, folder, "--private")
    assert not folder.exists()
    ran = longview("export", run, folder, "--push-to-hub", "me/mine", "--private")
    assert ran.out == f"{folder}\nhttps://hub.example/me/mine\n"
    assert Hub.said["created"] == ("me/mine", {"private": True, "exist_ok": True})
    name, files = Hub.said["uploaded"]
    card = files["README.md"].decode()
    assert name == "me/mine"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "longview"
    assert "base_model" not in front  # a folder of this machine is no name that others know
    assert str(random_model) not in card.split("## Recipe")[0]
    assert "learning_rate: 0.5" in card
    assert hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest() in card
    assert longview("merge", run / "adapter", tmp_path / "merged", "--push-to-hub", "me/merged").code == 0
    assert "longview.load('me/merged')" in Hub.said["uploaded"][1]["README.md"].decode()
    monkeypatch.setattr(Hub, "fails", OSError("the network is down"))
    ran = longview("merge", run / "adapter", tmp_path / "again", "--push-to-hub", "me/merged")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "could not be pushed to the hub (the network is down)" in ran.err
    assert (tmp_path / "again" / "model.safetensors").exists()


def test_without_a_network_pushing_ends_in_one_line(longview, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    run, folder = tmp_path / "run", tmp_path / "folder"
    assert longview("train", recipe, "--output", run, "--answers", 0).code == 0
    ran = longview("export", run, folder, "--push-to-hub", "me/mine")
    assert ran.code == 2
    assert ran.err.startswith("longview: me/mine could not be pushed to the hub (")
    assert ran.err.count("\n") == 1


def test_what_cannot_be_followed_is_told_before_any_step(refused, recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def told(*changes: str) -> str:
        return refused("train", recipe, *changes, "--output", run)

    assert "nearest known key is 'datasets'" in told("stages.0.data.dataset=[]")
    assert "stages.0.datasets is now stages.0.data.datasets; write data: {datasets: []}" in told("stages.0.datasets=[]")
    assert "no part 'tower'; its parts are vision, connector, language" in told("stages.0.train=[tower]")
    rows = tmp_path / "other.jsonl"
    rows.write_text(json.dumps({"image": "red.jpg", "query": "<image><image>?", "response": "no"}))
    assert "other.jsonl, line 1" in told(f"stages.0.data.datasets.0.path={rows}")
    rows.write_text("")
    assert "is empty" in told(f"stages.0.data.datasets.0.path={rows}")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    assert "kind 'llama', which belongs to none of longview's families" in told(f"model.start={tmp_path / 'llama'}")
    monkeypatch.setattr("longview.train.plan.estimate.memory_of", lambda _: 1 << 20)
    assert re.search(r"stages\.tune takes about \d.* GiB of memory, and cpu has 0\.0 GiB; try .*--force", told())
    assert not list(run.glob("log.jsonl"))
