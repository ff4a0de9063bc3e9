"""The steps of a run's stages: gradients of the stage's objective, the optimizers' step, the log, the checkpoints.

A step draws its samples from a random stream of its own (seed, stage, step), so the state is: weights, what objectives
learn beside them, optimizer, stage, step.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress as Bar
from torch import Tensor, nn

from longview.errors import RecipeError
from longview.messages import Progress
from longview.models.base import checkpoint_activations
from longview.models.liger import apply_liger_kernel
from longview.train.build import saved_parameters
from longview.train.distributed import processes
from longview.train.distributed.sharding import (
    free_gathered,
    full_tensor,
    is_sharded,
    shard,
    shard_like,
    sum_gradients,
    tensors_to_write,
)
from longview.train.distributed.zero import STAGES, Zero
from longview.train.objectives.base import Batch, Notes, Objective
from longview.train.optimizers import learning_rate, make_optimizers, select_parts, state_keys
from longview.train.recipe import Recipe, Stage
from longview.train.report.journal import Journal
from longview.train.saved import manifest
from longview.train.saved.checkpoint import write_checkpoint
from longview.train.saved.evaluations import Evaluations, read_evaluations
from longview.train.saved.folder import checkpoint_after, read_losses, read_state


def accumulate_gradients(objective: Objective, step: int, zero: Zero | None = None) -> tuple[float, Notes]:
    """Add this process's share of the gradients of one step; returns the loss of the whole step, and what to note.

    Args:
        zero: What passes on losses, where DeepSpeed does.
    """
    model, half = objective.model, objective.recipe.model.dtype == "bfloat16"
    batches, notes = objective.batches(step)
    total, summed = 0.0, dict[str, float]()

    def loss_of(batch: Batch) -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            loss, found = objective.loss(batch)
        for name, value in found.items():
            summed[name] = summed.get(name, 0.0) + value
        return loss

    for batch in batches:
        seed_dropout(objective, step, batch.number)
        loss = loss_of(batch) if zero is None else zero.forward(partial(loss_of, batch))
        if loss.requires_grad and zero is not None:
            zero.backward(loss, last=batch is batches[-1])
        elif loss.requires_grad:
            loss.backward()
        else:  # nothing that learns has a part in it
            free_gathered(model)
        total += loss.item()
    parts = processes.gather((total, summed))
    for name in sorted({name for _, part in parts for name in part}):
        notes[name] = sum(part.get(name, 0.0) for _, part in parts)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in notes.items()}
    return sum(loss for loss, _ in parts), rounded


def mean_loss(objective: Objective) -> float:
    """The loss over the samples that an objective never learns from, without dropout.

    Raises:
        RecipeError: none of them can be shown.
    """
    model, half = objective.model, objective.recipe.model.dtype == "bfloat16"
    total, weight = 0.0, 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            for batch, divisor in objective.validation_batches():
                total += objective.loss(batch)[0].item()
                weight += divisor
    finally:
        model.train(training)
    parts = processes.gather((total, weight))
    if not sum(weight for _, weight in parts):
        raise RecipeError(
            f"stages.{objective.stage.name}.data.validation: none of the rows held out can be shown; look at the data, "
            "or leave it out"
        )
    return sum(total for total, _ in parts) / sum(weight for _, weight in parts)


def seed_dropout(objective: Objective, step: int, number: int) -> None:
    """Let dropout draw from a stream of the batch's own: the resumed run is the unbroken one, in however many
    processes."""
    stream = f"{objective.recipe.seed} {objective.stage.name} {step} {number}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7], "big"))


class StageClock(NamedTuple):
    """The time of a stage that has less of it than steps, by `time.monotonic`."""

    begun: float
    end: float
    begin: int
    """The step at which it began."""
    steps: int

    def at(self) -> float:
        """The step that the stage would have come to by now, if its steps were to fill its time."""
        passed = (time.monotonic() - self.begun) / max(1e-9, self.end - self.begun)
        return self.begin + (self.steps - self.begin) * min(1.0, passed)


@dataclass
class Trainer:
    """A model, and what its training needs from one step to the next."""

    recipe: Recipe
    output: Path
    model: Any
    processor: Any
    objectives: Sequence[Objective]
    adapter: Any = None
    costs: Sequence[float | None] = ()
    """What a step of each stage takes; see `Journal`."""
    tensorboard: bool = False
    wandb: bool = False
    say: Callable[[str], None] = lambda text: None
    """Told of progress in lines, where no bar shows it."""
    deadline: float | None = None
    """When the run is to end, by `time.monotonic`; its stages share the time as they share the steps."""
    workers: int = 0
    """Processes that make ahead what the steps learn from."""

    evaluations: Evaluations = field(default_factory=Evaluations, init=False)
    """Of the stage so far, by its validation."""
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list, init=False)
    zero: Zero | None = field(default=None, init=False)
    _parameters: dict[str, nn.Parameter] = field(default_factory=dict, init=False)
    """What learns in the stage, by name."""
    _clock: StageClock | None = field(default=None, init=False)
    """Of the stage, where its time is limited."""
    _at: float = field(default=0.0, init=False)
    """The step that the learning rate has come to by that clock; 0 without one."""
    _loaded: dict[str, Tensor] = field(default_factory=dict, init=False)
    """Optimizer state of a checkpoint, until its stage goes on."""

    def __post_init__(self) -> None:
        compares = any(objective.compares for objective in self.objectives) and self.adapter is None
        self.reference = copy.deepcopy(self.model).eval().requires_grad_(False) if compares else None
        for model in (self.model, self.reference):  # after the copy, which would share the original's kernels
            if self.recipe.model.liger and model is not None:
                apply_liger_kernel(model)
        for objective in self.objectives:
            objective.workers = self.workers
            objective.attach(self.model, self.processor, self.output, self.reference)
        self.modules = {name: module for objective in self.objectives for name, module in objective.modules.items()}
        self.journal = Journal(self.output, self.recipe, self.costs, self.tensorboard, self.wandb, self.deadline)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def train_stage(self, number: int, begin: int, bar: Bar, stopped: list[int], progress: Progress) -> bool:
        """Train one stage from step `begin`, to its last step or the end of its time; False when a signal ended it.

        Args:
            stopped: Becomes non-empty when the process is asked to end.
        """
        try:
            return self._train_stage(number, begin, bar, stopped, progress)
        finally:
            self.objectives[number].end()

    def _train_stage(self, number: int, begin: int, bar: Bar, stopped: list[int], progress: Progress) -> bool:
        stage = self.recipe.stages[number]
        self._begin(number, progress)
        self._clock = None if self.deadline is None else self._begin_clock(self.deadline, number, begin)
        self._at = 0.0
        task = bar.add_task(stage.name, total=stage.steps, completed=begin, text="")
        self.journal.begin(number, begin)
        if begin == 0:
            self.evaluations = Evaluations()
        for step in range(begin, stage.steps):
            loss, norm, rate, notes = self._take_step(number, step)
            ended, over = self._gather_ends(stopped)
            due = (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps or over
            if due and self.objectives[number].validates:
                with processes.fail_together():
                    notes["validation"] = self.evaluations.add(step + 1, mean_loss(self.objectives[number]))
            text = self.journal.step(number, step + 1, loss, norm, rate, notes, over)
            bar.update(task, completed=step + 1, text=text)
            if over or self.journal.is_due(number, step + 1, notes):
                self.say(f"{stage.name}  step {step + 1:,} of {stage.steps:,}  rate {rate:.2g}  {text}")
            if ended or due:
                self.save(number, step + 1)
            if ended:
                return False
            if over:
                if step + 1 < stage.steps:
                    self.say(f"{stage.name}  its time is over, after step {step + 1:,} of {stage.steps:,}")
                break
            if self.evaluations.exhausted(stage.patience):
                break
        self._take_best(number)
        return True

    def _gather_ends(self, stopped: list[int]) -> tuple[bool, bool]:
        """Whether some process is asked to end, and whether the stage's time is over; sets the step by the time.

        Processes agree on both, and so on the rate of the next step.
        """
        found = processes.gather((bool(stopped), 0.0 if self._clock is None else self._clock.at()))
        self._at = max(at for _, at in found)
        return any(asked for asked, _ in found), self._clock is not None and self._at >= self._clock.steps

    def _begin_clock(self, deadline: float, number: int, begin: int) -> StageClock:
        """The time of a stage: its share of what is left, by its steps that are to come."""
        now, steps = time.monotonic(), [stage.steps for stage in self.recipe.stages[number:]]
        left = steps[0] - begin
        return StageClock(now, now + (deadline - now) * left / (left + sum(steps[1:])), begin, steps[0])

    def _take_best(self, number: int) -> None:
        """Take the weights of the stage's best checkpoint, where validation tells which one that is."""
        best = self.evaluations.best
        if best is None:
            return
        self.say(f"{self.recipe.stages[number].name}  best at step {best.step:,}, with validation {best.loss:.4f}")
        if best != self.evaluations.found[-1]:
            folder = self._folder(number, best.step)
            manifest.verify(folder)
            self.model.load_state_dict(
                manifest.read_weights(folder, "model", saved_parameters(self.model)), strict=False
            )

    def time_stage(self, number: int, steps: int) -> float:
        """Seconds that a step of a stage takes: the mean of some, after one that begins it."""
        self._begin(number, lambda *_: None)
        self._take_step(number, 0)
        began = time.monotonic()
        for step in range(1, steps + 1):
            self._take_step(number, step)  # which waits for the device: its loss is a number
        return (time.monotonic() - began) / steps

    def _begin(self, number: int, progress: Progress) -> None:
        """Make ready for the steps of a stage."""
        stage, objective = self.recipe.stages[number], self.objectives[number]
        self._parameters = self._learning(number)
        self._prepare_optimizers(stage)
        objective.begin(progress)
        checkpoint_activations(self.model, stage.gradient_checkpointing)
        self.model.train()

    def _take_step(self, number: int, step: int) -> tuple[float, float, float, Notes]:
        """One step of a stage; returns its loss, the norm of its gradients, the learning rate, and what to note."""
        stage, objective = self.recipe.stages[number], self.objectives[number]
        rate = learning_rate(stage, step, objective.cosine_after_warmup, self._at)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate * group.get("share", 1.0)
        for module in (self.model, *self.modules.values()):
            module.zero_grad()
        loss, notes = self.learn(objective, step)
        norm = self._step(stage, notes["samples"]) if self.zero is None else self.zero.step()
        return loss, norm, rate, notes

    def learn(self, objective: Objective, step: int) -> tuple[float, Notes]:
        """The gradients of one step; returns its loss, and what to note about it."""
        return accumulate_gradients(objective, step, self.zero)

    def _step(self, stage: Stage, samples: int) -> float:
        """Clip the gradients and step, where there are samples; returns their norm before."""
        sum_gradients(self._parameters.values())
        norm = full_tensor(nn.utils.clip_grad_norm_(self._parameters.values(), stage.clip_norm))
        for optimizer in self.optimizers if samples else ():
            optimizer.step()
        return float(norm)

    def _learning(self, number: int) -> dict[str, nn.Parameter]:
        """What learns in a stage, by name."""
        beside = {
            f"{name}.{key}": parameter
            for name, module in self.objectives[number].modules.items()
            for key, parameter in module.named_parameters()
        }
        return select_parts(self.model, self.recipe.stages[number].train) | beside

    def _prepare_optimizers(self, stage: Stage) -> None:
        """Fresh optimizers for a stage, or those of the checkpoint that was loaded."""
        loaded, self._loaded = self._loaded, {}
        self.optimizers = make_optimizers(self._parameters, stage, self.model.parts)
        if self._by_deepspeed:
            self.zero = Zero(self.recipe, stage, self.model, self.optimizers[0], self._parameters, loaded)
            return
        names = {parameter: name for name, parameter in self._parameters.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    prefix = f"{names[parameter]}|"
                    found = {
                        key.removeprefix(prefix): shard_like(value, parameter)
                        for key, value in loaded.items()
                        if key.startswith(prefix)
                    }
                    if found:
                        optimizer.state[parameter] = found

    # ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, number: int, step: int) -> Path:
        """Write a checkpoint, complete or not at all, and remove the one before."""
        # A tied weight has one name here; the model's state_dict would list it under two.
        weights: Mapping[str, Tensor] = {name: p.detach() for name, p in saved_parameters(self.model).items()}
        moments = {
            f"{name}|{key}": value
            for name, parameter in self._parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        if self.zero is not None:
            weights, moments = self.zero.weights(saved_parameters(self.model)), self.zero.moments()
        tensors = {"model": tensors_to_write(weights), "optimizer": tensors_to_write(moments)}
        if processes.is_first():
            tensors |= {name: dict(module.state_dict()) for name, module in self.modules.items()}
        state = {"stage": number, "step": step, "losses": self.journal.losses}
        state |= {"validation": self.evaluations.found} if self.evaluations.found else {}
        shared = ("model", "optimizer") if is_sharded(self.model) else ()
        best = self.evaluations.best
        kept = {self._folder(number, best.step)} if best is not None else set()
        return write_checkpoint(self._folder(number, step), state, tensors, shared, kept)

    def _folder(self, number: int, step: int) -> Path:
        """The checkpoint after a step of a stage."""
        return checkpoint_after(self.output, self.recipe, number, step)

    def load(self, folder: Path) -> tuple[int, int]:
        """Restore a checkpoint; returns the stage and the step at which to go on.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the recipe; names it.
        """
        with processes.fail_together():
            if processes.is_first():
                manifest.verify(folder)
        with processes.fail_together():
            return self._load(folder)

    def _load(self, folder: Path) -> tuple[int, int]:
        number, step = read_state(folder, self.recipe)
        stage = self.recipe.stages[number]
        weights = manifest.read_weights(folder, "model", saved_parameters(self.model))
        beside = {
            name: manifest.read_weights(folder, name, module.state_dict()) for name, module in self.modules.items()
        }
        parameters = self._learning(number)
        keys = state_keys(make_optimizers(parameters, stage, self.model.parts), parameters)
        moments = manifest.read_moments(folder, "optimizer", parameters, keys)
        self.model.load_state_dict(weights, strict=False)
        for name, module in self.modules.items():
            module.load_state_dict(beside[name])
        self.evaluations = read_evaluations(folder)
        if step == stage.steps or self.evaluations.exhausted(stage.patience):
            self._take_best(number)
            return number + 1, 0
        self._loaded = moments
        self.journal.losses = read_losses(folder)
        return number, step

    # ── several processes ────────────────────────────────────────────────────────────────────────────────────────────

    def shard(self) -> None:
        """Leave each process its share of the model, and of the one it is compared with."""
        if self._by_deepspeed:  # which takes the model when it is about to learn
            if self.reference is not None:
                self.reference.to(processes.device())
            return
        for model in (self.model, self.reference):
            if model is not None:
                shard(model)

    @property
    def _by_deepspeed(self) -> bool:
        return self.recipe.parallel in STAGES and processes.count() > 1
