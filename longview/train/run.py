"""The loop: stages of a recipe one after another, from nothing or from a checkpoint, to a checkpoint folder.

What lies in the folder of a run stands in folder.py. A step draws its samples from a random stream of its own (seed,
stage, step), so the state is: weights, optimizer, stage, step. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from longview.errors import CheckpointError, LongviewError, RecipeError
from longview.train.data import Pool, paint_pool
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
from longview.train.pairs import SiglipModel, pairs_loss
from longview.train.recipe import Recipe, Stage, check, from_tree

LOG_EVERY = 10  # steps


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
    with hold(output, resume):
        check_owner(recipe, output, resume)
        return _train(recipe, output, resume, progress)


def _train(recipe: Recipe, output: Path, resume: bool, progress: bool) -> Path:
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
    run = Run(recipe, output, model, processor)
    begin = run.load(state) if state else (0, 0)
    with writing(output / "log.jsonl", output):
        trim_log(output / "log.jsonl", recipe, begin)
        if not resume:
            replace_text(output / "recipe.json", resolved(recipe))
    with _bar(progress) as bar, _stop_on_signal() as stopped:
        painting = bar.add_task("painting", total=1.0, loss=float("nan"), rate=0.0)

        def painted(done: int, total: int) -> None:
            bar.update(painting, completed=done / total)
            if stopped:
                raise Interrupted(_where(recipe, output))

        run.pool = paint_pool(recipe.data, model.config.picture_size, recipe.seed, progress=painted)
        bar.remove_task(painting)
        if not run.pool.simple and any(stage.simple > 0 for stage in recipe.stages):
            raise RecipeError(
                f"a stage wants pictures that hold one thing (simple), and none of data.pictures={recipe.data.pictures}"
                f" does with data.simple={recipe.data.simple}; raise either"
            )
        for number, stage in enumerate(recipe.stages):
            if number >= begin[0] and not run.follow(
                number, stage, begin[1] if number == begin[0] else 0, bar, stopped
            ):
                raise Interrupted(_where(recipe, output))
    with writing(folder, output):
        return export(model, processor, folder)


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
    weights = read_weights(state / "model.safetensors", dict(model.named_parameters()))
    model.load_state_dict(weights, strict=False)
    return export(model, processor, folder)


def check_stages(recipe: Recipe, model: Any) -> None:
    """Make sure that the model has what the stages speak of.

    Raises:
        RecipeError: it cannot be trained, has no such part, or too few blocks for the probes.
    """
    blocks = model.config.get_text_config().num_hidden_layers
    for stage in recipe.stages:
        select_parts(model, stage.train)
        towers = isinstance(model, SiglipModel)
        if stage.objective == ("answers" if towers else "pairs"):
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

    def __post_init__(self) -> None:
        self.readers = Readers(self.model.config.get_text_config().hidden_size)
        self.optimizers: list[torch.optim.Optimizer] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._loaded: dict[str, Tensor] = {}

    def follow(self, number: int, stage: Stage, begin: int, bar: Progress, stopped: list[int]) -> bool:
        """Train one stage from step `begin`; False when a signal ended it early."""
        parameters = self._learning(stage)
        self._prepare_optimizers(parameters, stage)
        task = bar.add_task(stage.name, total=stage.steps, completed=begin, loss=float("nan"), rate=0.0)
        losses: list[float] = []
        assert self.pool is not None
        self.pool.features = None
        if stage.objective == "answers" and not SEEING & set(stage.train):
            bar.update(task, description=f"{stage.name}: looking")
            self.pool.features = look_once(self.model, self.processor, self.pool)
            bar.update(task, description=stage.name)
        samples, since = 0, time.monotonic()
        self.model.train()
        for step in range(begin, stage.steps):
            rate = learning_rate(stage, step)
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            loss, notes = self.loss(stage, step)
            self.model.zero_grad()
            self.readers.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters.values(), stage.clip_norm)
            for optimizer in self.optimizers:
                optimizer.step()
            losses.append(loss.item())
            samples += notes["samples"]
            if (step + 1) % LOG_EVERY == 0 or step + 1 == stage.steps:
                elapsed = time.monotonic() - since
                mean = sum(losses) / len(losses)
                line = {"stage": stage.name, "step": step + 1, "loss": round(mean, 4), "norm": round(float(norm), 3)}
                line |= {"rate": round(rate, 7), "samples_s": round(samples / elapsed, 2), "time": round(time.time())}
                self._log(line | notes)
                bar.update(task, completed=step + 1, loss=mean, rate=samples / elapsed)
                losses, samples, since = [], 0, time.monotonic()
            if stopped or (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
                self.save(number, step + 1)
            if stopped:
                return False
        return True

    def loss(self, stage: Stage, step: int) -> tuple[Tensor, dict[str, Any]]:
        """The loss of one step, and what to note about it; the step draws from a random stream of its own."""
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
        self.optimizers = make_optimizers(parameters, stage)
        self._parameters = parameters
        names = {parameter: name for name, parameter in parameters.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    prefix = f"{names[parameter]}|"
                    found = {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}
                    if found:
                        optimizer.state[parameter] = found

    def save(self, stage: int, step: int) -> Path:
        """Write a checkpoint, complete or not at all, and remove the one before."""
        done = sum(s.steps for s in self.recipe.stages[:stage]) + step
        folder, unfinished = self.output / f"checkpoint-{done:07d}", self.output / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        # A tied weight has one name here; the model's state_dict would list it under two.
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
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
        weights = read_weights(folder / "model.safetensors", dict(self.model.named_parameters()))
        readers = read_weights(folder / "readers.safetensors", self.readers.state_dict())
        parameters = self._learning(stage)
        names = {parameter: name for name, parameter in parameters.items()}
        keys = {
            names[parameter]: {"momentum_buffer"}
            if isinstance(optimizer, torch.optim.Muon)
            else {"step", "exp_avg", "exp_avg_sq"}
            for optimizer in make_optimizers(parameters, stage)
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
        readers = {f"readers.{name}": parameter for name, parameter in self.readers.named_parameters()}
        return select_parts(self.model, stage.train) | readers

    def _log(self, line: dict[str, Any]) -> None:
        path = self.output / "log.jsonl"
        with writing(path, self.output), path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def make_optimizers(parameters: Mapping[str, nn.Parameter], stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices between hidden states and AdamW for the rest (embeddings, norms, readers)."""

    def is_hidden(name: str, parameter: Tensor) -> bool:
        return parameter.dim() == 2 and not any(mark in name for mark in ("embed", "lm_head", "readers"))

    hidden = [p for name, p in parameters.items() if stage.optimizer == "muon" and is_hidden(name, p)]
    taken = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in parameters.values() if id(parameter) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.98), fused=True)
    ]
    if hidden:
        # The adjustment gives its steps the size of AdamW's, so that one learning rate serves both.
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=stage.learning_rate, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up, then a cosine to `final_rate` of the peak."""
    warm = min(1.0, (step + 1) / max(1, stage.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return stage.learning_rate * warm * (stage.final_rate + (1 - stage.final_rate) * cosine)


def select_parts(model: Any, names: list[str]) -> dict[str, nn.Parameter]:
    """The parameters of the parts a recipe names; the others stop learning.

    Raises:
        RecipeError: the model has no such part.
    """
    unknown = [name for name in names if name not in model.parts]
    if unknown:
        raise RecipeError(f"the model has no part {unknown[0]!r}; its parts are {', '.join(model.parts)}")
    chosen = {}
    for name, parameter in model.named_parameters():
        part = next((part for part, marks in model.parts.items() if any(mark in name for mark in marks)), None)
        parameter.requires_grad_(part in names)
        if part in names:
            chosen[name] = parameter
    return chosen


def _bar(visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.1f} samples/s"),
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
