"""longview info: what a model is and what fits, from its config and the headers of its weights."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import longview as library
from longview.cli.info import PICTURES, amount
from longview.models.owl3 import Model


def test_the_numbers_are_those_of_the_loaded_model(longview, random_model):
    found = longview("info", random_model, "--json").json
    model = library.load(random_model).model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert found["family"] == "owl3"
    assert found["release"] == "241101"
    assert found["parameters"] == parameters
    assert found["dtype"] == str(model.dtype).removeprefix("torch.")
    assert found["weight_bytes"] == parameters * 4
    assert found["patches_per_picture"] == 4
    # two hyper layers, a key and a value of two heads of 16, fp32
    assert found["picture_bytes"] == 4 * 2 * 2 * (2 * 16) * 4
    assert found["context_length"] == 4096


def test_an_adapter_in_the_folder_of_a_model_is_named(longview, random_model, tmp_path):
    folder = Path(shutil.copytree(random_model, tmp_path / "model"))
    assert longview("info", folder, "--json").json["warnings"] == []
    (folder / "adapter_config.json").write_text("{}")
    assert "beside      " in longview("info", folder).out
    assert [f"--adapter {folder}" in line for line in longview("info", folder, "--json").json["warnings"]] == [True]


def test_the_dtype_scales_what_is_stored(longview, random_model):
    full, half = (longview("info", random_model, "--json", "--dtype", name).json for name in ("float32", "bfloat16"))
    assert full["weight_bytes"] == 2 * half["weight_bytes"]
    assert full["picture_bytes"] == 2 * half["picture_bytes"]


def test_what_fits_is_said_for_one_to_four_hundred_pictures(longview, random_model):
    text = longview("info", random_model).out
    found = longview("info", random_model, "--json").json
    assert [row["pictures"] for row in found["fits"]] == list(PICTURES)
    for row in found["fits"]:
        assert row["fits"] == (row["bytes"] <= 0.9 * found["memory_bytes"])
        plural = "s" if row["pictures"] > 1 else ""
        line = (
            f"{row['pictures']} picture{plural}:".ljust(14)
            + f"{'yes' if row['fits'] else 'no'}, {amount(row['bytes'])}"
        )
        assert line in text


def test_pictures_that_fill_the_language_sequence_do_not_fit_and_the_tokens_say_why(longview):
    ovis = Path(__file__).parents[1] / "golden" / "ovis2" / "tiny"
    found = longview("info", ovis, "--json").json
    assert (found["family"], found["release"], found["picture_positions"]) == ("ovis2", "aimv2, softmax", 4)
    assert [row["fits"] for row in found["fits"]] == [count < 1024 // 4 for count in PICTURES]
    assert longview("info", ovis).out.endswith(", 1,600 tokens\n")


def test_no_weight_is_read(longview, random_model, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("longview.models.owl3.Model.from_pretrained", forbidden)
    assert longview("info", random_model).code == 0


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 bytes"), (1536, "1.5 KiB"), (12.13 * 2**30, "12.1 GiB"), (2**42, "4,096.0 GiB")]
)
def test_amounts_are_readable(size, text):
    assert amount(size) == text


def test_an_unknown_dtype_is_refused(refused, random_model):
    assert "unknown dtype 'int8'" in refused("info", random_model, "--dtype", "int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_device_that_is_not_there_is_refused(refused, random_model):
    assert "no cuda device" in refused("info", random_model, "--device", "cuda")


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, `some/model`, in a local folder; counts the bytes of weights it hands out."""

    folder: Path
    weights_sent = 0

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.rpartition("/")[2].partition("?")[0]
        if not self.path.startswith("/some/model/resolve/") or not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data[int(span[1]) : int(span[2]) + 1] if span else data
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(part)
            Hub.weights_sent += len(part) if path.suffix == ".safetensors" else 0

    def log_message(self, *_: object) -> None:
        pass


def test_of_a_hubs_model_only_the_config_and_the_headers_are_fetched(random_model, longview, tmp_path):
    Hub.folder = tmp_path / "served"
    Model.from_pretrained(random_model).save_pretrained(Hub.folder)  # in one file, larger than what is asked for
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
        ran = subprocess.run(
            [sys.executable, "-m", "longview", "info", "some/model", "--json"],
            env={**os.environ, **place, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        server.shutdown()
    assert ran.returncode == 0, ran.stderr
    found, local = json.loads(ran.stdout), longview("info", Hub.folder, "--json").json
    assert {**found, "model": ""} == {**local, "model": ""}
    assert 0 < Hub.weights_sent < (Hub.folder / "model.safetensors").stat().st_size / 2
    assert not list((tmp_path / "home").rglob("*.safetensors"))
