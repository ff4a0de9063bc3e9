"""The loop: stages of a recipe one after another, from nothing or from a checkpoint, to a checkpoint folder.

    output/
      recipe.json             the resolved recipe
      log.jsonl               a line every few steps
      checkpoint-<steps>/     the newest complete state, from which --resume continues bit for bit (in fp32)
      model/                  the trained model as a checkpoint folder, at the end

A step draws its samples from a random stream of its own (seed, stage, step), so the state is: weights, optimizer,
stage, step. No pickle anywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
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
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from longview.errors import RecipeError
from longview.models import checkpoint as folders
from longview.models.families import families, family_of
from longview.train.data import Pool, paint_pool
from longview.train.objectives import Readers, answers_loss, contents_loss
from longview.train.recipe import Recipe, Stage, from_tree, to_tree
from longview.train.tokenizer import build_tokenizer, save_tokenizer
from longview.world.questions import vocabulary

LOG_EVERY = 10  # steps


def train(recipe: Recipe, output: str | Path, resume: bool = False, progress: bool = True) -> Path:
    """Follow a recipe; returns the folder of the trained model.

    An interrupt (Ctrl-C, SIGTERM) ends the run after the current step, with its state saved.

    Args:
        resume: Continue from the newest checkpoint in `output`; the recipe must be the one that began there.

    Raises:
        RecipeError: `output` holds another run, there is nothing to resume, or the recipe cannot be followed.
    """
    output = Path(output)
    _claim(recipe, output, resume)
    torch.manual_seed(recipe.seed)
    model, processor = open_model(recipe, output / "model")
    run = Run(recipe, output, model, processor)
    state = newest_checkpoint(output) if resume else None
    begin = run.load(state) if state else (0, 0)
    with _bar(progress) as bar, _stop_on_signal() as stopped:
        painting = bar.add_task("painting", total=1.0)
        run.pool = paint_pool(
            recipe.data,
            model.config.picture_size,
            recipe.seed,
            progress=lambda done, total: bar.update(painting, completed=done / total),
        )
        bar.remove_task(painting)
        for number, stage in enumerate(recipe.stages):
            if number >= begin[0] and not run.follow(
                number, stage, begin[1] if number == begin[0] else 0, bar, stopped
            ):
                break
    return export(model, processor, output / "model")


def export(model: PreTrainedModel, processor: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint folder that `longview.load` opens; the model itself keeps its precision."""
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=tensors)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


def export_checkpoint(output: str | Path, folder: str | Path) -> Path:
    """Export the newest checkpoint of a run, which may still be going on."""
    output, folder = Path(output), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (output / "model" / "tokenizer.json").exists():
        shutil.copy(output / "model" / "tokenizer.json", folder)
    recipe = from_tree(json.loads((output / "recipe.json").read_text()))
    state = newest_checkpoint(output)
    if state is None:
        raise RecipeError(f"{output} holds no checkpoint yet; wait for the first one")
    model, processor = open_model(recipe, folder)
    model.load_state_dict(load_file(state / "model.safetensors"), strict=False)
    return export(model, processor, folder)


def open_model(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    """The recipe's model in fp32 and its processor; those of a new model are written to `folder` first."""
    part = recipe.model
    folder.mkdir(parents=True, exist_ok=True)
    if part.start is not None:
        source = folders.resolve(part.start)
        family = family_of(source)
        model = family.Model.from_pretrained(source, dtype=torch.float32, attn_implementation=part.attention)
        processor = family.Processor.from_pretrained(source)
        processor.save_pretrained(folder)
        return model, processor
    known = families()
    if part.family not in known:
        raise RecipeError(f"model.family is {part.family!r}; expected one of {', '.join(known)}")
    family = known[part.family]
    # A resumed run keeps its words, even if the world has learned new ones since.
    kept = folder / "tokenizer.json"
    tokenizer = FastTokenizer.from_file(str(kept)) if kept.exists() else build_tokenizer(vocabulary())
    config = family.Config(vocab_size=tokenizer.get_vocab_size(), **part.config)
    config.eos_token_id = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    config.bos_token_id = None
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder, config.max_position_embeddings)
    (folder / "preprocessor_config.json").write_text(json.dumps(part.processor, indent=2) + "\n")
    model = family.Model._from_config(config, attn_implementation=part.attention, dtype=torch.float32)
    return model, family.Processor.from_pretrained(folder)


