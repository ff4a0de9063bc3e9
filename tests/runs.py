"""Tiny runs over a user's data: their recipes, what they leave behind, and processes of their own to run in."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from longview.train import run as training
from longview.train.data.settings import DataSettings
from longview.train.distributed import processes
from longview.train.loop import Trainer
from longview.train.recipe import Stage, from_tree
from longview.train.saved import manifest
from longview.train.saved.folder import newest_checkpoint

DEADLINE = 300  # seconds, on a busy machine
TOLERANCE = {"weights": 3e-6, "moments": 1e-6}
"""Of the root mean square of weights, a thousandth of how far they move; of each moment."""
SMALL = 1e-4
"""Of gradients below this much is rounding, and AdamW makes steps of a size whatever their own."""


WORLD_TREE = {
    "model": {
        "family": "owl3",
        "attention": "eager",
        "processor": {"cut_enable": False},
        "config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
            "num_key_value_heads": 2, "hyper_layers": [1, 3], "gate": "none", "tie_word_embeddings": True,
            "max_position_embeddings": 512, "initializer_range": 0.1,
            "vision_config": {"image_size": 24, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48,
                              "num_hidden_layers": 2, "num_attention_heads": 2, "vision_use_head": False},
        },
    },
    "pool": {"pictures": 24, "clips": 2},
    "stages": [
        {"name": "see", "objective": "contents", "train": ["vision", "connector"], "steps": 4, "warmup": 2,
         "world": {"batch": 8}},
        {"name": "tell", "objective": "answers", "train": ["connector", "language"], "steps": 6, "warmup": 2,
         "optimizer": "muon", "checkpoint_every": 2,
         "world": {"tokens": 200, "turns": 2, "mix": {"1": 1, "2": 1, "clip": 1}, "probe_layer": 1,
                   "probe_weight": 0.1, "captions": 0.5}},
    ],
}  # fmt: skip


NEW_OVIS2 = {
    "family": "ovis2",
    "processor": {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": 24},
    "config": {
        "llm_config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
            "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512,
            "initializer_range": 0.1,
        },
        "visual_tokenizer_config": {
            "model_type": "aimv2_visual_tokenizer", "vocab_size": 64,
            "backbone_config": {"image_size": 24, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48,
                                "num_hidden_layers": 2, "num_attention_heads": 2},
        },
    },
}  # fmt: skip
NEW_MODELS = {"owl3": WORLD_TREE["model"], "ovis2": NEW_OVIS2}
"""Tiny new models, and a recipe that teaches one the synthetic world."""

_LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "tie_word_embeddings": True, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
_TOWER = {"image_size": 8, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
         "num_attention_heads": 1}  # fmt: skip
_MGM = {
    "family": "mgm",
    "config": {"image_size_aux": 16, "mm_projector_type": "mlp2x_gelu", "text_config": _LLAMA, "vision_config": _TOWER,
               "vision_aux_config": {"hidden_sizes": [8, 8], "depths": [1, 1]}},
}  # fmt: skip
_WORDS = {
    "name": "read", "objective": "words", "train": ["language"], "steps": 3, "warmup": 1,
    "world": {"tokens": 300, "turns": 2, "mix": {"1": 1, "2": 1, "clip": 1}, "probe_layer": 1, "probe_weight": 0.1},
}  # fmt: skip


def train_language_model(output: Path) -> Path:
    """A language model that has read three steps of the world, in text; returns its folder."""
    tree = {"model": _MGM, "pool": {"pictures": 24, "clips": 2}, "stages": [_WORDS]}
    return training.train(from_tree(tree), output, progress=False)


OF_DATA = {entry.name for entry in dataclasses.fields(DataSettings)}


def stage_tree(**settings: Any) -> dict:
    """A stage over a user's rows: what belongs under `data` is put there."""
    data = {key: settings.pop(key) for key in list(settings) if key in OF_DATA}
    return {"name": "x", "objective": "supervised", "train": ["language"], **settings, "data": data}


def data_stage(**settings: Any) -> Stage:
    """The same as the trainer has it."""
    tree = stage_tree(**{"steps": 1, "datasets": [], **settings})
    return Stage(**tree | {"data": DataSettings(**tree["data"])})


