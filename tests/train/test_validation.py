"""Rows held out: never learned from, judged by at each checkpoint; the best is kept, and a stage ends early."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal

import pytest
from runs import data_stage, exported, forked, log, same, state, tree

from longview.engine import load
from longview.errors import CheckpointError, RecipeError
from longview.train import loop
from longview.train import run as training
from longview.train.data.datasets import Mixture
from longview.train.data.settings import DatasetSettings
from longview.train.loop import Trainer
from longview.train.plan.plan import make_plan
from longview.train.recipe import from_tree
from longview.train.saved import manifest
from longview.train.saved.evaluations import Evaluation, Evaluations, read_evaluations
from longview.train.saved.export import export_checkpoint
from longview.train.saved.folder import checkpoints, newest_checkpoint


def mixture(data, name: str, **settings) -> Mixture:
    paths = [DatasetSettings(str(data / "rows.jsonl")), DatasetSettings(str(data / "captions.parquet"))]
    stage = dataclasses.replace(data_stage(datasets=paths, **settings), name=name)
    return Mixture(stage, 0)


@pytest.mark.parametrize(("wanted", "counts"), [(0.25, [2, 1]), (3, [2, 1]), (1, [1, 0])])
def test_rows_that_are_held_out_are_in_no_epoch_and_the_same_in_every_stage(data, wanted, counts):
    found, again = (mixture(data, name, validation=wanted) for name in ("first", "second"))
    held = [(rows.path, str(rows.place(number))) for rows, number in found.validation]
    assert [sum(path == rows.path for path, _ in held) for rows in found.datasets] == counts
    assert held == [(rows.path, str(rows.place(number))) for rows, number in again.validation]
    assert found.epoch == 12 - sum(counts)
    learned = [found.at(position) for position in range(3 * found.epoch)]
    places = {(rows.path, str(rows.place(number))) for rows, number in learned}
    assert len(places) == found.epoch
    assert not places & set(held)
    assert all(rows[number].messages for rows, number in found.validation)


@pytest.mark.parametrize(
    ("stage", "parallel", "message"),
    [
        ({"validation": 1.5}, "ddp", "validation is 1.5; give a share below 1, or how many rows"),
        ({"validation": -1}, "ddp", "validation is -1"),
        ({"validation": 0.5}, "fsdp2", "take parallel=ddp"),
        ({"patience": 2}, "ddp", "patience is about data.validation"),
        ({"validation": 0.01}, "ddp", "validation 0.01 of 8 rows leaves none to judge by"),
        ({"validation": 8}, "ddp", "validation 8 of 8 rows leaves none"),
        ({"validation": 0.5, "datasets": [{"path": "rows.jsonl", "streaming": True}]}, "ddp", "a stream"),
    ],
)
def test_a_validation_that_cannot_be_is_refused(data, stage, parallel, message):
    recipe = from_tree(tree(data, data, **stage) | {"parallel": parallel})
    with pytest.raises(RecipeError, match=message):
        make_plan(recipe)


def test_evaluations_know_the_best_and_when_patience_ends():
    found = Evaluations()
    assert found.best is None
    assert not found.exhausted(1)
    for step, loss, exhausted in [(1, math.nan, False), (2, 3.0, False), (3, 3.0, False), (4, 5.0, True)]:
        found.add(step, loss)
        assert found.exhausted(2) is exhausted
    assert found.best == Evaluation(2, 3.0)
    assert not found.exhausted(0)


@pytest.fixture
def scripted(monkeypatch):
    """Losses of validation by step, in place of those of a model that learns."""
    losses = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.25}
    taken = []

    def by_step(objective):
        taken.append(len(taken) + 1)
        return losses[taken[-1]]

    monkeypatch.setattr(loop, "mean_loss", by_step)
    return taken


def test_the_best_checkpoint_is_kept_and_a_stage_ends_early(started, data, tmp_path, scripted):
    stage = {"train": ["connector"], "batch": 1, "steps": 10, "checkpoint_every": 1, "validation": 2, "patience": 2}
    recipe, output, said = from_tree(tree(started["owl3"], data, **stage)), tmp_path / "run", []
    folder = training.train(recipe, output, progress=False, say=said.append)
    assert scripted == [1, 2, 3, 4]
    assert [path.name for path in sorted(checkpoints(output))] == ["checkpoint-0000002", "checkpoint-0000004"]
    assert [(line["step"], line["validation"]) for line in log(output)] == [(1, 3.0), (2, 2.0), (3, 2.5), (4, 2.25)]
    assert any("best at step 2, with validation 2.0000" in line for line in said)
    assert "finished" in (output / "report.html").read_text()
    best, last = (manifest.read_tensors(output / f"checkpoint-000000{step}", "model")[1] for step in (2, 4))
    trained = load(folder, dtype="float32").model.state_dict()
    moved = [name for name in best if not best[name].bfloat16().equal(last[name].bfloat16())]
    assert moved
    assert all(trained[name].equal(best[name].bfloat16().float()) for name in moved)
    left = exported(output)
    shutil.rmtree(output / "model")
    assert training.train(recipe, output, resume=True, progress=False) == folder
    assert scripted == [1, 2, 3, 4]
    assert same(exported(output), left)
    export_checkpoint(output, tmp_path / "early")
    assert (tmp_path / "early" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_run_killed_at_a_checkpoint_judges_on_as_if_it_had_not_been(started, data, tmp_path, monkeypatch):
    stage = {"train": ["connector"], "steps": 5, "checkpoint_every": 1, "validation": 0.25, "learning_rate": 0.1}
    recipe = from_tree(tree(started["owl3"], data, **stage))
    training.train(recipe, tmp_path / "whole", progress=False)
    judged = [line["validation"] for line in log(tmp_path / "whole")]
    assert len(set(judged)) == 5
    output = tmp_path / "run"

    def work():
        save = Trainer.save

        def dying(self, number, step):
            save(self, number, step)
            if step == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        Trainer.save = dying
        training.train(recipe, output, progress=False)

    assert forked(work) == [-signal.SIGKILL]
    newest = newest_checkpoint(output)
    assert len(read_evaluations(newest).found) == 3
    training.train(recipe, output, resume=True, progress=False)
    assert log(output) == log(tmp_path / "whole")
    assert same(state(output), state(tmp_path / "whole"))
    assert same(exported(output), exported(tmp_path / "whole"))
    kept = {path.name for path in checkpoints(output)}
    assert kept == {path.name for path in checkpoints(tmp_path / "whole")}
    best = min(range(5), key=lambda place: judged[place]) + 1
    assert kept == {f"checkpoint-{best:07d}", "checkpoint-0000005"}


def test_two_processes_judge_as_one_does_whatever_the_batches(started, data, tmp_path):
    base = {"train": ["connector"], "steps": 1, "batch": 2, "validation": 5}
    found = []
    for number, (count, more) in enumerate([(1, {}), (2, {}), (1, {"micro_batch": 2}), (1, {"pack": 400})]):
        recipe, output = from_tree(tree(started["owl3"], data, **base | more)), tmp_path / str(number)
        assert forked(lambda r=recipe, o=output: training.train(r, o, progress=False), count) == [0] * count
        found.append(log(output)[-1]["validation"])
    assert found == pytest.approx([found[0]] * 4, abs=2e-4)


def test_state_without_true_evaluations_is_named(tmp_path):
    (tmp_path / "state.json").write_text('{"validation": [[1]]}')
    with pytest.raises(CheckpointError, match="no steps and losses under 'validation'"):
        read_evaluations(tmp_path)
