"""The idea: the mean colours of a picture's two halves, each projected to the width of the language model.

pixels (n, 3, R, R) ── halves (n, 3, R, 2, R/2) ── mean ── colours (n, 2, 3) ── linear ── (n, 2, D)
"""

from __future__ import annotations

from torch import Tensor, nn


class HalfColours(nn.Module):
    """Pixels (n, 3, R, R) → embeddings (n, 2, D): the left half, then the right one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(3, width)

    def forward(self, pixels: Tensor) -> Tensor:
        halves = pixels.unflatten(-1, (2, -1))  # (n, 3, R, 2, R/2)
        colours = halves.mean((2, 4)).transpose(1, 2)  # (n, 2, 3)
        return self.projection(colours)
