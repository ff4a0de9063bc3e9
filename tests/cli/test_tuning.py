"""longview train on a user's data, and what comes after it: ask --adapter, merge, export."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file


@pytest.fixture
def recipe(random_model, media, tmp_path):
    """A fine-tune of the random model by an adapter, in one long step."""
    rows = [{"image": "red.jpg", "query": "<image>\nColour?", "response": "red"},
            {"videos": ["clip.mp4"], "query": "<video>\nWhat happens?", "response": "much"}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(tmp_path / "rows.jsonl"), "folder": str(media)}
    stage = {"name": "tune", "objective": "supervised", "train": ["language"], "steps": 2, "batch": 2, "frames": 2,
             "warmup": 0, "learning_rate": 0.5, "datasets": [data]}  # fmt: skip
    model = {"start": str(random_model), "adapter": {"rank": 2, "alpha": 8, "dropout": 0.0}}
    path = tmp_path / "lora.yaml"
    path.write_text(yaml.safe_dump({"model": model, "stages": [stage]}))
    return path


def test_an_adapter_is_trained_asked_merged_and_exported(longview, refused, recipe, random_model, tmp_path):
    run = tmp_path / "run"
    ran = longview("train", recipe, "--output", run)
    assert (ran.code, ran.out) == (0, f"{run / 'adapter'}\n")
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
    assert "has no adapter_config.json" in refused("merge", random_model, tmp_path / "out")
    assert "has no adapter_config.json" in refused("ask", "--adapter", random_model, "Hello?")


def test_a_full_run_exports_a_model_at_any_time(longview, recipe, random_model, tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    assert longview("train", recipe, "model.adapter=null", "--output", run).code == 0
    shutil.rmtree(run / "model")
    (run / "model").mkdir()
    assert longview("export", run, model).code == 0
    assert longview("ask", "--model", model, "--max-tokens", 3, "Hello?").code == 0
