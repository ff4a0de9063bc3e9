"""longview config and longview models: what a model is called, and which there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longview.cli.config_file import Config, config_path, read_config
from longview.models.sources import DEMOS


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """The file of settings, which does not exist yet."""
    monkeypatch.setenv("LONGVIEW_CONFIG", str(tmp_path / "new" / "config.json"))
    return tmp_path / "new" / "config.json"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub's cache with one model of 1,000 bytes in it, and a data set."""
    folder = tmp_path / "hub"
    for name in ("models--some--model", "datasets--some--data"):
        repository = folder / name
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        (repository / "blobs").mkdir()
        (repository / "blobs" / "b").write_bytes(bytes(1000))
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").symlink_to(repository / "blobs" / "b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def test_it_lies_where_the_systems_conventions_say(monkeypatch, tmp_path):
    monkeypatch.delenv("LONGVIEW_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_path() == tmp_path / "longview" / "config.json"
    assert read_config() == Config()


def test_a_default_model_and_an_alias_are_used_by_every_verb(longview, file, random_model):
    assert longview("config", "model", random_model).code == 0
    question = ("--max-tokens", 3, "--json", "Hello?")
    assert longview("ask", *question).json["model"] == str(random_model)
    assert longview("ask", "--model", "demo", *question).json["model"] == "demo", "the default can be overruled"
    assert longview("config", "alias.tiny", random_model).code == 0
    assert longview("config", "model", "tiny").code == 0
    assert longview("ask", "--model", "tiny", *question).json["model"] == str(random_model)
    assert longview("info", "tiny", "--json").json["model"] == str(random_model)
    assert longview("info", "--json").json["model"] == str(random_model)
    shown = longview("config").out
    assert str(file) in shown
    assert f"alias.tiny    {random_model}\n" in shown
    assert longview("config", "--unset", "alias.tiny").code == 0
    assert longview("config", "--unset", "model").code == 0
    assert read_config() == Config()


def test_an_adapter_names_its_model_whatever_the_default_is(refused, file, longview, tmp_path):
    longview("config", "model", "demo-mgm")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "./none"}))
    assert "there is no folder './none'" in refused("ask", "--adapter", tmp_path, "Hello?")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("modle demo", "unknown key 'modle'; there are model and alias.NAME"),
        ("alias. demo", "unknown key 'alias.'"),
        ("model", "give either a value for model, or --unset"),
        ("model demo --unset", "give either"),
        ("--unset", "needs a key"),
        ("model nonsense", "no model or folder is called 'nonsense'"),
        ("alias.demo demo-mgm", "'demo' cannot be an alias"),
        ("alias.a/b demo-mgm", "'a/b' cannot be an alias"),
        ("--unset alias.none", "there is no alias 'none'"),
    ],
)
def test_a_wrong_setting_is_refused_and_nothing_is_written(refused, file, arguments, complaint):
    assert complaint in refused("config", *arguments.split())
    assert not file.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"modle": "demo"}', '{"model": 1}', '{"aliases": {"a": 1}}', "\udcff"])
def test_a_damaged_file_is_named(refused, file, text):
    file.parent.mkdir()
    file.write_text(text, errors="surrogateescape")
    assert str(file) in refused("config") or "alias 'a' names 1" in refused("config")
    assert refused("ask", "Hello?")


def test_a_file_that_cannot_be_written_is_one_line(refused, file):
    file.parent.write_text("no folder")
    assert "cannot be" in refused("config", "model", "demo-mgm")


def test_models_are_listed_with_their_sizes_and_deleted(longview, refused, cache):
    rows = {row["name"]: row["bytes"] for row in longview("models", "--json").json["models"]}
    assert rows["some/model"] == 1000
    assert rows["demo"] == rows["demo-owl3"] > 1000
    assert set(DEMOS) < set(rows)
    assert "some/data" not in rows
    assert "some/model" in longview("models").out
    assert "is not in the hub's cache" in refused("models", "rm", "some/model", "some/other")
    assert (cache / "models--some--model").exists(), "nothing is deleted where one is missing"
    assert longview("models", "rm", "some/model").out == "freed 1,000 bytes\n"
    assert not (cache / "models--some--model").exists()
    assert (cache / "datasets--some--data").exists()


def test_what_cannot_be_deleted_is_said(refused, cache, monkeypatch, tmp_path):
    assert "is embedded and stays" in refused("models", "rm", "demo")
    assert "takes the ids" in refused("models", "rm")
    assert "takes the ids" in refused("models", "list", "some/model")
    assert "unknown action 'ls'" in refused("models", "ls")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert "is not in the hub's cache" in refused("models", "rm", "some/model")
