"""A run: the stages of a recipe one after another, from nothing or from a checkpoint, to a checkpoint folder.

    recipe ── make_plan ── estimate ── build_model ── Trainer: the steps of each stage ── export ── report

What lies in the folder of a run stands in saved/folder.py, the loop of steps in loop.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from longview.errors import RecipeError
from longview.files import filling, new_folder, replace_text
from longview.train.build import ModelSpec, add_adapter, build_model, open_spec
from longview.train.data.quarantine import trim_report
from longview.train.distributed import processes, zero
from longview.train.init_from import init_from
from longview.train.loop import Trainer
from longview.train.plan.estimate import check_memory, estimate
from longview.train.plan.plan import Plan, hints, make_plan
from longview.train.recipe import Recipe, Stage, objective_class
from longview.train.report.journal import check_tensorboard
from longview.train.report.page import note_session, write_report
from longview.train.report.weights_and_biases import check_wandb
from longview.train.saved.checkpoint import remove_older
from longview.train.saved.evaluations import best_checkpoint
from longview.train.saved.export import export, export_trained, restore
from longview.train.saved.folder import (
    RECIPE,
    check_owner,
    lock_folder,
    newest_checkpoint,
    read_state,
    reading,
    recipe_text,
    trim_log,
    writing,
)


class Interrupted(KeyboardInterrupt):
    """The run was asked to end early; says where it stopped and how to go on."""


def train(
    recipe: Recipe,
    output: str | Path,
    resume: bool = False,
    progress: bool = True,
    force: bool = False,
    tensorboard: bool = False,
    answers: int = 0,
    say: Callable[[str], None] | None = None,
    wandb: bool = False,
    minutes: float | None = None,
    workers: int = 0,
) -> Path:
    """Follow a recipe; returns the folder of the trained model.

    Args:
        resume: Continue from the newest checkpoint in `output`; the recipe must be the one that began there.
        force: Begin even if it seems to take more memory than there is.
        tensorboard: Write TensorBoard's events, too.
        answers: Sample questions for the report, asked of the model before the run and after it.
        wandb: Send the log to Weights & Biases, too.
        minutes: End after so many, counted from here, if its steps take longer: the rates fall in time, and the model
            is exported.
        workers: Processes that paint scenes of the synthetic world and make batches ahead, beside this one.
        say: Told in lines what goes on: hints, and the loss, rate and time left every few steps.

    Raises:
        Interrupted: Ctrl-C or SIGTERM: the run ended after the current step, with its state saved and nothing exported.
        RecipeError: `output` holds another run, there is nothing to resume, or the recipe cannot be followed.
        CheckpointError: what is in `output` is damaged, or cannot be written.
    """
    output = Path(output)
    deadline = deadline_in(minutes)
    with processes.process_group(), contextlib.ExitStack() as held:
        with processes.fail_together():
            check_processes(recipe)
            check_workers(recipe, workers)
            if tensorboard:
                check_tensorboard()
            if wandb:
                check_wandb()
            plan = make_plan(recipe)
            if processes.is_first():
                held.enter_context(lock_folder(output, resume))
                check_owner(plan.recipe, output, resume)
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        with processes.fail_together():
            check_shared(output)
            state = newest_checkpoint(output) if resume else None
            keeps_tokenizer = state is not None and recipe.model.start is None
            with writing(scratch, output):
                spec = open_spec(plan.recipe, scratch, output / "model" if keeps_tokenizer else None)
            costs = _costs(plan, spec, force) if processes.is_first() else []
        begun = _Begun(plan, spec, scratch, output, resume, state)
        if say is None or not processes.is_first():
            say = _silent
        making = partial(
            Trainer, costs=costs, tensorboard=tensorboard, wandb=wandb, say=say, deadline=deadline, workers=workers
        )
        folder = _train(begun, progress and processes.is_first(), making)
        with processes.fail_together():
            if processes.is_first():
                write_report(output, answers)
        return folder


class _Begun(NamedTuple):
    """What a run begins with."""

    plan: Plan
    spec: ModelSpec
    scratch: Path
    """The folder of the spec's files."""
    output: Path
    resume: bool
    state: Path | None
    """The checkpoint to go on from."""


# ── what must hold before the first step ─────────────────────────────────────────────────────────────────────────────


