"""A run: the stages of a recipe one after another, from nothing or from a checkpoint, to a checkpoint folder.

What lies in the folder of a run stands in folder.py, the loop of steps in loop.py, what is left behind in export.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from longview.curriculum.contrastive import SiglipModel
from longview.curriculum.pool import Pool, paint_pool
from longview.errors import CheckpointError, RecipeError
from longview.train.build import add_adapter, open_model
from longview.train.data.datasets import Mixture, trim_report
from longview.train.data.sample_format import check_cutting
from longview.train.distributed import processes, zero
from longview.train.init_from import begin_as
from longview.train.loop import Run
from longview.train.optimizers import select_parts
from longview.train.plan.estimate import bare_model, check_memory, forecasts
from longview.train.recipe import OF_USERS, Recipe, Stage, check
from longview.train.report.journal import check_tensorboard
from longview.train.report.page import note_session, write_report
from longview.train.saved.export import export, leave, restore
from longview.train.saved.folder import (
    REPAIR,
    check_owner,
    hold,
    newest_checkpoint,
    read_state,
    reading,
    replace_text,
    resolved,
    trim_log,
    writing,
)


class Interrupted(KeyboardInterrupt):
    """The run was asked to end before its end; says where it stopped and how to go on."""


def train(
    recipe: Recipe,
    output: str | Path,
    resume: bool = False,
    progress: bool = True,
    force: bool = False,
    tensorboard: bool = False,
    answers: int = 0,
) -> Path:
    """Follow a recipe; returns the folder of the trained model.

    Args:
        resume: Continue from the newest checkpoint in `output`; the recipe must be the one that began there.
        force: Begin even if it seems to take more memory than there is.
        tensorboard: Write TensorBoard's events, too.
        answers: Sample questions for the report, asked of the model before the run and after it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM: the run ended after the current step, with its state saved and nothing exported.
        RecipeError: `output` holds another run, there is nothing to resume, or the recipe cannot be followed.
        CheckpointError: what is in `output` is damaged, or cannot be written.
    """
    output = Path(output)
    with processes.joined(), contextlib.ExitStack() as held:
        with processes.together():
            check(recipe)
            check_processes(recipe)
            if tensorboard:
                check_tensorboard()
            mixtures = open_datasets(recipe)
            recipe = settle(recipe, mixtures)
            if processes.is_first():
                held.enter_context(hold(output, resume))
                check_owner(recipe, output, resume)
        with processes.together():
            check_shared(output)
            costs = _costs(recipe, mixtures, force) if processes.is_first() else []
        folder = _train(recipe, mixtures, output, resume, progress and processes.is_first(), costs, tensorboard)
        with processes.together():
            if processes.is_first():
                write_report(output, answers)
        return folder


def check_processes(recipe: Recipe) -> None:
    """Make sure that a recipe can be followed by as many processes as there are.

    Raises:
        RecipeError: says which stage cannot.
    """
    count = processes.count()
    zero.check_settings(recipe)
    if count == 1 and recipe.deepspeed is not None:
        raise RecipeError("deepspeed is for several processes, and one was started; add --nproc-per-node")
    if count > 1 and recipe.model.quantize is not None and recipe.parallel != "ddp":
        raise RecipeError(f"model.quantize {recipe.model.quantize!r} cannot be held in shares; take parallel=ddp")
    for stage in recipe.stages if count > 1 else ():
        where = f"stages.{stage.name}"
        if stage.objective not in OF_USERS:
            raise RecipeError(
                f"{where}.objective {stage.objective!r} is made for one process, and {count} were started"
            )
        if stage.batch < count:
            raise RecipeError(
                f"{where}.batch is {stage.batch}, for {count} processes; give each a sample, or start fewer"
            )
        if stage.optimizer == "muon" and recipe.parallel == "fsdp2":
            raise RecipeError(f"{where}.optimizer 'muon' needs whole matrices; take adamw, or parallel=ddp")
    if count > 1 and recipe.parallel in zero.STAGES:
        zero.check(recipe)


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


def open_datasets(recipe: Recipe) -> dict[str, Mixture]:
    """The data of each stage that learns from a user's, by its name.

    Raises:
        RecipeError: a file cannot be read, or a row of it does not add up.
    """
    return {stage.name: Mixture(stage, recipe.seed) for stage in recipe.stages if stage.objective in OF_USERS}


def settle(recipe: Recipe, mixtures: Mapping[str, Mixture]) -> Recipe:
    """The recipe with steps in place of epochs and shares."""
    stages = []
    for stage in recipe.stages:
        if stage.epochs:
            steps = max(1, math.ceil(stage.epochs * mixtures[stage.name].epoch / stage.batch))
            stage = dataclasses.replace(stage, steps=steps, epochs=0.0)
        if stage.warmup_ratio:
            stage = dataclasses.replace(stage, warmup=math.ceil(stage.warmup_ratio * stage.steps), warmup_ratio=0.0)
        stages.append(stage)
    return dataclasses.replace(recipe, stages=stages)


def _costs(recipe: Recipe, mixtures: Mapping[str, Mixture], force: bool) -> list[float | None]:
    """Operations of a step of each stage, after a look at whether all of it can be done here.

    Raises:
        RecipeError: the model lacks a part, or takes more memory than there is.
    """
    model, processor = bare_model(recipe)
    check_stages(recipe, model)
    check_cutting(recipe, processor, mixtures)
    found = forecasts(recipe, mixtures, model, processor)
    if not force:
        check_memory(recipe, found)
    return [forecast.operations for forecast in found]


def _train(
    recipe: Recipe,
    mixtures: Mapping[str, Mixture],
    output: Path,
    resume: bool,
    progress: bool,
    costs: Sequence[float | None],
    tensorboard: bool,
) -> Path:
    torch.manual_seed(recipe.seed)
    state = newest_checkpoint(output) if resume else None
    with processes.together():
        if processes.is_first():
            model, processor = _open(recipe, output, state)
    with processes.together():
        if not processes.is_first():
            model, processor = _open_beside(recipe, output)
    if state is None and recipe.model.parts:
        with processes.together():
            digests = begin_as(model, recipe.model.parts)
            if processes.is_first():
                with writing(output / "parts.json", output):
                    replace_text(output / "parts.json", json.dumps(digests, indent=2) + "\n")
    adapter = add_adapter(recipe, model)
    sharded = recipe.parallel != "ddp" and processes.count() > 1
    if all(stage.objective in OF_USERS for stage in recipe.stages) and not sharded:
        model.to(processes.device())  # the synthetic world is made for one CPU core
    run = Run(
        recipe, output, model, processor, mixtures=mixtures, adapter=adapter, costs=costs, tensorboard=tensorboard
    )
    with processes.together():
        if mixtures and processes.is_first():
            check_data(mixtures, output, resume)
    begin = run.load(state) if state else (0, 0)
    with processes.together():
        if processes.is_first():
            _prepare(recipe, output, begin, resume)
            note_session(output, begin, str(next(model.parameters()).device))
    if sharded:
        run.shard()
    with _bar(progress) as bar, _stop_on_signal() as stopped:
        if any(stage.name not in mixtures for stage in recipe.stages[begin[0] :]):
            run.pool = _paint(recipe, output, model, bar, stopped)
        if begin[0] and not begin[1]:  # the run may have ended just before it kept this
            _keep(run, recipe.stages[begin[0] - 1])
        for number, stage in enumerate(recipe.stages):
            if number < begin[0]:
                continue
            if not run.follow(number, stage, begin[1] if number == begin[0] else 0, bar, stopped):
                raise Interrupted(_where(recipe, output)) if processes.is_first() else SystemExit(130)
            _keep(run, stage)
    run.journal.close()
    folder = output / ("model" if adapter is None else "adapter")
    with processes.together(), writing(folder, output):
        if processes.is_first():
            if sharded:
                found = newest_checkpoint(output)
                assert found is not None, "the last step leaves a checkpoint"
                model, processor, adapter = restore(recipe, found, output / "model")
            leave(model, processor, adapter, folder, recipe.model.start)
    return folder


def _open(recipe: Recipe, output: Path, state: Path | None) -> tuple[Any, Any]:
    """The recipe's model and its processor; what tells its words from others is kept in the output."""
    folder = output / "model"
    words = folder / "tokenizer.json"
    if state is None:
        words.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    elif recipe.model.start is None and not words.exists():
        raise CheckpointError(f"{words} is missing, and the checkpoint was trained with it; {REPAIR}")
    with writing(folder, output):
        return open_model(recipe, folder)


