"""How Ovis2 cuts a picture: the grid of crops that covers it best, and each crop fitted into a square of pixels.

picture ── choose_grid ── (rows, columns) ── crops ── fit ── (n, 3, R, R), the whole picture first
                                  └── placeholders ── the ids that stand for it: `[ ▣ thumbnail ▣ │ ▣ ]`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longview.errors import RequestError
from longview.models.ovis2.fusion import BEGIN, COLUMN, END, PLACEHOLDER, ROW, THUMBNAIL
from longview.models.tiling import resize

COVERED = 0.9
"""Share of a picture's area that its crops must keep for a smaller number of them to be preferred."""
WHOLE = (1, 1)
"""The grid of a picture that is not cut; frames of videos never are."""

Grid = tuple[int, int]
"""Rows and columns of crops."""
Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels."""


def boxes(width: int, height: int, rows: int, columns: int) -> list[Box]:
    """Cut a picture into crops, row after row; what does not divide evenly goes to the last ones."""
    high, wide = height // rows, width // columns
    return [
        (
            column * wide,
            row * high,
            width if column + 1 == columns else (column + 1) * wide,
            height if row + 1 == rows else (row + 1) * high,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def covered(width: int, height: int, rows: int, columns: int, side: int) -> float:
    """How much of a picture's area its crops still hold after each was fitted into a square of `side` pixels.

    A crop that is enlarged gains nothing.
    """
    area = 0.0
    for left, upper, right, lower in boxes(width, height, rows, columns):
        longer, shorter = sorted((right - left, lower - upper), reverse=True)
        area += shorter / longer * side * side if longer > side else longer * shorter
    return area / (width * height)


def choose_grid(width: int, height: int, side: int, max_partition: int) -> Grid:
    """The grid of at most `max_partition` crops: the fewest that cover enough, or those that cover most."""
    grids = [
        (rows, columns)
        for rows in range(1, max_partition + 1)
        for columns in range(1, max_partition + 1)
        if rows * columns <= max_partition
    ]
    if not grids:
        raise RequestError(f"max_partition is {max_partition!r}; a picture needs at least 1 crop")
    share = {grid: covered(width, height, *grid, side) for grid in grids}
    enough = [grid for grid in grids if share[grid] > COVERED]
    if enough:
        return min(enough, key=lambda grid: (grid[0] * grid[1], -share[grid]))
    return min(grids, key=lambda grid: (-share[grid], grid[0] * grid[1]))


def placeholders(rows: int, columns: int) -> list[int]:
    """The ids of a picture of rows · columns crops: 2 × 2 is `[ ▣ thumbnail ▣ │ ▣ ─ ▣ │ ▣ ]`."""
    ids = [BEGIN, PLACEHOLDER, THUMBNAIL]
    if rows * columns > 1:
        for row in range(rows):
            ids += [ROW] * (row > 0) + [PLACEHOLDER] + [COLUMN, PLACEHOLDER] * (columns - 1)
    return [*ids, END]


class ImageSettings(NamedTuple):
    """How a crop becomes numbers: the fields of preprocessor_config.json that the authors' code reads."""

    side: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    resample: int = 3  # bicubic, as PIL numbers them
    rescale_factor: float = 0.00392156862745098

    @classmethod
    def of(cls, settings: Mapping[str, Any], kind: str) -> ImageSettings:
        """From the fields of the file, for a kind of tower."""
        size = settings.get("size" if kind == "siglip" else "crop_size") or settings["size"]
        return cls(
            side=size if isinstance(size, int) else size.get("height") or size["shortest_edge"],
            mean=tuple(settings.get("image_mean", cls._field_defaults["mean"])),
            std=tuple(settings.get("image_std", cls._field_defaults["std"])),
            resample=settings.get("resample", 3),
            rescale_factor=settings.get("rescale_factor", cls._field_defaults["rescale_factor"]),
        )

    def as_dict(self, kind: str) -> dict[str, Any]:
        """The same file again."""
        square = {"height": self.side, "width": self.side}
        return {
            "crop_size": square,
            "do_center_crop": False,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "SiglipImageProcessor" if kind == "siglip" else "CLIPImageProcessor",
            "image_std": list(self.std),
            "resample": self.resample,
            "rescale_factor": self.rescale_factor,
            "size": square if kind == "siglip" else {"shortest_edge": self.side},
        }

    def crops(self, image: Image.Image, grid: Grid) -> list[Tensor]:
        """The whole picture, and its crops if it is cut: (3, side, side) each."""
        image = image.convert("RGB")
        views = [image]
        if grid != WHOLE:
            views += [image.crop(box) for box in boxes(*image.size, *grid)]
        return [self.fit(view) for view in views]

    def fit(self, image: Image.Image) -> Tensor:
        """A crop of any mode → (3, side, side): its longer side fills the square, the rest is the mean colour.

        Raises:
            RequestError: it is so narrow that nothing would be left of it.
        """
        image = image.convert("RGB")
        left, upper, right, lower = self.fitted(*image.size)
        if right == left or lower == upper:
            raise RequestError(
                f"a crop of {image.width} × {image.height} pixels has no width left when it is fitted into "
                f"{self.side} × {self.side}; cut the picture into parts that are less narrow"
            )
        resized = resize(image, (right - left, lower - upper), self.resample)
        pixels: Any = (np.asarray(resized) * self.rescale_factor).astype(np.float32)  # scaled in fp64, as numpy 2 does
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        canvas = np.zeros((3, self.side, self.side), np.float32)
        canvas[:, upper:lower, left:right] = pixels.transpose(2, 0, 1)
        return torch.from_numpy(canvas)

    def fitted(self, width: int, height: int) -> Box:
        """Where in the square of `side` pixels a crop of this size is; of width or height 0 where it is too narrow."""
        longer, shorter = max(width, height), min(width, height)
        other = int(shorter / longer * self.side) if longer != shorter else self.side
        wide, high = (self.side, other) if width == longer else (other, self.side)
        left, upper = (self.side - wide) // 2, (self.side - high) // 2
        return left, upper, left + wide, upper + high
