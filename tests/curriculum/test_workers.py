"""Batches made ahead in processes: the same in the same order, errors in one line, and nothing left of a killed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import NEW_MODELS, WORLD_TREE, log

from longview.curriculum.ahead import Ahead, RememberingTokenizer
from longview.curriculum.conversations import Answers
from longview.curriculum.pool import paint_pool
from longview.curriculum.settings import PoolSettings
from longview.curriculum.world import WorldObjective
from longview.errors import LongviewError, MediaError, RecipeError
from longview.train import run as training
from longview.train.build import open_model
from longview.train.recipe import Recipe, from_tree
from longview.train.saved.folder import newest_checkpoint

PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")


@pytest.fixture(scope="module", params=NEW_MODELS)
def recipe(request) -> Recipe:
    return from_tree(WORLD_TREE | {"model": NEW_MODELS[request.param]})


def same(one: Any, other: Any) -> bool:
    """Whether two batches are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def children(of: int, zombies: bool = False) -> list[int]:
    """Processes whose parent is `of`; with `zombies` those that have ended, too, and that it has not waited for."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if int(parent) == of and (zombies or state != "Z"):
                found.append(int(folder.name))
    return found


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_batches_of_workers_are_those_of_one_process_in_the_same_order(recipe, tmp_path):
    model, processor = open_model(recipe, tmp_path)
    found: dict[int, list[Any]] = {}
    for workers in (0, 3):
        objective = Answers(recipe, 1)
        objective.workers = workers
        objective.attach(model, processor, tmp_path)
        objective.prepare(lambda done, total, label: None)
        try:
            found[workers] = [objective.batches(step) for step in range(2, 12)]
        finally:
            objective.end()
    assert all(same(mine, ahead) for mine, ahead in zip(found[0], found[3], strict=True))
    assert not same(found[0][0], found[0][1])
    assert not isinstance(processor.tokenizer, RememberingTokenizer), "workers remember, this process does not"


def test_a_run_with_workers_has_the_losses_and_weights_of_one_without(recipe, tmp_path):
    alone, ahead = tmp_path / "alone", tmp_path / "ahead"
    training.train(recipe, alone, progress=False)
    training.train(recipe, ahead, progress=False, workers=2)
    weights = [(newest_checkpoint(run) / "model.safetensors").read_bytes() for run in (alone, ahead)]
    assert weights[0] == weights[1]
    losses = [[(line["stage"], line["step"], line["loss"]) for line in log(run)] for run in (alone, ahead)]
    assert losses[0] == losses[1]


def test_pictures_painted_by_several_processes_are_those_of_one():
    settings = PoolSettings(pictures=150, clips=3)
    one, several = (paint_pool(settings, 24, 5, workers=workers) for workers in (0, 3))
    assert (one.pixels == several.pixels).all()
    assert one.pixels.any(axis=(1, 2, 3)).all()
    assert one.pictures == several.pictures


def test_a_mistake_in_a_worker_is_the_runs_own(recipe, tmp_path, monkeypatch):
    draw = WorldObjective._draw

    def broken(self, step):
        if step == 3:
            raise MediaError("the third is broken")
        return draw(self, step)

    monkeypatch.setattr(WorldObjective, "_draw", broken)
    with pytest.raises(MediaError, match=r"^the third is broken$"):
        training.train(recipe, tmp_path / "run", progress=False, workers=2)


def test_a_fault_in_a_worker_is_told_in_one_line(capfd):
    def fail(step: int) -> int:
        return 1 // (2 - step)

    ahead = Ahead(fail, 1, 2, lambda: None)
    try:
        assert ahead.next(1) == 1
        with pytest.raises(LongviewError, match=r"^[^\n]* has failed: ZeroDivisionError: [^\n]*--workers 0$"):
            ahead.next(2)
    finally:
        ahead.stop()
    assert "in fail" in capfd.readouterr().err, "its traceback is on the standard error"


@PROC
def test_a_worker_that_is_killed_ends_the_run_in_one_line_with_no_process_left(recipe, tmp_path, monkeypatch):
    draw = WorldObjective._draw

    def killed(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, step)

    before = set(children(os.getpid()))
    monkeypatch.setattr(WorldObjective, "_draw", killed)
    with pytest.raises(RecipeError, match=r"^[^\n]*was killed; there may be too little memory: give fewer --workers$"):
        training.train(recipe, tmp_path / "run", progress=False, workers=2)
    assert set(children(os.getpid())) <= before


@PROC
def test_a_painter_that_is_killed_ends_the_run_in_one_line(monkeypatch):
    import longview.curriculum.pool as pool

    begun = os.getpid()
    before = set(children(begun, zombies=True))
    monkeypatch.setattr(
        pool, "render", lambda *scene: os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != begun else 0
    )
    with pytest.raises(RecipeError, match=r"^a process that paints the pool has ended early; .* fewer --workers$"):
        paint_pool(PoolSettings(pictures=200, clips=0), 24, 5, workers=2)
    assert set(children(begun, zombies=True)) <= before


@PROC
@pytest.mark.parametrize("pictures", [24, 10**6], ids=["learning", "painting"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_killed_run_leaves_no_workers(pictures, by, tmp_path):
    if pictures > 24 and by == signal.SIGTERM:
        pytest.skip("a run is asked to end between steps; painting has none")
    recipe = tmp_path / "long.yaml"
    stages = [WORLD_TREE["stages"][0] | {"steps": 10**6}]
    recipe.write_text(yaml.safe_dump(WORLD_TREE | {"stages": stages, "pool": {"pictures": pictures, "clips": 0}}))
    output = tmp_path / "run"
    command = [sys.executable, "-m", "longview", "train", str(recipe), "--output", str(output), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        wait_until(lambda: program.poll() is None and len(children(program.pid)) >= 2, 120)
        if pictures == 24:
            wait_until((output / "log.jsonl").exists, 120)
        workers = children(program.pid)
        assert len(workers) == 2
        program.send_signal(by)
        program.wait(60)
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() and alive(worker) for worker in workers))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_are_for_stages_with_world(tmp_path):
    tree = WORLD_TREE | {"stages": [{"name": "read", "objective": "supervised", "train": ["language"], "steps": 1,
                                     "data": {"datasets": [{"path": "none.jsonl"}]}}]}  # fmt: skip
    tree = {name: value for name, value in tree.items() if name != "pool"}
    recipe = from_tree(tree)
    with pytest.raises(RecipeError, match=r"--workers is for stages with world, and stages\.read has data; leave it"):
        training.train(recipe, tmp_path / "run", progress=False, workers=1)
    with pytest.raises(RecipeError, match="--workers is -1; give 0 or more"):
        training.train(from_tree(WORLD_TREE), tmp_path / "run", progress=False, workers=-1)


def test_a_text_that_repeats_is_encoded_once(tokenizer):
    calls: list[str] = []

    class Counted:
        eos_token = tokenizer.eos_token

        def __call__(self, text: str, **options: Any) -> Any:
            calls.append(text)
            return tokenizer(text, **options)

    remembering = RememberingTokenizer(Counted())
    texts = ["a", "b", "a", "a"]
    assert [remembering(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]
    assert remembering("a", add_special_tokens=False)["input_ids"] == tokenizer("a")["input_ids"]
    assert calls == ["a", "b", "a"]