@dataclass
class Run:
    """What the steps of a run share."""

    recipe: Recipe
    output: Path
    model: Any
    processor: Any
    pool: Pool | None = None

    def __post_init__(self) -> None:
        self.readers = Readers(self.model.config.hidden_size)
        self.optimizers: list[torch.optim.Optimizer] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._loaded: dict[str, Tensor] = {}

    def follow(self, number: int, stage: Stage, begin: int, bar: Progress, stopped: list[int]) -> bool:
        """Train one stage from step `begin`; False when a signal ended it early."""
        parameters = select_parts(self.model, stage.train)
        parameters |= {f"readers.{name}": parameter for name, parameter in self.readers.named_parameters()}
        blocks = self.model.config.num_hidden_layers
        if stage.probe_layer and stage.probe_layer + 2 > blocks:
            raise RecipeError(
                f"stages.{stage.name}.probe_layer is {stage.probe_layer}, and two blocks must follow it; "
                f"the model has {blocks}"
            )
        self._prepare_optimizers(parameters, stage)
        task = bar.add_task(stage.name, total=stage.steps, completed=begin, loss=float("nan"), rate=0.0)
        losses: list[float] = []
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
        if stage.objective == "contents":
            return contents_loss(self.model, self.readers, self.pool, stage, rng)
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
        unfinished.mkdir()
        # A tied weight has one name here; the model's state_dict would list it under two.
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        save_file(weights, unfinished / "model.safetensors")
        save_file(dict(self.readers.state_dict()), unfinished / "readers.safetensors")
        moments = {
            f"{name}|{key}": value
            for name, parameter in self._parameters.items()
            for optimizer in self.optimizers
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        save_file(moments, unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps({"stage": stage, "step": step}))
        for path in (*unfinished.iterdir(), unfinished):
            _fsync(path)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        _fsync(self.output)
        for old in self.output.glob("checkpoint-*"):
            if old.name < folder.name:
                shutil.rmtree(old)
        return folder

    def load(self, folder: Path) -> tuple[int, int]:
        """Restore a checkpoint; returns the stage and the step at which to go on."""
        self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        self.readers.load_state_dict(load_file(folder / "readers.safetensors"))
        state = json.loads((folder / "state.json").read_text())
        stage, step = state["stage"], state["step"]
        if step == self.recipe.stages[stage].steps:
            return stage + 1, 0
        self._loaded = load_file(folder / "optimizer.safetensors")
        return stage, step

    def _log(self, line: dict[str, Any]) -> None:
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as log:
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


def newest_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint of a run; unfinished ones have other names."""
    return max(output.glob("checkpoint-*"), default=None)


def _claim(recipe: Recipe, output: Path, resume: bool) -> None:
    """Make sure that the folder belongs to this run."""
    resolved = json.dumps(to_tree(recipe), indent=2)
    path = output / "recipe.json"
    if resume:
        if not path.exists():
            raise RecipeError(f"{output} holds no run to resume; leave out --resume to begin one")
        if path.read_text() != resolved:
            raise RecipeError(f"{output} was begun with another recipe; resume with {path}, or choose another folder")
        return
    if path.exists():
        raise RecipeError(f"{output} already holds a run; add --resume to continue it, or choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(resolved)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


__all__ = ["Run", "export", "export_checkpoint", "learning_rate", "newest_checkpoint", "select_parts", "train"]
