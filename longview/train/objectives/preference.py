"""`preference`: Direct Preference Optimisation (DPO, arXiv 2305.18290) on pairs of answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from longview.models import adapters
from longview.train.objectives.base import Notes
from longview.train.objectives.log_probs import answer_log_probs
from longview.train.objectives.of_data import DataBatch, DataObjective


class Preference(DataObjective):
    """DPO's loss, its mean over the pairs of a step.

    Both answers are about the same pictures, which are encoded once for both, and again by the reference only where the
    encoder trains.
    """

    compares = True
    conversations = 2
    titles = {"margin": "margin of chosen over rejected", "preferred": "share of pairs preferred"}  # noqa: RUF012

    def divisor(self, samples: int, learned: int) -> int:
        return samples

    def loss(self, batch: DataBatch) -> tuple[Tensor, Notes]:
        """`margin` is β times how much more than the reference the model prefers the chosen answer."""
        chosen = self.processor.collate([sample.inputs for sample in batch.samples])
        rejected = self.processor.collate([sample.rejected for sample in batch.samples])
        features = encode(self.model, chosen)
        ours = [answer_log_probs(self.model, embed(self.model, each, features)) for each in (chosen, rejected)]
        with torch.no_grad(), self._reference() as reference:
            if self._encoder_trains:
                features = encode(reference, chosen)
            theirs = [answer_log_probs(reference, embed(reference, each, features)) for each in (chosen, rejected)]
        real = torch.tensor([not sample.blank for sample in batch.samples], device=ours[0].device)
        margin = self.settings.beta * ((ours[0] - theirs[0]) - (ours[1] - theirs[1]))[real]
        notes = {"margin": margin.sum().item(), "preferred": (margin > 0).sum().item()}
        return dpo_loss(margin) / batch.divisor, {name: value / batch.divisor for name, value in notes.items()}

    @property
    def _encoder_trains(self) -> bool:
        """Whether features change, so that the reference must encode again; every part but one makes features."""
        return set(self.stage.train) != {"language"}

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        """What preferences are measured against: a model of its own, or this one without its adapter."""
        if self.reference is not None:
            yield self.reference
            return
        with adapters.disabled(self.model):
            yield self.model


def encode(model: Any, batch: Mapping[str, Any]) -> Tensor | None:
    """The features of a batch's pictures, (N, P, D); None where it has none."""
    return model.encode(batch["pixel_values"]) if "pixel_values" in batch else None


def embed(model: Any, batch: Mapping[str, Any], features: Tensor | None) -> dict[str, Any]:
    """A batch as arguments of `forward`, with features of its pictures in place of their pixels."""
    return model.embed_pictures({k: v for k, v in batch.items() if k != "pixel_values"}, features=features)


def dpo_loss(margin: Tensor) -> Tensor:
    """−log σ(margin), summed, of margins (B,). Source: DPO (arXiv 2305.18290), equation 7."""
    return -functional.logsigmoid(margin).sum()