def check_processes(recipe: Recipe) -> None:
    """Make sure that a recipe can be followed by as many processes as there are.

    Raises:
        RecipeError: says which stage cannot.
    """
    count = processes.count()
    zero.check_settings(recipe)
    if count == 1:
        named = "deepspeed" if recipe.deepspeed is not None else f"parallel={recipe.parallel}"
        if recipe.parallel != "ddp":
            raise RecipeError(
                f"{named} is for several processes, and one was started; add --nproc-per-node N, or take parallel=ddp"
            )
        return
    if recipe.model.quantize is not None and recipe.parallel != "ddp":
        raise RecipeError(f"model.quantize {recipe.model.quantize!r} cannot be held in shares; take parallel=ddp")
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if stage.data is None or not objective_class(stage).runs_anywhere:
            raise RecipeError(f"{where}.objective {stage.objective!r} is for one process, and {count} were started")
        if stage.data.batch < count:
            raise RecipeError(
                f"{where}.data.batch is {stage.data.batch}, for {count} processes; give each a sample, or start fewer"
            )
        if stage.optimizer == "muon" and recipe.parallel == "fsdp2":
            raise RecipeError(f"{where}.optimizer 'muon' needs whole matrices; take adamw, or parallel=ddp")
    if recipe.parallel in zero.STAGES:
        zero.check(recipe)


def deadline_in(minutes: float | None) -> float | None:
    """The end of so many minutes from now, by `time.monotonic`.

    Raises:
        RecipeError: that is no time.
    """
    if minutes is None:
        return None
    if not 0 < minutes < math.inf:
        raise RecipeError(f"--minutes is {minutes:g}; give more than 0, as 30, or leave it out")
    return time.monotonic() + 60 * minutes


def check_workers(recipe: Recipe, workers: int) -> None:
    """
    Raises:
        RecipeError: a stage makes nothing ahead in other processes, or this system cannot fork them.
    """
    if workers < 0:
        raise RecipeError(f"--workers is {workers}; give 0 or more")
    for stage in recipe.stages if workers else ():
        if stage.world is None:
            raise RecipeError(f"--workers is for stages with world, and stages.{stage.name} has data; leave it out")
    if workers and not hasattr(os, "fork"):
        raise RecipeError("--workers needs a system that forks processes, and this is none; leave it out")


def check_shared(output: Path) -> None:
    """Make sure that all processes see the folder that the first one made.

    Raises:
        RecipeError: this one does not.
    """
    if not (output / ".lock").exists():
        raise RecipeError(
            f"{output.resolve()} is not the same folder on {socket.gethostname()} as on the first machine; give an "
            "--output that all machines share"
        )


def check_data(plan: Plan, output: Path, resume: bool) -> None:
    """Write down which files a run learns from; a resumed one must find the same.

    Raises:
        RecipeError: a file has changed since.
    """
    path, found = output / "datasets.json", plan.digests()
    if not found:
        return
    if not resume or not path.exists():
        with writing(path, output):
            replace_text(path, json.dumps(found, indent=2) + "\n")
        return
    with reading(path):
        before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, digest in found.items() if before.get(name) != digest]
    if changed:
        raise RecipeError(
            f"dataset {changed[0]} has changed since the run in {output} began; restore it, or train anew in another "
            "folder"
        )


def _costs(plan: Plan, spec: ModelSpec, force: bool) -> list[float | None]:
    """Operations of a step of each stage, after a check that the model can do it, and that it fits into memory.

    Raises:
        RecipeError: the model lacks what a stage asks for, or takes more memory than there is.
    """
    found = estimate(plan, spec).stages
    if not force:
        check_memory(plan.recipe, found)
    return [stage.operations for stage in found]


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _silent(text: str) -> None:
    """Say nothing."""


def _train(begun: _Begun, progress: bool, make_trainer: Callable[..., Trainer]) -> Path:
    recipe, objectives = begun.plan
    output, processor = begun.output, begun.spec.processor
    model = _build(begun)
    adapter = add_adapter(recipe, model)
    sharded = recipe.parallel != "ddp" and processes.count() > 1
    if not sharded:
        model.to(processes.device())
    with processes.fail_together():
        trainer = make_trainer(recipe, output, model, processor, objectives, adapter)
    with processes.fail_together():
        if processes.is_first():
            check_data(begun.plan, output, begun.resume)
    begin = trainer.load(begun.state) if begun.state else (0, 0)
    with processes.fail_together():
        if processes.is_first():
            if begun.state is not None:
                remove_older(output, begun.state, {best_checkpoint(begun.state, recipe)})
            _prepare_files(recipe, output, begin, begun.resume)
            note_session(output, begin, str(next(model.parameters()).device))
    if sharded:
        trainer.shard()
    for hint in hints(recipe):
        trainer.say(hint)
    with contextlib.closing(trainer.journal), _bar(progress) as bar, _stop_on_signal() as stopped:
        _follow_stages(trainer, begin, begun.scratch, bar, stopped)
    folder = output / ("model" if adapter is None else "adapter")
    with processes.fail_together(), writing(folder, output):
        if processes.is_first():
            if sharded:
                model, processor, adapter = _restored(recipe, output)
            export_trained(model, processor, adapter, folder, recipe.model.start)
    return folder