def tree(start: Path, data: Path, **stage: Any) -> dict:
    base = {"name": "tune", "train": ["connector", "language"], "steps": 6, "batch": 4,
            "datasets": [{"path": str(data / "rows.jsonl")}], "warmup": 1, "learning_rate": 1e-3,
            "checkpoint_every": 2}  # fmt: skip
    return {"model": {"start": str(start)}, "stages": [stage_tree(**base | stage)]}


def state(output: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of the newest checkpoint, from however many files."""
    folder = newest_checkpoint(output)
    assert folder is not None
    return manifest.read_tensors(folder, "model")[1] | manifest.read_tensors(folder, "optimizer")[1]


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def near(found: dict, expected: dict) -> None:
    """Weights and optimizer state, but for weights that move by rounding, such as the biases of keys.

    Others may begin so: the first step of AdamW is as large for a gradient of 1e-9 as for one of 1, hence the mean.
    """
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        apart = (found[name] - tensor).abs()
        squares = expected.get(f"{name}|exp_avg_sq")
        if squares is not None:
            apart = apart[squares.sqrt() > SMALL]
        if "|" in name:
            assert apart.max() < TOLERANCE["moments"], name
        elif apart.numel():
            assert apart.square().mean().sqrt() < TOLERANCE["weights"], name


def exported(output: Path) -> dict[str, torch.Tensor]:
    """The tensors of what a run left behind: a model, or an adapter."""
    (path,) = [*(output / "model").glob("model.safetensors"), *(output / "adapter").glob("*.safetensors")]
    return load_file(path)


def log(output: Path) -> list[dict]:
    """The log, but for what depends on the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key != "time" and not key.endswith("_s")} for line in lines]


def reseal(folder: Path) -> None:
    """Make a checkpoint's manifest true again, after something in it was changed on purpose."""
    names = [path.name for path in folder.iterdir() if path.name != manifest.NAME]
    manifest.write_manifest(folder, {name: manifest.digest_of(folder / name) for name in names})


def forked(work: Callable[[], Any], count: int = 1) -> list[int]:
    """Do some work in `count` processes that are told to work together; their exit codes, -9 for SIGKILL.

    A fork needs no second look at all the libraries. What an exception would print is seen among what pytest captured.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
            os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_PORT": port})
            os._exit(_exit_code(work))
        children.append(child)
    deadline, codes = time.monotonic() + DEADLINE, dict.fromkeys(children)
    while None in codes.values():
        for child in [child for child in children if codes[child] is None]:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return list(codes.values())


def goes_on_elsewhere(
    recipe: dict, before: tuple[int, str], after: tuple[int, str], folder: Path, rank: int
) -> tuple[Path, Path]:
    """A whole run, and one that SIGTERM to one process stops after its third step, and that then goes on.

    Args:
        before, after: In how many processes the stopped run goes, and their `parallel`.
        rank: Which process is told to stop; below 0 from the last one.
    """
    whole, output, learn = folder / "whole", folder / "run", Trainer.learn
    training.train(from_tree(recipe), whole, progress=False)

    def run(parallel: str, resume: bool) -> None:
        training.train(from_tree(recipe | {"parallel": parallel}), output, resume, progress=False)

    def stopped() -> None:
        def learning(self: Trainer, objective: Any, step: int) -> Any:
            if step == 2 and processes.rank() == rank % processes.count():
                os.kill(os.getpid(), signal.SIGTERM)
            return learn(self, objective, step)

        Trainer.learn = learning
        try:
            run(before[1], False)
        except training.Interrupted:
            raise SystemExit(130) from None

    assert forked(stopped, before[0]) == [130] * before[0]
    found = newest_checkpoint(output)
    assert found is not None
    assert found.name == "checkpoint-0000003"
    assert not (output / "model" / "model.safetensors").exists()
    assert forked(lambda: run(after[1], True), after[0]) == [0] * after[0]
    return whole, output


def _exit_code(work: Callable[[], Any]) -> int:
    try:
        work()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:  # noqa: BLE001 - it becomes the exit code of this child process
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0
