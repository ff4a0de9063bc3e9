"""DeepSpeed's ZeRO: optimizer state and gradients are sharded (`zero2`), or the weights as well (`zero3`).

    batches ── engine.forward ── engine.backward, gradients reduce-scattered ── engine.step on shards

DeepSpeed takes the mean over the processes; our loss is divided by the samples of all of them, so gradients must add
up, and the loss is multiplied by the number of processes before the backward pass. Each process has to take part in
each reduction: all have the same number of batches, as with `fsdp2`. Checkpoints hold whole tensors, as everywhere.

What a DeepSpeed JSON may add is offloading, sizes of buckets and the like; what a recipe decides stays with the recipe.
Source: ZeRO (arXiv 1910.02054); DeepSpeed's documentation of its configuration.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import MissingExtraError, RecipeError
from longview.train.distributed import processes
from longview.train.recipe import Recipe, Stage, data_of

STAGES = {"zero2": 2, "zero3": 3}
"""ZeRO's number of what a recipe calls `parallel`."""
PASSED_ON = (
    "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "communication_data_type",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "comms_logger", "aio",
)  # fmt: skip
"""What DeepSpeed gets as its JSON has it."""
DECIDED = {
    "optimizer": "optimizer, learning_rate and weight_decay", "scheduler": "learning_rate, warmup and final_rate",
    "train_batch_size": "data.batch", "train_micro_batch_size_per_gpu": "data.micro_batch",
    "gradient_accumulation_steps": "data.batch and data.micro_batch", "gradient_clipping": "clip_norm",
}  # fmt: skip
"""What stages of a recipe decide, by its names in DeepSpeed's JSON."""
PRECISIONS = ("fp16", "bf16", "amp", "torch_autocast")
MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero:
    """A model and its optimizer as DeepSpeed holds them, for one stage of a recipe."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        loaded: Mapping[str, Tensor],
    ) -> None:
        """Args:
        parameters: What learns, by name.
        loaded: Moments of a checkpoint, whole, named `parameter|key`; empty at the beginning.
        """
        settings = config(recipe, stage)
        self._library = library()
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it builds
            if recipe.parallel == "zero3":  # weight by weight, as all of them may not fit
                self._library.zero.Init(module=model, config_dict_or_path=settings)
            model.to(processes.device())
            self.engine = self._library.initialize(model=_Forward(model), optimizer=optimizer, config=settings)[0]
        self._parameters = parameters
        self._steps = int(max((value.item() for name, value in loaded.items() if name.endswith("|step")), default=0))
        self._has_gradients = False
        self._begin(loaded)

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        """The loss of a batch, which `work` computes from the model."""
        return self.engine(work)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add up the gradients of a batch; with the step's last one they are complete."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * processes.count(), scale_wrt_gas=False)
        self._has_gradients = True

    def step(self) -> float:
        """Clip the gradients and step, where there are any; returns their norm before."""
        if not self._has_gradients:
            return 0.0
        self._has_gradients = False
        self.engine.step()
        self._steps += 1
        return float(self.engine.get_global_grad_norm())

    def weights(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Weights, whole, in the first process; the others get none, and must call it, too."""
        found = {}
        for name, parameter in weights.items():
            with self._library.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if processes.is_first():
                    found[name] = parameter.detach().cpu().clone()
        return found

    def moments(self) -> dict[str, Tensor]:
        """What the optimizer remembers, whole, in the first process, named `parameter|key`.

        Nothing of parameters that never got a gradient: ZeRO knows no difference between none and 0.
        """
        found: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            whole = {key: self._library.utils.safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if processes.is_first() and whole["exp_avg_sq"].any():
                found |= {f"{name}|{key}": moment.cpu() for key, moment in whole.items()}
                found[f"{name}|step"] = torch.tensor(float(self._steps))
        return found

    def _begin(self, loaded: Mapping[str, Tensor]) -> None:
        """Let the optimizer remember what a checkpoint held, or nothing yet.

        It has a flat tensor for many parameters, whose state would come about with the first step.
        """
        zero = self.engine.optimizer
        shares = "fp32_partitioned_groups_flat" if hasattr(zero, "fp32_partitioned_groups_flat") else None
        for share in getattr(zero, shares or "single_partition_of_fp32_groups"):
            state = {key: torch.zeros_like(share, requires_grad=False) for key in MOMENTS}
            zero.optimizer.state[share] = {"step": torch.tensor(float(self._steps), device=share.device)} | state
        if shares is None:
            zero._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._parameters.items():
            for key in MOMENTS:
                if f"{name}|{key}" in loaded:
                    self._set(parameter, key, loaded[f"{name}|{key}"].to(processes.device()))

    def _set(self, parameter: Any, key: str, value: Tensor) -> None:
        """Let the optimizer remember a whole moment of a parameter.

        ZeRO-3 gets this process's part of it: given all, it cannot cut what has no equal parts.
        """
        utils = self._library.utils
        if not hasattr(parameter, "ds_id"):
            utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        size, begin = parameter.partition_numel(), parameter.partition_numel() * processes.rank()
        part = value.flatten()[begin : begin + size]
        utils.safe_set_local_optimizer_state(parameter, functional.pad(part, (0, size - len(part))), key)


def library() -> Any:
    """DeepSpeed, with its device type set before it detects one and prints so."""
    os.environ.setdefault("DS_ACCELERATOR", processes.device().type)
    import deepspeed

    return deepspeed


class _Forward(nn.Module):
    """A module around the model whose forward pass is any computation with the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Tensor]) -> Tensor:
        return work()


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def config(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """DeepSpeed's settings for a stage: those of the recipe's `deepspeed`, and what the recipe decides."""
    own = read_settings(recipe)
    data = data_of(stage)
    batches = -(-data.batch // (1 if data.pack else data.micro_batch))
    return own | {
        "train_micro_batch_size_per_gpu": 1,  # a batch
        "gradient_accumulation_steps": -(
            -batches // processes.count()
        ),  # at most: `backward` is told which is the last
        "gradient_clipping": stage.clip_norm,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": own.get("zero_optimization", {}) | {"stage": STAGES[recipe.parallel]},
    }


def read_settings(recipe: Recipe) -> dict[str, Any]:
    """What the JSON that a recipe names says, but for "auto", which leaves it to the recipe.

    Raises:
        RecipeError: it cannot be read, or contradicts the recipe.
    """
    if recipe.deepspeed is None:
        return {}
    path = recipe.deepspeed
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:200]
        raise RecipeError(f"deepspeed {path} cannot be read ({reason}); give a DeepSpeed config in JSON") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"deepspeed {path} holds no object; give a DeepSpeed config in JSON")
    settings = _without_auto(tree)
    for key in list(settings):
        if key in DECIDED:
            raise RecipeError(f"{path} has {key}, which stages decide by {DECIDED[key]}; take it out, or write 'auto'")
        if key in PRECISIONS:
            part = settings.pop(key)
            if not isinstance(part, dict) or part.get("enabled"):
                raise RecipeError(f"{path} has {key}, which model.dtype decides; take it out, or write 'auto'")
        elif key not in PASSED_ON:
            near = difflib.get_close_matches(key, PASSED_ON, n=1, cutoff=0)[0]
            raise RecipeError(f"{path} has {key!r}, which is not passed on; the nearest key that is: {near!r}")
    zero = settings.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise RecipeError(f"{path}: zero_optimization is {zero!r:.60}; expected an object")
    if zero.get("stage", STAGES[recipe.parallel]) != STAGES[recipe.parallel]:
        raise RecipeError(f"{path}: zero_optimization.stage is {zero['stage']}, and parallel is {recipe.parallel}")
    for key in ("offload_optimizer", "offload_param"):
        where = zero.get(key) or {}
        if not isinstance(where, dict) or where.get("device") not in (None, "none", "cpu"):
            raise RecipeError(f"{path}: zero_optimization.{key} is {where!r:.60}; its device may be cpu or none")
    if settings.get("zero_force_ds_cpu_optimizer"):
        raise RecipeError(f"{path} has zero_force_ds_cpu_optimizer; the optimizer is the recipe's: take it out")
    return settings


def _without_auto(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {key: _without_auto(value) for key, value in tree.items() if value != "auto"}


def check_settings(recipe: Recipe) -> None:
    """Make sure that a recipe's `deepspeed` means something.

    Raises:
        RecipeError: it does not, or contradicts the recipe.
    """
    if recipe.parallel in STAGES:
        read_settings(recipe)
    elif recipe.deepspeed is not None:
        raise RecipeError(f"deepspeed means nothing to parallel {recipe.parallel!r}; take zero2 or zero3")


def check(recipe: Recipe) -> None:
    """Make sure that DeepSpeed can follow a recipe here.

    Raises:
        RecipeError: says what it cannot do.
        MissingExtraError: DeepSpeed is not installed.
    """
    if len(recipe.stages) > 1:
        raise RecipeError(f"parallel {recipe.parallel!r} is for one stage, and there are {len(recipe.stages)}; "
                          "give each a recipe of its own, or take fsdp2")  # fmt: skip
    if recipe.stages[0].optimizer != "adamw":
        raise RecipeError(
            f"stages.{recipe.stages[0].name}.optimizer 'muon' needs whole matrices; take adamw, or parallel=ddp"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError(f"parallel {recipe.parallel!r}", "deepspeed")
    known = library().runtime.zero.config.DeepSpeedZeroConfig
    try:
        known(**config(recipe, recipe.stages[0])["zero_optimization"])
    except ValueError as error:  # pydantic's
        raise RecipeError(f"{recipe.deepspeed}: zero_optimization: {' '.join(str(error).split())[:300]}") from error
