"""`contents` and `places`: what stands in a picture must be readable from its features.

pixels ── encode ── features ── linear probes ── what stands where
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.curriculum.labels import CONTENT_CLASSES, PLACE_CLASSES, SIGN_CLASSES
from longview.curriculum.probes import label_loss
from longview.curriculum.reading import cell_of_print, features_of_cells
from longview.curriculum.siglip import SiglipModel
from longview.curriculum.world import WorldObjective
from longview.train.objectives.base import Notes, PassShape, SampleSizes


class PictureBatch(NamedTuple):
    """Pictures of the pool."""

    indices: list[int]
    looked_at: list[int]
    """More of them, whose text alone is read."""
    number: int = 0


class Contents(WorldObjective):
    """Cross-entropy of what stands in random pictures, read from their features by linear probes.

    One probe reads all places, as a search for "the circle" has to find it anywhere; another reads the mean of the
    features: the sign, and what stands where.
    """

    titles = {"each": "loss of each place", "signs": "loss of signs", "read": "probe: text of pictures"}  # noqa: RUF012

    def describe(self) -> tuple[str, str | None]:
        more = f" and the text of {self.settings.text_probe:,} more" if self.settings.text_probe else ""
        return f"{self.settings.batch:,} pictures{more}", None

    def measure(self, model: Any, processor: Any) -> SampleSizes | None:
        return None if isinstance(model, SiglipModel) else SampleSizes([0], [1], [0])

    def pass_shape(self, tokens: float, pictures: float, learned: float) -> PassShape:
        together = self.settings.batch + self.settings.text_probe
        return PassShape(together, 0, together * pictures, 0, 1)

    def draw(self, rng: random.Random, step: int = 0) -> tuple[PictureBatch, Notes]:
        indices = [rng.randrange(len(self.pool.pixels)) for _ in range(self.settings.batch)]
        looked_at = self.draw_read(rng)
        together = len(indices) + len(looked_at)
        return PictureBatch(indices, looked_at), {"samples": together, "pictures": together}

    def loss(self, batch: PictureBatch) -> tuple[Tensor, Notes]:
        indices = torch.tensor(batch.indices)
        features = self.model.encode(**self.pixels(indices))  # (N, P, D)
        side = math.isqrt(features.shape[1])
        grid = features.transpose(1, 2).unflatten(-1, (side, side))
        places = features_of_cells(grid).unflatten(0, (-1, 9))  # (N, 9, D)
        labels = self.labels(indices)
        held = labels[:, :27].view(-1, 3, 9).transpose(1, 2).flatten(0, 1)  # (N·9, 3)
        features, places = self.normalise(features), self.normalise(places)
        mean = self.probes["mean"](features.mean(1))
        signs = self._loss_of_signs(mean[:, -sum(SIGN_CLASSES) :], labels[:, 27:], batch.indices)
        each = label_loss(self.probes["place"](places.flatten(0, 1)), held, PLACE_CLASSES)
        loss = self.whole_loss(mean, labels) + signs + 9 * each
        noted = {"each": each.item(), "signs": signs.item()}
        if batch.looked_at:
            read = self.text_loss(torch.tensor(batch.looked_at))
            loss, noted = loss + self.settings.text_probe_weight * read, noted | {"read": read.item()}
        return loss, noted

    def _loss_of_signs(self, logits: Tensor, labels: Tensor, indices: list[int]) -> Tensor:
        """Of the mean of the features: the labels of the sign, (N, 4).

        Where two towers learn, small print is left out: the one of low resolution would learn to guess it.
        """
        if self._fine_tower is not None and "vision" in self.stage.train:
            asked = [row for row, index in enumerate(indices) if cell_of_print(self.pool.pictures[index]) is None]
            if not asked:
                return logits.sum() * 0
            logits, labels = logits[asked], labels[asked]
        return label_loss(logits, labels, SIGN_CLASSES)

    def normalise(self, hidden: Tensor) -> Tensor:
        """Features (…, D) as the probes read them."""
        return hidden

    def whole_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the mean of the features: what stands in each place, of labels (N, 31)."""
        classes = CONTENT_CLASSES[:27]
        return label_loss(logits[:, : sum(classes)], labels[:, :27], classes)


class Places(Contents):
    """The same for models that take a picture's places into the language sequence one by one, and normalise them.

    Their order says what stands where, so the mean is held to the sign alone.
    """

    def normalise(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, hidden.shape[-1:])

    def whole_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.new_zeros(())
