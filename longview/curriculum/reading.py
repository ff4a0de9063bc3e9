"""The text of pictures, which a linear probe reads from features of the pixels that show it.

pictures in crops, close ones     the crops that meet the small print              mean of their features
two towers                        cells with small print, nine as one picture      fine features of each cell
otherwise                         whole pictures                                   mean of their features
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from longview.world.scenes import Picture


def cell_of_print(picture: Picture) -> int | None:
    """The cell of the 3 × 3 that holds a picture's small print."""
    return picture.sign.cell if picture.sign is not None else None


def crops_that_meet(cell: int, count: int) -> list[int]:
    """Which of so many crops of a picture, a square grid row after row, meet a cell of its 3 × 3."""
    rows = math.isqrt(count)
    down, across = (
        [crop for crop in range(rows) if crop * 3 < (place + 1) * rows and place * rows < (crop + 1) * 3]
        for place in divmod(cell, 3)
    )
    return [row * rows + column for row in down for column in across]


def side_by_side(pictures: Tensor, cells: Sequence[int]) -> Tensor:
    """One of the 3 × 3 cells of each picture, nine cells as one picture: (9n, C, R, R) → (n, C, R, R)."""
    side = pictures.shape[-1] // 3
    parts = [
        picture[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for picture, (row, column) in zip(pictures, (divmod(cell, 3) for cell in cells), strict=True)
    ]
    grid = torch.stack(parts).unflatten(0, (-1, 3, 3))  # (n, 3, 3, C, r, r)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def features_of_cells(fine: Tensor) -> Tensor:
    """Features (n, C, M, M) → the mean of each of 3 × 3 cells, row after row, (9n, C)."""
    return functional.adaptive_avg_pool2d(fine, 3).flatten(2).transpose(1, 2).flatten(0, 1)
