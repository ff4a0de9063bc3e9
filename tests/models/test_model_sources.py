"""Names of models and folders of adapters: what they are taken for, and what is said where they are wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from longview import hubs
from longview.errors import CheckpointError
from longview.models import sources
from longview.plugins.draw import Painter

ADAPTER = '{"peft_type": "LORA", "base_model_name_or_path": "demo"}'


@pytest.fixture
def run(tmp_path) -> Path:
    """What a run of LoRA leaves."""
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text(ADAPTER)
    return tmp_path / "run"


@pytest.fixture
def online(monkeypatch):
    """Sets the address of a hub, which nothing has asked for yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hubs, "_reached", {})
    return lambda address: monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)


def not_cached(name: str, local_files_only: bool = False, **_: object) -> str:
    """As ModelScope's client, of which nothing is in the cache."""
    assert local_files_only, "it would go on trying for minutes"
    raise ValueError("not there")


def test_names_are_resolved_without_torch():
    program = (
        "import sys; from longview.models.sources import resolve; resolve('demo'); "
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_an_adapter_is_found_in_the_folder_of_its_run(run):
    assert sources.adapter_folder(run) == sources.adapter_folder(run / "adapter") == run / "adapter"
    assert sources.base_of(run) == "demo"


@pytest.mark.parametrize(
    ("find", "make", "message"),
    [
        (sources.resolve, "", "there is no folder"),
        (sources.resolve, "adapter_config.json", r"is a LoRA adapter and no whole model; give it as --adapter"),
        (sources.resolve, "adapter/adapter_config.json", "is the folder of a run that left an adapter; give it as --"),
        (sources.resolve, "model/config.json", r"is the folder of a run; its model is .*thing/model"),
        (sources.adapter_folder, "", "there is no folder"),
        (sources.adapter_folder, "config.json", "is a whole model and no adapter; give it as --model"),
        (sources.adapter_folder, "recipe.json", "has left no adapter yet; longview export"),
        (sources.adapter_folder, "other.json", "holds no adapter_config.json"),
    ],
)
def test_a_folder_is_called_what_it_is(tmp_path, find, make, message):
    if make:
        (tmp_path / "thing" / make).parent.mkdir(parents=True)
        (tmp_path / "thing" / make).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        find(str(tmp_path / "thing"))


def test_a_hub_that_refuses_connections_is_told_at_once_and_once(online):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"  # nobody listens
        online(address)
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"'some/model' is no folder.*hub at {address} cannot be reached"):
                sources.resolve("some/model")
        assert time.monotonic() - began < 10


FETCHES = {
    "a model": lambda: sources.resolve("some/model"),
    "a file": lambda: sources.fetch_file("some/model", "open_clip_pytorch_model.bin"),
    "a painter": lambda: Painter("some/model").paint("a cat"),
    "a model of ModelScope's": lambda: sources.resolve("modelscope:some/model"),
}


@pytest.mark.parametrize("fetch", FETCHES.values(), ids=FETCHES)
def test_a_hub_that_never_answers_is_told_in_time(online, monkeypatch, fetch):
    assert hubs.REACH_SECONDS < 10
    monkeypatch.setattr(hubs, "CONNECT_SECONDS", 60.0)
    monkeypatch.setattr(hubs, "REACH_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        online(f"http://{address}")
        monkeypatch.setenv("MODELSCOPE_DOMAIN", address)
        monkeypatch.setitem(sys.modules, "modelscope", SimpleNamespace(snapshot_download=not_cached))
        with pytest.raises(CheckpointError, match=f"hub at https?://{address} cannot be reached"):
            fetch()


def test_what_was_downloaded_is_used_where_the_hub_cannot_be_reached(online, tmp_path, monkeypatch):
    repository = tmp_path / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "snapshots" / "0123abc").mkdir(parents=True)
    (repository / "snapshots" / "0123abc" / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    online("http://127.0.0.1:9")
    assert sources.resolve("some/model") == repository / "snapshots" / "0123abc"
