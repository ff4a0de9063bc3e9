"""Runs that end by time: rates fall in time, weights are saved and exported, and what is left is told."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import pytest
from runs import WORLD_TREE

from longview.engine import load
from longview.errors import RecipeError
from longview.messages import ask
from longview.train import run as training
from longview.train.distributed import processes
from longview.train.loop import StageClock, Trainer
from longview.train.optimizers import learning_rate
from longview.train.recipe import Recipe, Stage, from_tree
from longview.train.report.journal import Journal
from longview.train.saved.folder import newest_checkpoint

SECONDS = 10.0
"""Of each step, by the clock of these tests."""


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that goes on by `SECONDS` with each step that is learned, and not otherwise."""
    now, learn = [1000.0], Trainer.learn

    def learned(self, objective, step):
        now[0] += SECONDS
        return learn(self, objective, step)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Trainer, "learn", learned)
    return now


def long(steps: int = 1000, **changes) -> Recipe:
    """A stage of many steps, then another one of as many."""
    tree = copy.deepcopy(WORLD_TREE)
    for stage in tree["stages"]:
        stage |= {"steps": steps, "warmup": 2, "checkpoint_every": 1000, **changes}
    tree["stages"][1] |= {"name": "again"}
    tree["stages"][1]["objective"], tree["stages"][1]["world"] = "contents", {"batch": 8}
    tree["stages"][1]["train"] = ["vision", "connector"]
    return from_tree(tree)


def log(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_a_run_ends_by_time_with_its_weights_saved_and_exported(clock, tmp_path):
    said: list[str] = []
    output = tmp_path / "run"
    folder = training.train(long(), output, progress=False, minutes=4.0, say=said.append)
    last = {line["stage"]: line["step"] for line in log(output)}
    assert last == {"see": 12, "again": 12}, "four minutes, ten seconds a step, halves by their steps"
    state = json.loads((newest_checkpoint(output) / "state.json").read_text())
    assert 12 in state.values()
    assert "see  its time is over, after step 12 of 1,000" in said
    assert load(folder).answer([ask("Hello?")], max_tokens=2).text is not None


def test_rates_fall_in_time_to_their_last_share(clock, tmp_path):
    rates: list[float] = []
    take = Trainer._take_step

    def taken(self, number, step):
        found = take(self, number, step)
        rates.append(found[2])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_take_step", taken)
        training.train(long(final_rate=0.1), tmp_path / "run", progress=False, minutes=10.0)
    of_stage = rates[: len(rates) // 2]
    assert len(of_stage) == 30
    assert of_stage[0] < of_stage[1], "it warms up by steps"
    assert of_stage[1:] == sorted(of_stage[1:], reverse=True)
    peak = long().stages[0].learning_rate
    stage = Stage("x", "contents", [], steps=1000, warmup=2, final_rate=0.1, learning_rate=peak)
    halfway = learning_rate(stage, 500, False)
    assert of_stage[15] == pytest.approx(halfway, rel=0.01), "half of the time, half of the way"
    assert of_stage[-1] < 0.12 * peak


def test_time_that_is_enough_changes_nothing(clock, tmp_path):
    recipe = from_tree(WORLD_TREE)
    training.train(recipe, tmp_path / "free", progress=False)
    training.train(recipe, tmp_path / "timed", progress=False, minutes=10_000.0)
    free, timed = (newest_checkpoint(tmp_path / name) / "model.safetensors" for name in ("free", "timed"))
    assert free.read_bytes() == timed.read_bytes()


def test_a_clock_never_holds_the_schedule_back():
    """Where the steps come first, they decide."""
    stage = Stage("x", "contents", [], steps=100, warmup=0, learning_rate=1.0)
    assert learning_rate(stage, 60, at=20.0) == learning_rate(stage, 60)
    assert learning_rate(stage, 20, at=60.0) == learning_rate(stage, 60)
    clock = StageClock(begun=time.monotonic() - 50, end=time.monotonic() + 50, begin=20, steps=100)
    assert clock.at() == pytest.approx(60, abs=0.5)
    assert clock._replace(end=clock.begun).at() == 100


def test_processes_end_together_at_the_rate_of_the_slowest_clock(monkeypatch, tmp_path):
    """Another process that has come further in its time takes all of them along."""
    monkeypatch.setattr(processes, "gather", lambda mine: [mine, (False, 7.0)])
    trainer = Trainer.__new__(Trainer)
    trainer._clock = StageClock(time.monotonic(), time.monotonic() + 1e6, 0, 7)
    assert trainer._gather_ends([]) == (False, True)
    assert trainer._at == 7.0
    trainer._clock = trainer._clock._replace(steps=8)
    assert trainer._gather_ends([]) == (False, False)
    assert trainer._gather_ends([1]) == (True, False)


def test_the_time_left_is_never_more_than_there_is(clock, tmp_path):
    recipe = long()
    journal = Journal(tmp_path, recipe, deadline=time.monotonic() + 90)
    journal.begin(0, 0)
    clock[0] += 30
    assert journal.step(0, 3, 1.0, 1.0, 1e-3, {}).endswith("0:01:00 left")
    unlimited = Journal(tmp_path, recipe)
    unlimited.begin(0, 0)
    clock[0] += 30
    assert unlimited.step(0, 3, 1.0, 1.0, 1e-3, {}).endswith("5:32:50 left")


def test_the_log_has_the_last_step_before_the_time_was_over(clock, tmp_path):
    """Though lines are due every ten steps only."""
    training.train(long(), tmp_path / "run", progress=False, minutes=2.0)
    assert [(line["stage"], line["step"]) for line in log(tmp_path / "run")] == [("see", 6), ("again", 6)]


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_is_refused_in_one_line(minutes, tmp_path):
    with pytest.raises(RecipeError, match=r"^--minutes is \S+; give more than 0, as 30, or leave it out$"):
        training.train(long(), tmp_path / "run", progress=False, minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_a_run_that_ended_by_time_goes_on_with_the_steps_that_are_left(clock, tmp_path):
    output = tmp_path / "run"
    recipe = long(steps=30)
    training.train(recipe, output, progress=False, minutes=4.0)
    assert log(output)[-1]["step"] == 12
    training.train(recipe, output, resume=True, progress=False, minutes=1.0)
    steps = [line["step"] for line in log(output) if line["stage"] == "again"]
    assert steps[-1] == 18
    training.train(recipe, output, resume=True, progress=False)
    steps = [line["step"] for line in log(output) if line["stage"] == "again"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 30


def test_a_run_that_is_stopped_resumes_within_a_new_time(clock, tmp_path, monkeypatch):
    output, learn, taken = tmp_path / "run", Trainer.learn, []

    def interrupted(self, objective, step):
        taken.append(step)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return learn(self, objective, step)

    recipe = long(steps=40, checkpoint_every=2)
    monkeypatch.setattr(Trainer, "learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training.train(recipe, output, progress=False, minutes=100.0)
    training.train(recipe, output, resume=True, progress=False, minutes=2.0)
    ends = {line["stage"]: line["step"] for line in log(output)}
    assert ends["see"] == 4 + 6
    assert ends["again"] == 6
