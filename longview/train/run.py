"""The loop: stages of a recipe one after another, from nothing or from a checkpoint, to a checkpoint folder.

What lies in the folder of a run stands in folder.py. A step draws its samples from a random stream of its own (seed,
stage, step), so the state is: weights, optimizer, stage, step. No pickle anywhere. How gradients come about is the
objective's matter: objectives.py and pairs.py for the synthetic world, supervised.py for a user's data.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from longview.errors import CheckpointError, LongviewError, RecipeError
from longview.models import adapters
from longview.train.data import Pool, paint_pool
from longview.train.datasets import Mixture, Quarantine, trim_report
from longview.train.folder import (
    REPAIR,
    check_owner,
    checkpoints,
    fsync,
    hold,
    newest_checkpoint,
    read_moments,
    read_state,
    read_weights,
    reading,
    replace_text,
    resolved,
    steps_of,
    trim_log,
    writing,
)
from longview.train.objectives import SEEING, Readers, answers_loss, contents_loss, look_once
from longview.train.opening import open_model
from longview.train.optimizers import learning_rate, make_optimizers, select_parts
from longview.train.pairs import SiglipModel, pairs_loss
from longview.train.recipe import OF_USERS, Recipe, Stage, check, from_tree
from longview.train.supervised import Tuning

LOG_EVERY = 10  # steps
COUNTED = ("samples", "tokens", "pictures")
"""What a step may say it has worked through; the log tells how many a second."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to end before its end; says where it stopped and how to go on."""


def train(recipe: Recipe, output: str | Path, resume: bool = False, progress: bool = True) -> Path:
    """Follow a recipe; returns the folder of the trained model.

    Args:
        resume: Continue from the newest checkpoint in `output`; the recipe must be the one that began there.

    Raises:
        Interrupted: Ctrl-C or SIGTERM: the run ended after the current step, with its state saved and nothing exported.
        RecipeError: `output` holds another run, there is nothing to resume, or the recipe cannot be followed.
        CheckpointError: what is in `output` is damaged, or cannot be written.
    """
    output = Path(output)
    check(recipe)
    mixtures = open_datasets(recipe)
    recipe = settle(recipe, mixtures)
    with hold(output, resume):
        check_owner(recipe, output, resume)
        return _train(recipe, mixtures, output, resume, progress)


def open_datasets(recipe: Recipe) -> dict[str, Mixture]:
    """The data of each stage that learns from a user's, by its name.

    Raises:
        RecipeError: a file cannot be read, or a row of it does not add up.
    """
    return {
        stage.name: Mixture(stage.datasets, recipe.seed, stage.name, rejected=stage.objective == "preference")
        for stage in recipe.stages
        if stage.objective in OF_USERS
    }


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


def _train(recipe: Recipe, mixtures: Mapping[str, Mixture], output: Path, resume: bool, progress: bool) -> Path:
    torch.manual_seed(recipe.seed)
    state = newest_checkpoint(output) if resume else None
    folder = output / "model"
    words = folder / "tokenizer.json"
    if state is None:
        words.unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    elif recipe.model.start is None and not words.exists():
        raise CheckpointError(f"{words} is missing, and the checkpoint was trained with it; {REPAIR}")
    with writing(folder, output):
        model, processor = open_model(recipe, folder)
    check_stages(recipe, model)
    adapter = add_adapter(recipe, model)
    if all(stage.objective in OF_USERS for stage in recipe.stages) and torch.cuda.is_available():
        model.to("cuda")  # the synthetic world is made for one CPU core
    run = Run(recipe, output, model, processor, mixtures=mixtures, adapter=adapter)
    if mixtures:
        check_data(mixtures, output, resume)
    begin = run.load(state) if state else (0, 0)
    with writing(output / "log.jsonl", output):
        trim_log(output / "log.jsonl", recipe, begin)
        trim_report(output / "quarantine.jsonl", begin)
        if not resume:
            replace_text(output / "recipe.json", resolved(recipe))
    with _bar(progress) as bar, _stop_on_signal() as stopped:
        if len(mixtures) < len(recipe.stages):
            run.pool = _paint(recipe, output, model, bar, stopped)
        for number, stage in enumerate(recipe.stages):
            if number >= begin[0] and not run.follow(
                number, stage, begin[1] if number == begin[0] else 0, bar, stopped
            ):
                raise Interrupted(_where(recipe, output))
    if adapter is not None:
        folder = output / "adapter"
        with writing(folder, output):
            adapters.save(adapter, folder, str(recipe.model.start))
            return folder
    with writing(folder, output):
        return export(model, processor, folder)


