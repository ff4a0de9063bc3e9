"""What a run tells while it goes on."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from longview.errors import MissingExtraError, RecipeError
from longview.train.recipe import Recipe, from_tree, to_tree
from longview.train.report import journal as journals
from longview.train.report.journal import Journal, clock
from longview.train.report.weights_and_biases import check_wandb


@pytest.fixture
def recipe() -> Recipe:
    base = {"objective": "answers", "train": ["language"], "world": {}}
    stages = [base | {"name": name, "steps": steps} for name, steps in (("one", 20), ("two", 10))]
    return from_tree({"model": {"family": "owl3"}, "stages": stages})


@pytest.fixture
def wall(monkeypatch):
    """A clock that goes on by hand."""
    now = [100.0]
    monkeypatch.setattr(journals.time, "monotonic", lambda: now[0])
    return now


def note(**more) -> dict:
    return {"samples": 2, "tokens": 100, "pictures": 4, **more}


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_each_tenth_step_and_the_last_are_written_with_the_mean_and_the_speed(recipe, wall, tmp_path):
    told = Journal(tmp_path, recipe)
    told.begin(1, 0)
    for step in range(1, 11):
        wall[0] += 0.5
        shown = told.step(1, step, float(step), 1.0, 0.1, note(margin=step / 10))
    assert shown == "loss 5.500  200 tokens/s  8 pictures/s"
    (line,) = lines(tmp_path)
    assert (line["stage"], line["step"], line["loss"], line["margin"]) == ("two", 10, 5.5, 1.0)
    assert (line["tokens_s"], line["pictures_s"], line["samples_s"]) == (200.0, 8.0, 4.0)


def test_the_time_left_is_that_of_all_stages(recipe, wall, tmp_path):
    """Five steps of the first stage took a second each; a step of the second costs three times as much."""
    told = Journal(tmp_path, recipe, costs=[2.0, 6.0])
    told.begin(0, 0)
    for step in range(1, 6):
        wall[0] += 1.0
        shown = told.step(0, step, 1.0, 1.0, 0.1, note())
    assert shown.endswith(f"{clock(15 + 10 * 3)} left")
    unknown = Journal(tmp_path, recipe, costs=[2.0, None])
    unknown.begin(0, 3)
    wall[0] += 1.0
    assert unknown.step(0, 4, 1.0, 1.0, 0.1, note()).endswith(f"{clock(16 + 10)} left")


def test_the_clock_counts_days():
    assert [clock(seconds) for seconds in (0, 65, 3600, 90_000, 200_000)] == [
        "0:00:00", "0:01:05", "1:00:00", "1 day 1:00:00", "2 days 7:33:20",
    ]  # fmt: skip


def scalars(folder, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(event.step, round(event.value, 3)) for event in found.Scalars(tag)]


def test_events_of_a_resumed_run_stand_once(recipe, tmp_path):
    """The first process dies after step 20 of the first stage; the checkpoint it left is that of step 10."""
    first = Journal(tmp_path, recipe, tensorboard=True)
    first.begin(0, 0)
    for step in range(1, 21):
        first.step(0, step, 1.0, 1.0, 0.1, note(margin=0.5, kind="clip"))
    first.close()
    again = Journal(tmp_path, recipe, tensorboard=True)
    again.begin(0, 10)
    for step in range(11, 21):
        again.step(0, step, 2.0, 1.0, 0.1, note())
    again.begin(1, 0)
    for step in range(1, 11):
        again.step(1, step, 3.0, 1.0, 0.1, note())
    again.close()
    assert scalars(tmp_path, "loss") == [(10, 1.0), (20, 2.0), (30, 3.0)]
    assert [step for step, _ in scalars(tmp_path, "tokens_s")] == [10, 20, 30]
    assert scalars(tmp_path, "margin") == [(10, 0.5)]


# ── Weights & Biases ─────────────────────────────────────────────────────────────────────────────────────────────────


class Wandb(ModuleType):
    """What is there of the library that longview calls, and what it was told."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("wandb")
        self.begun, self.logged, self.finished, self.fails = [], [], 0, fails

    def init(self, **settings):
        if self.fails == "init":
            raise RuntimeError("no API key")
        self.begun.append(settings)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, numbers, step):
        if self.fails == "log":
            raise OSError("the network is down")
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


def logged(recipe, output, monkeypatch, fails: str = "") -> Wandb:
    """A stage's first ten steps."""
    library = Wandb(fails)
    monkeypatch.setitem(sys.modules, "wandb", library)
    journal = Journal(output, recipe, wandb=True)
    journal.begin(0, 0)
    for step in range(1, 11):
        journal.step(0, step, 1.0, 1.0, 0.1, note(margin=0.5))
    journal.close()
    return library


def test_a_log_goes_to_wandb_and_a_resumed_run_goes_on_under_its_id(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    first = logged(recipe, tmp_path, monkeypatch)
    assert first.begun[0]["project"] == "longview"
    assert first.begun[0]["config"] == to_tree(recipe)
    assert first.finished == 1
    ((step, numbers),) = first.logged
    assert step == 10
    assert (numbers["loss"], numbers["margin"]) == (1.0, 0.5)
    assert not {"step", "time", "samples"} & set(numbers)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    again = logged(recipe, tmp_path, monkeypatch).begun[0]
    assert (again["id"], again["resume"], again["project"]) == (first.begun[0]["id"], "allow", "mine")


def test_wandb_that_cannot_begin_ends_the_run_and_one_that_breaks_off_does_not(recipe, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"--wandb: a run cannot begin there \(no API key\); `wandb login`"):
        logged(recipe, tmp_path, monkeypatch, "init")
    with pytest.warns(UserWarning, match=r"nothing more is sent \(the network is down\)"):
        logged(recipe, tmp_path, monkeypatch, "log")
    assert (tmp_path / "log.jsonl").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="--wandb needs wandb"):
        check_wandb()
