"""Which parameters learn in a stage, how fast, and by which optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longview.errors import RecipeError
from longview.models import adapters
from longview.train.recipe import Stage


def make_optimizers(
    parameters: Mapping[str, nn.Parameter], stage: Stage, parts: Mapping[str, tuple[str, ...]] | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices between hidden states and AdamW for the rest (embeddings, norms, probes).

    The parts of a model to which the stage gives a share of the learning rate are groups of their own.
    """

    def is_hidden(name: str, parameter: Tensor) -> bool:
        return parameter.dim() == 2 and not any(mark in name for mark in ("embed", "lm_head", "probes."))

    shares: dict[float, dict[str, nn.Parameter]] = {1.0: {}}
    for name, parameter in parameters.items():
        part = next((part for part, marks in (parts or {}).items() if any(mark in name for mark in marks)), "")
        shares.setdefault(stage.rates.get(part, 1.0), {})[name] = parameter
    groups: list[dict[str, Any]] = []
    hidden: list[dict[str, Any]] = []
    for share, some in shares.items():
        matrices = [p for name, p in some.items() if stage.optimizer == "muon" and is_hidden(name, p)]
        taken = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in some.values() if id(parameter) not in taken]
        groups += [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": stage.weight_decay, "share": share},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "share": share},
        ]
        hidden += [{"params": matrices, "share": share}] if matrices else []
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, stage.beta2), fused=True)
    ]
    if hidden:
        # The adjustment gives its steps the size of AdamW's, so that one learning rate serves both.
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=stage.learning_rate, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def state_keys(
    optimizers: Sequence[torch.optim.Optimizer], parameters: Mapping[str, nn.Parameter]
) -> dict[str, set[str]]:
    """What optimizers remember of each parameter that learns, by name."""
    names = {parameter: name for name, parameter in parameters.items()}
    return {
        names[parameter]: {"momentum_buffer"}
        if isinstance(optimizer, torch.optim.Muon)
        else {"step", "exp_avg", "exp_avg_sq"}
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def learning_rate(stage: Stage, step: int, cosine_after_warmup: bool = True, at: float = 0.0) -> float:
    """Linear warm-up, and a cosine to `final_rate` of the peak.

    Args:
        at: The step that the cosine has come to, where time is shorter than the steps.
        cosine_after_warmup: The cosine begins where the warm-up ends, as the published recipes have it; else at once.
    """
    warm = min(1.0, (step + 1) / max(1, stage.warmup))
    begin = min(stage.warmup, stage.steps - 1) if cosine_after_warmup else 0
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - begin, at - begin) / (stage.steps - begin)))
    return stage.learning_rate * warm * (stage.final_rate + (1 - stage.final_rate) * cosine)


def select_parts(model: Any, names: list[str]) -> dict[str, nn.Parameter]:
    """The parameters of the parts a recipe names, or of their adapters where there are any; the others stop learning.

    Raises:
        RecipeError: the model has no such part.
    """
    unknown = [name for name in names if name not in model.parts]
    if unknown:
        raise RecipeError(f"the model has no part {unknown[0]!r}; its parts are {', '.join(model.parts)}")
    chosen = {}
    adapted = any(adapters.MARK in name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        learns = adapters.part_of(model, name) in names and (adapters.MARK in name or not adapted)
        learns = learns and parameter.is_floating_point()  # weights of 4 bits are not, before they get adapters
        parameter.requires_grad_(learns)
        if learns:
            chosen[name] = parameter
    return chosen
