"""The idea of MGM: patch info mining. Each coarse patch attends to the fine features of its own place.

    low-resolution features   Q (n, p, C)       p = N × N patches, one query each
    high-resolution features  F (n, Ca, M, M)   M = m · N, so that m × m of them lie under each patch

        q = Linear(LN(Q))        query 1 ── softmax over its window ── + ── Q'     ┌───┬───┐ query 1 attends to the
        k = Linear(LN(W))        q₁·k / √C              · v            Q           │ 1 │ 2 │ window at its own place
        v = Linear(LN(W))                                                          ├───┼───┤ and to nothing else: no
                                                                                   │ 3 │ 4 │ mask, W is cut that way
                                                                                   └───┴───┘

One head, no output projection; what is mined is added to the query's own feature. So a picture gives as many tokens as
its coarse patches, whatever the high resolution. In HD the low-resolution tower encodes the whole picture and its four
quarters, and each of them mines its own quadrant of one map of fine features:

    the whole ── F shrunk to a half        quarter (r, c) ── quadrant (r, c) of F
    tokens: [whole | quarter (0,0) | (0,1) | (1,0) | (1,1)], each row after row

Source: the Mini-Gemini paper (arXiv 2403.18814), sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from longview.errors import CheckpointError


def resized(images: Tensor, side: int) -> Tensor:
    """(n, c, H, W) → (n, c, side, side): bilinear between pixel centres, in fp32, without antialiasing, as trained."""
    if images.shape[-2:] == (side, side):
        return images
    found = functional.interpolate(images.float(), size=(side, side), mode="bilinear", align_corners=False)
    return found.to(images.dtype)


def grid_cells(images: Tensor, grid: int) -> Tensor:
    """(n, c, H, W) → (n, grid², c, H / grid, W / grid), row after row."""
    rows = images.unflatten(-2, (grid, -1)).unflatten(-1, (grid, -1))  # (n, c, grid, h, grid, w)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def small_views(large: Tensor, side: int, grid: int) -> Tensor:
    """Large pictures (n, 3, S, S) → views of them for the low-resolution tower, in the form of the authors' `images`.

    That is (n, 3, side, side); or, of a grid of crops, (n, grid² + 1, 3, side, side), the whole picture last.
    """
    small = resized(large, side * grid)
    if grid == 1:
        return small
    return torch.cat([grid_cells(small, grid), resized(small, side).unsqueeze(1)], dim=1)


def windows(features: Tensor, side: int) -> Tensor:
    """(n, Ca, M, M) → (n, side², m², Ca): the fine features under each patch of a grid of `side` × `side`."""
    if features.shape[-1] % side or features.shape[-2] % side:
        raise CheckpointError(
            f"{features.shape[-2]} × {features.shape[-1]} fine features do not divide among {side} × {side} patches; "
            "image_size_aux in config.json must be a multiple of what both towers need"
        )
    return grid_cells(features, side).flatten(3).transpose(2, 3)


def _projection(width: int, into: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, into))


class PatchInfoMining(nn.Module):
    """Coarse features attend to fine ones. Arguments are the widths of both: C and Ca."""

    def __init__(self, width: int, fine_width: int) -> None:
        super().__init__()
        self.query = _projection(width, width)
        self.key = _projection(fine_width, width)
        self.value = _projection(fine_width, width)

    def forward(self, coarse: Tensor, fine: Tensor, details: list[Tensor] | None = None) -> Tensor:
        """Coarse features (n, p, C) and fine ones (n, Ca, M, M) → what was mined, (n, p, C), to be added to the former.

        Args:
            details: Gets how each query weighs its window, (n, p, m²), fp32.

        Raises:
            CheckpointError: the fine features do not divide among the patches.
        """
        window = windows(fine, math.isqrt(coarse.shape[1]))  # (n, p, m², Ca)
        query, key, value = self.query(coarse), self.key(window), self.value(window)
        # keys are scaled before the product, which fp16 could not hold otherwise; what still overflows is clipped
        key = key / math.sqrt(query.shape[-1])
        scores = (query[:, :, None] @ key.transpose(-1, -2)).nan_to_num()  # (n, p, 1, m²)
        weights = scores.softmax(-1)
        if details is not None:
            details.append(weights[:, :, 0].float())
        return (weights @ value)[:, :, 0]


def views(coarse: Tensor, fine: Tensor, grid: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each view's coarse features with the fine ones that lie under it, in the order of the language sequence.

    Args:
        coarse: (n, views, p, C), the crops row after row and the whole picture last.
        fine: (n, Ca, M, M).
    """
    if grid > 1:
        yield coarse[:, -1], resized(fine, fine.shape[-1] // grid)
    for number, quadrant in enumerate(grid_cells(fine, grid).unbind(1)):
        yield coarse[:, number], quadrant


def mine_views(
    mining: PatchInfoMining, coarse: Tensor, fine: Tensor, grid: int, details: list[Tensor] | None = None
) -> Tensor:
    """(n, views, p, C) and (n, Ca, M, M) → (n, P, C), P = views · p: every patch with what it mined.

    Args:
        details: Gets how each patch weighs its window, (n, P, m²).
    """
    of_views: list[Tensor] | None = None if details is None else []
    mined = [view + mining(view, under, of_views) for view, under in views(coarse, fine, grid)]
    if details is not None and of_views is not None:
        details.append(torch.cat(of_views, dim=1))
    return torch.cat(mined, dim=1)
