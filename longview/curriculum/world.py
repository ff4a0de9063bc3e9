"""What objectives of the synthetic world share: the painted pool, features of its pictures, and the linear probes.

Step s of a stage draws from its own random stream (seed, stage, step), so that a resumed run sees what an unbroken one
would have.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longview.curriculum.pool import Pool, paint_pool
from longview.curriculum.probes import LinearProbes
from longview.curriculum.settings import PoolSettings, WorldSettings
from longview.errors import RecipeError
from longview.messages import Progress
from longview.train.objectives.base import Notes, Objective
from longview.train.recipe import Recipe

ENCODED = 64  # pictures at a time
ENCODER = {"vision", "connector"}
"""Parts of a model that make features of pictures; where none of them learns, each picture is encoded once."""


class SharedWorld:
    """What the stages of a run over the synthetic world have in common."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.pool: Pool | None = None
        self.features: Tensor | None = None
        """Of the pool's pictures, (N, P, D), while the encoder does not learn."""
        self.probes: LinearProbes | None = None

    def paint(self, side: int, progress: Progress) -> None:
        """Paint the pool, once.

        Args:
            side: Of the pictures, in pixels.

        Raises:
            RecipeError: no picture is as simple as a stage wants it.
        """
        if self.pool is not None:
            return
        settings = pool_settings(self.recipe)
        unseen = all(stage.world is None or stage.objective == "words" for stage in self.recipe.stages)
        self.pool = paint_pool(settings, 0 if unseen else side, self.recipe.seed, progress=progress)
        if not self.pool.simple and any(stage.world and stage.world.simple > 0 for stage in self.recipe.stages):
            raise RecipeError(
                f"a stage wants pictures that hold one thing (simple), and none of pool.pictures={settings.pictures} "
                f"does with pool.simple={settings.simple}; raise either"
            )


class WorldObjective(Objective):
    """One stage over the synthetic world."""

    runs_anywhere = False
    cosine_after_warmup = False

    def __init__(self, recipe: Recipe, number: int, earlier: Sequence[Objective] = ()) -> None:
        super().__init__(recipe, number, earlier)
        assert isinstance(self.stage.world, WorldSettings), "an objective of the world is named in a stage with world"
        self.settings: WorldSettings = self.stage.world
        shared = (each.world for each in earlier if isinstance(each, WorldObjective))
        self.world: SharedWorld = next(shared, None) or SharedWorld(recipe)

    @property
    def pool(self) -> Pool:
        assert self.world.pool is not None, "the pool is painted before the first step"
        return self.world.pool

    @property
    def probes(self) -> LinearProbes:
        assert self.world.probes is not None, "probes are made for the model that they read"
        return self.world.probes

    @property
    def encodes(self) -> bool:
        return bool(ENCODER & set(self.stage.train))

    def attach(self, model: Any, processor: Any, output: Path, reference: Any = None) -> None:
        super().attach(model, processor, output, reference)
        if self.world.probes is None:
            self.world.probes = LinearProbes(model.config.get_text_config().hidden_size)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"probes": self.probes}

    def prepare(self, progress: Progress) -> None:
        self.world.paint(self.model.config.picture_size, progress)

    def begin(self, progress: Progress) -> None:
        self.world.features = None

    def batches(self, step: int) -> tuple[list[Any], Notes]:
        batch, counts = self.draw(random.Random(f"{self.recipe.seed} {self.stage.name} {step}"))
        return [batch], counts

    def draw(self, rng: random.Random) -> tuple[Any, Notes]:
        """The one batch of a step, and what it holds."""
        raise NotImplementedError


def pool_settings(recipe: Recipe) -> PoolSettings:
    """How a recipe paints its pool."""
    return recipe.pool or PoolSettings()


@torch.no_grad()
def encode_pool(model: Any, processor: Any, pool: Pool, progress: Progress) -> Tensor:
    """The features of all pictures of a pool, (N, P, D)."""
    features: list[Tensor] = []
    for begin in range(0, len(pool.pixels), ENCODED):
        progress(begin, len(pool.pixels), "encoding the pool")
        images = [pool.image(index) for index in range(begin, min(begin + ENCODED, len(pool.pixels)))]
        features.append(model.encode(**processor.pixel_inputs(images)))
    progress(len(pool.pixels), len(pool.pixels), "encoding the pool")
    return torch.cat(features)
