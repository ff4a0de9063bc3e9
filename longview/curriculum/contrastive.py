"""`contrastive`: two towers learn which pictures a text fits, by SigLIP's pairwise sigmoid loss on the synthetic world.

Each text is drawn for one picture of the batch and, the world being known, held against all others: "a red circle" fits
every picture with a red circle, so pairs that are right are not taken for wrong.

Source: arXiv 2303.15343.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from longview.curriculum.siglip import SiglipModel
from longview.curriculum.world import WorldObjective
from longview.errors import RecipeError
from longview.train.objectives.base import Notes, PassShape
from longview.world.naming import draw_text, facts_held, facts_named
from longview.world.scenes import Picture


class TextBatch(NamedTuple):
    """Pictures of the pool, and a text about each."""

    indices: list[int]
    texts: list[str]
    input_ids: Tensor
    number: int = 0


class Contrastive(WorldObjective):
    """The sigmoid loss of a batch of pictures and as many texts, summed over the pictures of each text."""

    titles = {"fit": "share of texts that fit", "found": "share of texts whose best picture fits"}  # noqa: RUF012

    def describe(self) -> tuple[str, str | None]:
        return f"{self.settings.batch:,} pictures", None

    def check_model(self, model: Any, processor: Any) -> None:
        if not isinstance(model, SiglipModel):
            raise RecipeError(f"stages.{self.stage.name}.objective 'contrastive' does not fit this model: it takes two "
                              "towers (family siglip)")  # fmt: skip

    def pass_shape(self, tokens: float, pictures: float, learned: float) -> PassShape:
        return PassShape(self.settings.batch, 0, self.settings.batch * pictures, 0, 1)

    def draw(self, rng: random.Random, step: int = 0) -> tuple[TextBatch, Notes]:
        indices = [rng.randrange(self.pool.stills) for _ in range(self.settings.batch)]
        texts = [draw_text(rng, self.pool.pictures[index]) for index in indices]
        ids = self.processor.texts(texts)
        return TextBatch(indices, texts, ids), {"samples": len(texts), "tokens": ids.numel(), "pictures": len(indices)}

    def loss(self, batch: TextBatch) -> tuple[Tensor, Notes]:
        device = self.model.device
        fits = torch.tensor(fit(batch.texts, [self.pool.pictures[index] for index in batch.indices]), device=device)
        pixels = self.pixels(torch.tensor(batch.indices))
        output = self.model(input_ids=batch.input_ids.to(device), **pixels)  # logits (texts, pictures)
        loss = -functional.logsigmoid(torch.where(fits, 1.0, -1.0) * output.logits_per_text).sum(-1).mean()
        found = fits.gather(1, output.logits_per_text.argmax(-1, keepdim=True)).float().mean()
        return loss, {"fit": round(fits.float().mean().item(), 3), "found": round(found.item(), 3)}


def fit(texts: Sequence[str], pictures: Sequence[Picture]) -> list[list[bool]]:
    """Which texts fit which pictures, (texts, pictures)."""
    held = [facts_held(picture) for picture in pictures]
    return [[named <= facts for facts in held] for named in map(facts_named, texts)]