def add_adapter(recipe: Recipe, model: Any) -> Any:
    """Adapters around the parts that any stage trains, where the recipe wants them; PEFT's wrapper, or None."""
    settings = recipe.model.adapter
    if settings is None:
        return None
    parts = list(dict.fromkeys(part for stage in recipe.stages for part in stage.train))
    return adapters.add(model, parts, settings.rank, settings.alpha, settings.dropout)


def _paint(recipe: Recipe, output: Path, model: Any, bar: Progress, stopped: list[int]) -> Pool:
    """The pictures of the synthetic world."""
    painting = bar.add_task("painting", total=1.0, loss=float("nan"), speed="")

    def painted(done: int, total: int) -> None:
        bar.update(painting, completed=done / total)
        if stopped:
            raise Interrupted(_where(recipe, output))

    pool = paint_pool(recipe.data, model.config.picture_size, recipe.seed, progress=painted)
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


def export(model: PreTrainedModel, processor: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint folder that `longview.load` opens; the model itself keeps its precision."""
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        model.save_pretrained(unfinished, state_dict=tensors)
        config = json.loads((unfinished / "config.json").read_text())
        config["dtype"] = str(dtype).removeprefix("torch.")
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (unfinished / "generation_config.json").unlink(missing_ok=True)
        for path in unfinished.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def export_checkpoint(output: str | Path, folder: str | Path) -> Path:
    """Export the newest checkpoint of a run, which may still be going on."""
    output, folder = Path(output), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (output / "model" / "tokenizer.json").exists():
        shutil.copy(output / "model" / "tokenizer.json", folder)
    with reading(output / "recipe.json"):
        recipe = from_tree(json.loads((output / "recipe.json").read_text()))
    state = newest_checkpoint(output)
    if state is None:
        raise RecipeError(f"{output} holds no checkpoint yet; wait for the first one")
    model, processor = open_model(recipe, folder)
    adapter = add_adapter(recipe, model)
    weights = read_weights(state / "model.safetensors", kept(model))
    model.load_state_dict(weights, strict=False)
    if adapter is not None:
        adapters.save(adapter, folder, str(recipe.model.start))
        return folder
    return export(model, processor, folder)


def kept(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a checkpoint holds: every weight; where there is an adapter, its own, as all others stay."""
    found = dict(model.named_parameters())
    return {name: found[name] for name in found if adapters.MARK in name} or found


def check_stages(recipe: Recipe, model: Any) -> None:
    """Make sure that the model has what the stages speak of.

    Raises:
        RecipeError: it cannot be trained, has no such part, or too few blocks for the probes.
    """
    blocks = model.config.get_text_config().num_hidden_layers
    for stage in recipe.stages:
        select_parts(model, stage.train)
        towers = isinstance(model, SiglipModel)
        if stage.objective in (("answers", *OF_USERS) if towers else ("pairs",)):
            hint = "towers have no words of their own" if towers else "it takes two towers (family siglip)"
            raise RecipeError(f"stages.{stage.name}.objective {stage.objective!r} does not fit this model: {hint}")
        if stage.probe_layer and stage.probe_layer + 3 > blocks:
            raise RecipeError(
                f"stages.{stage.name}.probe_layer is {stage.probe_layer}, and three blocks must follow it; "
                f"the model has {blocks}"
            )


@dataclass
class Run:
    """What the steps of a run share."""

    recipe: Recipe
    output: Path
    model: Any
    processor: Any
    pool: Pool | None = None
    mixtures: Mapping[str, Mixture] = field(default_factory=dict)
    adapter: Any = None
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        compares = self.recipe.stages[0].objective == "preference" and self.adapter is None
        self.reference = copy.deepcopy(self.model).eval().requires_grad_(False) if compares else None
        self.readers = Readers(self.model.config.get_text_config().hidden_size)
        self.optimizers: list[torch.optim.Optimizer] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._loaded: dict[str, Tensor] = {}

    def follow(self, number: int, stage: Stage, begin: int, bar: Progress, stopped: list[int]) -> bool:
        """Train one stage from step `begin`; False when a signal ended it early."""
        parameters = self._learning(stage)
        self._prepare_optimizers(parameters, stage)
        task = bar.add_task(stage.name, total=stage.steps, completed=begin, loss=float("nan"), speed="")
        losses: list[float] = []
        if self.pool is not None and (stage.objective != "answers" or SEEING & set(stage.train)):
            self.pool.features = None
        elif self.pool is not None and self.pool.features is None:
            bar.update(task, description=f"{stage.name}: looking")
            self.pool.features = look_once(self.model, self.processor, self.pool)
            bar.update(task, description=stage.name)
        self.tuning = self._tuning(number)
        worked, since = Counter[str](), time.monotonic()
        self.model.train()
        for step in range(begin, stage.steps):
            rate = learning_rate(stage, step)
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = rate * group.get("share", 1.0)
            self.model.zero_grad()
            self.readers.zero_grad()
            loss, notes = self.learn(stage, step)
            norm = nn.utils.clip_grad_norm_(parameters.values(), stage.clip_norm)
            if notes["samples"]:
                for optimizer in self.optimizers:
                    optimizer.step()
            losses.append(loss)
            worked.update({what: notes[what] for what in COUNTED if what in notes})
            if (step + 1) % LOG_EVERY == 0 or step + 1 == stage.steps:
                elapsed = time.monotonic() - since
                mean = sum(losses) / len(losses)
                line = {"stage": stage.name, "step": step + 1, "loss": round(mean, 4), "norm": round(float(norm), 3)}
                line |= {"rate": round(rate, 7)}
                line |= {f"{what}_s": round(count / elapsed, 2) for what, count in worked.items()}
                self._log(line | {"time": round(time.time())} | notes)
                speed = "  ".join(f"{count / elapsed:.1f} {what}/s" for what, count in worked.items())
                bar.update(task, completed=step + 1, loss=mean, speed=speed)
                losses, worked, since = [], Counter(), time.monotonic()
            if stopped or (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
                self.save(number, step + 1)
            if stopped:
                return False
        return True

    def learn(self, stage: Stage, step: int) -> tuple[float, dict[str, Any]]:
        """The gradients of one step; returns its loss, and what to note about it."""
        if self.tuning is not None:
            return self.tuning.learn(step)
        loss, notes = self.loss(stage, step)
        loss.backward()
        return loss.item(), notes

    def _tuning(self, number: int) -> Tuning | None:
        """What makes gradients of a user's data in a stage; None where the synthetic world does."""
        stage = self.recipe.stages[number]
        if stage.objective not in OF_USERS:
            return None
        ward = Quarantine(self.output / "quarantine.jsonl", stage.quarantine, stage.name, number)
        mixture = self.mixtures[stage.name]
        return Tuning(self.recipe, number, self.model, self.processor, mixture, ward, self.reference)

    def loss(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, Any]]:
        """The loss of one step in the synthetic world, and what to note; it draws from a random stream of its own."""
        assert self.pool is not None
        rng = random.Random(f"{self.recipe.seed} {stage.name} {step}")
        if stage.objective == "pairs":
            return pairs_loss(self.model, self.processor, self.pool, stage, rng)
        if stage.objective in ("contents", "places"):
            return contents_loss(self.model, self.processor, self.readers, self.pool, stage, rng)
        return answers_loss(self.model, self.processor, self.readers, self.pool, stage, rng)

    def _prepare_optimizers(self, parameters: dict[str, nn.Parameter], stage: Stage) -> None:
        """Fresh optimizers for a stage, or those of the checkpoint that was loaded."""
        loaded, self._loaded = self._loaded, {}
        self.optimizers = make_optimizers(parameters, stage, self.model.parts)
        self._parameters = parameters
        names = {parameter: name for name, parameter in parameters.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    prefix = f"{names[parameter]}|"
                    found = {
                        key.removeprefix(prefix): value.to(parameter.device)
                        for key, value in loaded.items()
                        if key.startswith(prefix)
                    }
                    if found:
                        optimizer.state[parameter] = found

    def save(self, stage: int, step: int) -> Path:
        """Write a checkpoint, complete or not at all, and remove the one before."""
        done = sum(s.steps for s in self.recipe.stages[:stage]) + step
        folder, unfinished = self.output / f"checkpoint-{done:07d}", self.output / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        # A tied weight has one name here; the model's state_dict would list it under two.
        weights = {name: parameter.detach() for name, parameter in kept(self.model).items()}
        moments = {
            f"{name}|{key}": value
            for name, parameter in self._parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        try:
            with writing(folder, self.output):
                unfinished.mkdir()
                save_file(weights, unfinished / "model.safetensors")
                save_file(dict(self.readers.state_dict()), unfinished / "readers.safetensors")
                save_file(moments, unfinished / "optimizer.safetensors")
                (unfinished / "state.json").write_text(json.dumps({"stage": stage, "step": step}))
                for path in (*unfinished.iterdir(), unfinished):
                    fsync(path)
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
                fsync(self.output)
        except LongviewError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for old in checkpoints(self.output):
            if steps_of(old) < done:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def load(self, folder: Path) -> tuple[int, int]:
        """Restore a checkpoint; returns the stage and the step at which to go on.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the recipe; names it.
        """
        number, step = read_state(folder, self.recipe)
        stage = self.recipe.stages[number]
        weights = read_weights(folder / "model.safetensors", kept(self.model))
        readers = read_weights(folder / "readers.safetensors", self.readers.state_dict())
        parameters = self._learning(stage)
        names = {parameter: name for name, parameter in parameters.items()}
        keys = {
            names[parameter]: {"momentum_buffer"}
            if isinstance(optimizer, torch.optim.Muon)
            else {"step", "exp_avg", "exp_avg_sq"}
            for optimizer in make_optimizers(parameters, stage, self.model.parts)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        moments = read_moments(folder / "optimizer.safetensors", parameters, keys)
        self.model.load_state_dict(weights, strict=False)
        self.readers.load_state_dict(readers)
        if step == stage.steps:
            return number + 1, 0
        self._loaded = moments
        return number, step

    def _learning(self, stage: Stage) -> dict[str, nn.Parameter]:
        """What learns in a stage, by name."""
        if stage.objective in OF_USERS:
            return select_parts(self.model, stage.train)
        readers = {f"readers.{name}": parameter for name, parameter in self.readers.named_parameters()}
        return select_parts(self.model, stage.train) | readers

    def _log(self, line: dict[str, Any]) -> None:
        path = self.output / "log.jsonl"
        with writing(path, self.output), path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def _bar(visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]}"),
        TimeRemainingColumn(),
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


__all__ = [
    "Interrupted",
    "Run",
    "export",
    "export_checkpoint",
    "learning_rate",
    "newest_checkpoint",
    "select_parts",
    "train",
]
