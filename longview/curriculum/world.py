"""What objectives of the synthetic world share: the painted pool, features of its pictures, and the linear probes.

Step s of a stage draws from its own random stream (seed, stage, step), so that a resumed run sees what an unbroken one
would have.
"""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from longview.curriculum.ahead import Ahead, RememberingTokenizer
from longview.curriculum.labels import SIGN_CLASSES
from longview.curriculum.pool import Pool, Views, paint_pool
from longview.curriculum.probes import LinearProbes, label_loss
from longview.curriculum.reading import cell_of_print, crops_that_meet, features_of_cells, side_by_side
from longview.curriculum.settings import PoolSettings, WorldSettings
from longview.errors import RecipeError
from longview.media.medium import Frame, Medium
from longview.messages import Message, Part, Progress
from longview.train.objectives.base import Notes, Objective
from longview.train.recipe import Recipe
from longview.world.render import SIDE
from longview.world.scenes import Picture

ENCODED = 64  # pictures at a time
ENCODED_TOGETHER = 4096
"""Pictures that pass the encoder at a time in training: more than the model's own setting, where there is a GPU."""
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
        self.pixels: Tensor | None = None
        """Of the pool's pictures, whole ones (N, 3, R, R) uint8 on the device of the model, once they are needed."""
        self.close: Tensor | None = None
        """Of its close pictures, likewise (M, crops, 3, R, R)."""
        self.labels: Tensor | None = None

    def paint(self, side: int, processor: Any, workers: int, progress: Progress) -> None:
        """Paint the pool, once.

        Args:
            side: Of the pictures, in pixels.
            workers: Processes that paint; 0: this one.

        Raises:
            RecipeError: no picture is as simple as a stage wants it.
        """
        if self.pool is not None:
            return
        settings = pool_settings(self.recipe)
        unseen = all(stage.world is None or stage.objective == "words" for stage in self.recipe.stages)
        views = family_views(processor)
        self.pool = paint_pool(settings, 0 if unseen else side, self.recipe.seed, False, progress, views, workers)
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
        self._ahead: Ahead | None = None

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
            worlds = [stage.world for stage in self.recipe.stages if isinstance(stage.world, WorldSettings)]
            most = max(world.most for world in worlds)
            width, fine = model.config.get_text_config().hidden_size, getattr(model.config, "vision_aux_config", None)
            probes = LinearProbes(width, most, sum(fine.hidden_sizes) if fine is not None else 0)
            self.world.probes = probes.to(model.device)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"probes": self.probes}

    def prepare(self, progress: Progress) -> None:
        self.world.paint(self.model.config.picture_size, self.processor, self.workers, progress)
        where = f"stages.{self.stage.name}.world.text_probe"
        if self.settings.text_probe and self._fine_tower is not None:
            if self.settings.text_probe < 9:
                raise RecipeError(
                    f"{where} is {self.settings.text_probe}; with two towers, nine pictures are read together: give 9 "
                    "or more, or 0"
                )
            if not self.pool.printed:
                raise RecipeError(f"{where} reads small print, and no picture holds any; raise pool.prints")

    def begin(self, progress: Progress) -> None:
        self.world.features = None

    def end(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def batches(self, step: int) -> tuple[list[Any], Notes]:
        if not self.workers:
            batch, counts = self._draw(step)
            return [batch], counts
        if self._ahead is None:
            self._ahead = Ahead(self._draw, step, self.workers, self._remember)
        batch, counts = self._ahead.next(step)
        return [batch], counts

    def _draw(self, step: int) -> tuple[Any, Notes]:
        return self.draw(random.Random(f"{self.recipe.seed} {self.stage.name} {step}"), step)

    def _remember(self) -> None:
        """In a process that makes batches alone: encode each text once."""
        self.processor.tokenizer = RememberingTokenizer(self.processor.tokenizer)

    def pixels(self, indices: Tensor, shift: int = 0) -> dict[str, Tensor]:
        """Pictures of the pool as the arguments of the model's `encode`: all whole, or all close, with their crops.

        Args:
            shift: Move each by up to so many pixels, at random; with crops, before it is cut.
        """
        return {"pixel_values": self._shaded(self._views(indices, shift).flatten(0, 1))}

    def draw_read(self, rng: random.Random) -> list[int]:
        """Pictures of the pool whose text a probe reads: with two towers, nine or more that hold small print; otherwise
        close ones, where there are any.
        """
        count = self.settings.text_probe
        if self._fine_tower is not None:
            return [rng.choice(self.pool.printed) for _ in range(count // 9 * 9)]
        end = len(self.pool.pictures)
        begin, end = (self.pool.first_close, end) if self.pool.first_close < end else (0, self.pool.stills)
        return [rng.randrange(begin, end) for _ in range(count)]

    def text_loss(self, indices: Tensor, probes_alone: bool = False) -> Tensor:
        """Of pictures that `draw_read` drew: the classes of their text, read by a probe, see `reading`.

        Args:
            probes_alone: The features learn nothing of it.
        """
        views, name = self._views(indices, self.settings.shift), "mean"
        with encoding_together(self.model):
            if self._fine_tower is not None:
                cells = [cell_of_print(self.pool.pictures[index]) or 0 for index in indices.tolist()]
                fine = self._fine_tower(self._shaded(side_by_side(views[:, 0], cells)))
                cells_read = features_of_cells(fine.detach() if probes_alone else fine)
                hidden, name = functional.rms_norm(cells_read, cells_read.shape[-1:]), "fine"
            else:
                hidden = self._means_of_text(views, indices.tolist(), probes_alone)
        logits = self.probes[name](hidden)[:, -sum(SIGN_CLASSES) :]
        return label_loss(logits, self.labels(indices)[:, 27:], SIGN_CLASSES)

    def _means_of_text(self, views: Tensor, indices: Sequence[int], probes_alone: bool) -> Tensor:
        """The mean of the features of those of the views (N, V, 3, R, R) that show a picture's text, (N, D)."""
        shown = [self._views_of_text(self.pool.pictures[index], views.shape[1]) for index in indices]
        rows = torch.tensor([row for row, some in enumerate(shown) for _ in some], device=views.device)
        chosen = views[rows, torch.tensor([view for some in shown for view in some], device=views.device)]
        features = self.model.encode(self._shaded(chosen))  # (K, P, D)
        features = features.detach() if probes_alone else features
        means = functional.rms_norm(features, features.shape[-1:]).mean(1)
        counts = torch.tensor([len(some) for some in shown], device=means.device)
        return means.new_zeros(len(shown), means.shape[-1]).index_add(0, rows, means) / counts[:, None]

    def _views_of_text(self, picture: Picture, count: int) -> list[int]:
        """Which of so many views of a picture show its text: crops, or the one that shows all of it."""
        if count == 1:
            return [0]
        cell = cell_of_print(picture)
        if cell is None:
            return [self._whole_view]
        crops = [view for view in range(count) if view != self._whole_view]
        return [crops[crop] for crop in crops_that_meet(cell, len(crops))]

    @property
    def _fine_tower(self) -> Any:
        """The tower of high resolution of a family that has two."""
        return getattr(self.model, "vision_tower_aux", None)

    def _views(self, indices: Tensor, shift: int) -> Tensor:
        """Pictures of the pool, all whole or all close, as their views (N, V, 3, R, R) uint8."""
        pool, device = self.pool, self.model.device
        if len(indices) and int(indices[0]) >= pool.first_close:
            if self.world.close is None:
                self.world.close = torch.from_numpy(pool.close).to(device)
            chosen = self.world.close[indices.to(device) - pool.first_close]
            return shifted_crops(chosen, self._whole_view, shift) if shift else chosen
        if self.world.pixels is None:
            self.world.pixels = torch.from_numpy(pool.pixels).to(device)
        chosen = self.world.pixels[indices.to(device)].permute(0, 3, 1, 2)
        return (shifted(chosen, shift) if shift else chosen)[:, None]

    def _shaded(self, views: Tensor) -> Tensor:
        """Pixels (N, 3, R, R) uint8 as the family's tower takes them."""
        table = self._shades.to(views.device)  # (3, 256)
        return torch.stack([table[channel][views[:, channel].long()] for channel in range(3)], 1)

    @functools.cached_property
    def _shades(self) -> Tensor:
        """What the family makes of each value of a pixel, (3, 256)."""
        return shades(self.processor, self.model.config.picture_size)

    @functools.cached_property
    def _whole_view(self) -> int:
        """Which of the views of a close picture shows all of it: the one that holds most of a gradient's shades."""
        views = family_views(self.processor)
        assert views is not None, "only families that cut pictures have close ones"
        gradient = views(Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB"))
        return int(np.ptp(gradient.astype(int), axis=(1, 2, 3)).argmax())

    def labels(self, indices: Tensor) -> Tensor:
        """What stands in pictures of the pool, (N, 31), on the device of the model."""
        if self.world.labels is None:
            self.world.labels = self.pool.labels.to(self.model.device)
        return self.world.labels[indices.to(self.model.device)]

    def draw(self, rng: random.Random, step: int = 0) -> tuple[Any, Notes]:
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


def shifted(images: Tensor, most: int) -> Tensor:
    """Pictures (N, C, H, W), each moved by up to `most` pixels in both directions; its edges are repeated."""
    for dim in (2, 3):
        size = images.shape[dim]
        by = torch.randint(-most, most + 1, (len(images), 1)).to(images.device)  # drawn on the CPU, as elsewhere
        index = (torch.arange(size, device=images.device) + by).clamp(0, size - 1)
        index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
        images = images.gather(dim, index.expand_as(images))
    return images


def shifted_crops(views: Tensor, whole: int, most: int) -> Tensor:
    """The same of pictures in views (N, V, C, R, R), a square grid of crops and the whole; the latter stays."""
    count, side = views.shape[1], views.shape[-1]
    crops = [number for number in range(count) if number != whole]
    rows = math.isqrt(len(crops))
    canvas = views[:, crops].unflatten(1, (rows, rows)).permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)
    moved = shifted(canvas, most).unflatten(3, (rows, side)).unflatten(2, (rows, side))  # (N, C, rows, R, rows, R)
    found = views.clone()
    found[:, crops] = moved.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    return found


@contextlib.contextmanager
def encoding_together(model: Any) -> Iterator[None]:
    """Let a model on a GPU encode many pictures at a time, for as long as that is trained; few make it wait."""
    config = model.config
    if model.device.type == "cpu" or not hasattr(config, "vision_batch_size"):
        yield
        return
    before, config.vision_batch_size = config.vision_batch_size, max(config.vision_batch_size, ENCODED_TOGETHER)
    try:
        yield
    finally:
        config.vision_batch_size = before


def shades(processor: Any, side: int) -> Tensor:
    """What a family makes of each value of a pixel, (3, 256), in pictures that have its own size already."""
    plain = [Image.new("RGB", (side, side), (value, value, value)) for value in range(256)]
    return processor.pixel_inputs(plain)["pixel_values"][:, :, 0, 0].T.contiguous()


def family_views(processor: Any) -> Views | None:
    """How a family cuts a single picture, in the order in which it encodes the crops; None: it does not."""
    if not getattr(processor, "crop_settings", ()):
        return None
    low, high = shades(processor, processor.config.picture_size)[:, [0, 255], None, None].unbind(1)

    def views(image: Image.Image) -> np.ndarray:
        frame = Frame(image, 0, None)
        medium = Medium("image", "world", [frame], image.width, image.height, 1, None, None, digest="")
        inputs = processor.prepare([Message.of("user", Part("image"))], [medium])
        pixels = inputs.load_pixels()["pixel_values"]
        return ((pixels - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8).numpy()

    return views