def _build(begun: _Begun) -> Any:
    """The model with its weights, and its files in the output."""
    recipe, output = begun.plan.recipe, begun.output
    torch.manual_seed(recipe.seed)
    with processes.fail_together():
        if processes.is_first():
            with writing(output / "model", output), filling(output / "model") as unfinished:
                shutil.copytree(begun.scratch, unfinished, dirs_exist_ok=True)
        model = build_model(recipe, begun.spec)
    if begun.state is None and recipe.model.init_from:
        with processes.fail_together():
            digests = init_from(model, recipe.model.init_from)
            if processes.is_first():
                with writing(output / "init_from.json", output):
                    replace_text(output / "init_from.json", json.dumps(digests, indent=2) + "\n")
    return model


def _follow_stages(trainer: Trainer, begin: tuple[int, int], files: Path, bar: Progress, stopped: list[int]) -> None:
    """Train all stages that are still to come.

    Args:
        begin: The stage and the step to begin with.
        files: The folder of the processor's files, for the models of stages that keep them.

    Raises:
        Interrupted: a signal ended it early.
    """
    recipe, output = trainer.recipe, trainer.output
    for objective in trainer.objectives[begin[0] :]:
        with _task(recipe, output, bar, stopped) as progress:
            objective.prepare(progress)
    if begin[0] and not begin[1]:  # the run may have ended just before it kept this
        _keep(trainer, recipe.stages[begin[0] - 1], files)
    for number in range(begin[0], len(recipe.stages)):
        step = begin[1] if number == begin[0] else 0
        with _task(recipe, output, bar, stopped) as progress:
            complete = trainer.train_stage(number, step, bar, stopped, progress)
        if not complete:
            raise Interrupted(_where(recipe, output)) if processes.is_first() else SystemExit(130)
        _keep(trainer, recipe.stages[number], files)


def _restored(recipe: Recipe, output: Path) -> tuple[Any, Any, Any]:
    """The model of the last checkpoint, whole, in this process."""
    state = newest_checkpoint(output)
    assert state is not None, "the last step leaves a checkpoint"
    return restore(recipe, state, output / "model", output / "model")


def _prepare_files(recipe: Recipe, output: Path, begin: tuple[int, int], resume: bool) -> None:
    """Leave of the files that grow what stands, and write down the recipe."""
    with writing(output / "log.jsonl", output):
        trim_log(output / "log.jsonl", recipe, begin)
        trim_report(output / "quarantine.jsonl", begin)
        if not resume:
            replace_text(output / RECIPE, recipe_text(recipe))


def _keep(trainer: Trainer, stage: Stage, files: Path) -> None:
    """Leave the model behind as it is after a stage, where the recipe says so."""
    folder = trainer.output / "after" / stage.name
    if not stage.keep or not processes.is_first():
        return
    shutil.rmtree(folder, ignore_errors=True)  # the run may have ended before the next stage's first checkpoint
    saving = partial(writing, output=trainer.output)
    with new_folder(folder, saving) as unfinished, saving(folder):
        shutil.copytree(files, unfinished, dirs_exist_ok=True)
        export(trainer.model, trainer.processor, unfinished)


def _where(recipe: Recipe, output: Path) -> str:
    """Where an interrupted run stands, and how to go on."""
    state = newest_checkpoint(output)
    if state is None:
        return f"stopped before the first checkpoint; the same command with --resume starts {output} from step 0"
    stage, step = read_state(state, recipe)
    name, steps = recipe.stages[stage].name, recipe.stages[stage].steps
    return (
        f"stopped in stage {name!r} ({stage + 1} of {len(recipe.stages)}) after step {step} of {steps}; the state is "
        f"in {state}, no model was exported; go on with the same command and --resume"
    )


# ── terminal and signals ─────────────────────────────────────────────────────────────────────────────────────────────


def _bar(visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[text]}"),
        console=Console(stderr=True),
        disable=not visible,
    )


@contextlib.contextmanager
def _task(recipe: Recipe, output: Path, bar: Progress, stopped: list[int]) -> Iterator[Any]:
    """A `Progress` that shows work other than steps on the bar, and ends it where the process is asked to end.

    Raises:
        Interrupted: a signal came.
    """
    shown: list[Any] = []

    def progress(done: int, total: int, label: str) -> None:
        if not shown:
            shown.append(bar.add_task(label, text=""))
        bar.update(shown[0], completed=done, total=total)
        if done >= total:
            bar.remove_task(shown.pop())
        if stopped:
            raise Interrupted(_where(recipe, output))

    try:
        yield progress
    finally:
        for task in shown:
            bar.remove_task(task)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """A list that becomes non-empty when the process is asked to end; a second request ends it at once."""
    stopped: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        stopped.append(number)
        signal.signal(number, before[number])

    try:
        for request in (signal.SIGINT, signal.SIGTERM):
            before[request] = signal.signal(request, note)
    except ValueError:  # not the main thread: no signals to catch
        before.clear()
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
