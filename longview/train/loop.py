"""The loop of one stage after another: a step's gradients, the optimizers' turn, the log, the checkpoints.

A step draws its samples from a random stream of its own (seed, stage, step), so the state is: weights, optimizer,
stage, step. No pickle in any file. How gradients come about is the objective's matter: objectives.py and pairs.py for
the synthetic world, supervised.py for a user's data.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn

from longview.curriculum.contrastive import pairs_loss
from longview.curriculum.objectives import SEEING, Readers, answers_loss, contents_loss, look_once
from longview.curriculum.pool import Pool
from longview.errors import LongviewError
from longview.train.build import kept
from longview.train.data.datasets import Mixture, Quarantine
from longview.train.distributed import processes
from longview.train.distributed.sharding import dealt, is_sharded, like, shard, sum_gradients, whole
from longview.train.distributed.zero import STAGES, Zero
from longview.train.objectives.supervised import Tuning
from longview.train.optimizers import learning_rate, make_optimizers, select_parts
from longview.train.recipe import OF_USERS, Recipe, Stage
from longview.train.report.journal import Journal
from longview.train.saved import manifest
from longview.train.saved.folder import (
    checkpoints,
    fsync,
    read_losses,
    read_state,
    steps_of,
    writing,
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
    costs: Sequence[float | None] = ()
    """What a step of each stage takes; see `Journal`."""
    tensorboard: bool = False

    def __post_init__(self) -> None:
        compares = self.recipe.stages[0].objective == "preference" and self.adapter is None
        self.reference = copy.deepcopy(self.model).eval().requires_grad_(False) if compares else None
        self.readers = Readers(self.model.config.get_text_config().hidden_size)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.zero: Zero | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._loaded: dict[str, Tensor] = {}
        self.journal = Journal(self.output, self.recipe, self.costs, self.tensorboard)

    def follow(self, number: int, stage: Stage, begin: int, bar: Progress, stopped: list[int]) -> bool:
        """Train one stage from step `begin`; False when a signal ended it early."""
        parameters = self._learning(stage)
        self._prepare_optimizers(parameters, stage)
        task = bar.add_task(stage.name, total=stage.steps, completed=begin, told="")
        if self.pool is not None and (stage.objective != "answers" or SEEING & set(stage.train)):
            self.pool.features = None
        elif self.pool is not None and self.pool.features is None:
            bar.update(task, description=f"{stage.name}: looking")
            self.pool.features = look_once(self.model, self.processor, self.pool)
            bar.update(task, description=stage.name)
        self.tuning = self._tuning(number)
        self.journal.begin(number, begin)
        self.model.train()
        for step in range(begin, stage.steps):
            rate = learning_rate(stage, step)
            for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
                group["lr"] = rate * group.get("share", 1.0)
            self.model.zero_grad()
            self.readers.zero_grad()
            loss, notes = self.learn(stage, step)
            norm = self._step(stage, notes["samples"]) if self.zero is None else self.zero.step()
            told = self.journal.step(number, step + 1, loss, norm, rate, notes)
            bar.update(task, completed=step + 1, told=told)
            ended = any(processes.gather(bool(stopped)))
            if ended or (step + 1) % stage.checkpoint_every == 0 or step + 1 == stage.steps:
                self.save(number, step + 1)
            if ended:
                return False
        return True

    def _step(self, stage: Stage, samples: int) -> float:
        """Clip the gradients and step, where there are samples; returns their norm before."""
        sum_gradients(self._parameters.values())
        norm = whole(nn.utils.clip_grad_norm_(self._parameters.values(), stage.clip_norm))
        for optimizer in self.optimizers if samples else ():
            optimizer.step()
        return float(norm)

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
        return Tuning(self.recipe, number, self.model, self.processor, mixture, ward, self.reference, self.zero)

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
        if self._by_deepspeed:
            self.zero = Zero(self.recipe, stage, self.model, self.optimizers[0], parameters, loaded)
            return
        names = {parameter: name for name, parameter in parameters.items()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    prefix = f"{names[parameter]}|"
                    found = {
                        key.removeprefix(prefix): like(value, parameter)
                        for key, value in loaded.items()
                        if key.startswith(prefix)
                    }
                    if found:
                        optimizer.state[parameter] = found

    def save(self, stage: int, step: int) -> Path:
        """Write a checkpoint, complete or not at all, and remove the one before."""
        done = sum(s.steps for s in self.recipe.stages[:stage]) + step
        folder, unfinished = self.output / f"checkpoint-{done:07d}", self.output / ".unfinished"
        # A tied weight has one name here; the model's state_dict would list it under two.
        weights = {name: parameter.detach() for name, parameter in kept(self.model).items()}
        moments = {
            f"{name}|{key}": value
            for name, parameter in self._parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        if self.zero is not None:
            weights, moments = self.zero.weights(kept(self.model)), self.zero.moments()
        files = {"model": dealt(weights), "optimizer": dealt(moments)}
        if processes.is_first():
            files["readers"] = dict(self.readers.state_dict())
        try:
            with processes.together(), writing(folder, self.output):
                if processes.is_first():
                    shutil.rmtree(unfinished, ignore_errors=True)
                    unfinished.mkdir()
                    now = {"stage": stage, "step": step, "losses": self.journal.losses}
                    (unfinished / "state.json").write_text(json.dumps(now))
            with processes.together(), writing(folder, self.output):
                written = self._write(files, unfinished)
            entries = {name: entry for some in processes.gather(written) for name, entry in some.items()}
            with processes.together(), writing(folder, self.output):
                if processes.is_first():
                    entries["state.json"] = manifest.entry_of(unfinished / "state.json")
                    for path in (unfinished / "state.json", manifest.seal(unfinished, entries), unfinished):
                        fsync(path)
                    unfinished.rename(folder)
                    fsync(self.output)
        except LongviewError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        for old in checkpoints(self.output) if processes.is_first() else ():
            if steps_of(old) < done:
                shutil.rmtree(old, ignore_errors=True)
        return folder

    def _write(self, files: Mapping[str, dict[str, Tensor]], folder: Path) -> dict[str, manifest.Entry]:
        """Write this process's tensors of a checkpoint; returns what the manifest says of the files."""
        entries = {}
        for stem, tensors in files.items():
            several = stem != "readers" and is_sharded(self.model)
            rank, count = (processes.rank(), processes.count()) if several else (0, 1)
            if not several and not processes.is_first():
                continue
            path = folder / manifest.name_of(stem, rank, count)
            save_file(tensors, path)
            fsync(path)
            entries[path.name] = manifest.entry_of(path)
        return entries

    def load(self, folder: Path) -> tuple[int, int]:
        """Restore a checkpoint; returns the stage and the step at which to go on.

        Raises:
            CheckpointError: a file is missing or damaged, or does not fit the recipe; names it.
        """
        with processes.together():
            if processes.is_first():
                manifest.verify(folder)
        with processes.together():
            return self._load(folder)

    def _load(self, folder: Path) -> tuple[int, int]:
        number, step = read_state(folder, self.recipe)
        stage = self.recipe.stages[number]
        weights = manifest.read_weights(folder, "model", kept(self.model))
        readers = manifest.read_weights(folder, "readers", self.readers.state_dict())
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
        moments = manifest.read_moments(folder, "optimizer", parameters, keys)
        self.model.load_state_dict(weights, strict=False)
        self.readers.load_state_dict(readers)
        if step == stage.steps:
            return number + 1, 0
        self._loaded = moments
        self.journal.losses = read_losses(folder)
        return number, step

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

    def _learning(self, stage: Stage) -> dict[str, nn.Parameter]:
        """What learns in a stage, by name."""
        if stage.objective in OF_USERS:
            return select_parts(self.model, stage.train)
        readers = {f"readers.{name}": parameter for name, parameter in self.readers.named_parameters()}
        return select_parts(self.model, stage.train) | readers