def _open_beside(recipe: Recipe, output: Path) -> tuple[Any, Any]:
    """The same, for a process that writes nothing."""
    with tempfile.TemporaryDirectory() as beside:
        words = output / "model" / "tokenizer.json"
        if recipe.model.start is None and words.exists():
            shutil.copy(words, beside)
        return open_model(recipe, Path(beside))


def _prepare(recipe: Recipe, output: Path, begin: tuple[int, int], resume: bool) -> None:
    """Leave of the files that grow what stands, and write down the recipe."""
    with writing(output / "log.jsonl", output):
        trim_log(output / "log.jsonl", recipe, begin)
        trim_report(output / "quarantine.jsonl", begin)
        if not resume:
            replace_text(output / "recipe.json", resolved(recipe))


def _keep(run: Run, stage: Stage) -> None:
    """Leave the model behind as it is after a stage, where the recipe says so."""
    folder = run.output / "after" / stage.name
    if not stage.keep or not processes.is_first():
        return
    with writing(folder, run.output):
        folder.mkdir(parents=True, exist_ok=True)
        for path in (run.output / "model").iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                shutil.copy(path, folder)
        export(run.model, run.processor, folder)


def _paint(recipe: Recipe, output: Path, model: Any, bar: Progress, stopped: list[int]) -> Pool:
    """The pictures of the synthetic world."""
    painting = bar.add_task("painting", total=1.0, told="")

    def painted(done: int, total: int) -> None:
        bar.update(painting, completed=done / total)
        if stopped:
            raise Interrupted(_where(recipe, output))

    told = all(stage.objective in ("words", *OF_USERS) for stage in recipe.stages)
    pool = paint_pool(recipe.data, 0 if told else model.config.picture_size, recipe.seed, progress=painted)
    bar.remove_task(painting)
    if not pool.simple and any(stage.simple > 0 for stage in recipe.stages):
        raise RecipeError(
            f"a stage wants pictures that hold one thing (simple), and none of data.pictures={recipe.data.pictures}"
            f" does with data.simple={recipe.data.simple}; raise either"
        )
    return pool


def check_data(mixtures: Mapping[str, Mixture], output: Path, resume: bool) -> None:
    """Write down which files a run learns from; a resumed one must find the same.

    Raises:
        RecipeError: a file has changed since.
    """
    path = output / "datasets.json"
    found = {name: digest for mixture in mixtures.values() for name, digest in mixture.digests().items()}
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


def _where(recipe: Recipe, output: Path) -> str:
    """Where an interrupted run stands, and how to go on."""
    state = newest_checkpoint(output)
    if state is None:
        return f"stopped before the first checkpoint of {output}; begin again with --resume"
    stage, step = read_state(state, recipe)
    name, steps = recipe.stages[stage].name, recipe.stages[stage].steps
    return (
        f"stopped in stage {name!r} ({stage + 1} of {len(recipe.stages)}) after step {step} of {steps}; the state is "
        f"in {state}, no model was exported; go on with the same command and --resume"
    )


def check_stages(recipe: Recipe, model: Any) -> None:
    """Make sure that the model has what the stages speak of.

    Raises:
        RecipeError: it cannot be trained, has no such part, or too few blocks for the probes.
    """
    blocks = model.config.get_text_config().num_hidden_layers
    for stage in recipe.stages:
        select_parts(model, stage.train)
        towers = isinstance(model, SiglipModel)
        if stage.objective in (("words", "answers", *OF_USERS) if towers else ("pairs",)):
            hint = "towers have no words of their own" if towers else "it takes two towers (family siglip)"
            raise RecipeError(f"stages.{stage.name}.objective {stage.objective!r} does not fit this model: {hint}")
        if stage.probe_layer and stage.probe_layer + 3 > blocks:
            raise RecipeError(
                f"stages.{stage.name}.probe_layer is {stage.probe_layer}, and three blocks must follow it; "
                f"the model has {blocks}"
            )


def _bar(visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[told]}"),
        console=Console(stderr=True),
        disable=not visible,
    )


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
