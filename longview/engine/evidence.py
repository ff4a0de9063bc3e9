"""Attention to patches of crops → evidence on the pictures that the user gave. See `longview.answer_evidence`.

    (T, N, P), some tokens at a time ── each frame's crops ── patches onto cells of it ── maps (A, rows, columns)

A patch's attention is divided among the cells that it covers, by area. What lies on a border of a crop is put aside,
and a patch that is partly on one counts wholly for the part of the picture that it covers. Crops that overlap, such as
a picture and its quarters, add up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from longview.answer_evidence import (
    CandidateRelevance,
    Detail,
    Evidence,
    MinedWindow,
    PatchGrid,
    PictureEvidence,
    PictureWords,
    SharedWord,
    check_patches,
)
from longview.media import Medium
from longview.messages import FrameUsed

if TYPE_CHECKING:
    from longview.engine.request import Request

MAX_CELLS = 32
"""Cells of a map along the longer side, at most."""
MAX_NUMBERS = 1 << 20
"""Numbers in the maps of an answer's tokens, about: with many pictures and tokens, cells are larger."""
MOST_WINDOWS = 16
"""Windows of MGM that are told, of each picture."""
MOST_COMPARED = 16
"""Pictures, those with most attention, whose visual words are compared with one another."""
MOST_SHARED = 64
"""Words that two pictures share, of all of them."""


def evidence_of(
    request: Request, signal: str, detail: Detail, found: Iterable[tuple[Tensor, Sequence[int]]]
) -> Evidence:
    """
    Args:
        request: Whose answer is there, and the details of whose pictures.
        found: Of `ModelRunner.evidence`: attention of the answer's tokens (T, N, P), some at a time.
    """
    inputs, ids = request.inputs, request.answer_ids
    most = max(2, min(MAX_CELLS, math.isqrt(MAX_NUMBERS // max(1, len(ids) * len(inputs.frames)))))
    pictures = [
        PlacedPicture(frame, encoder_input.grids(frame.width, frame.height), encoder_input.num_pictures, most)
        for frame, encoder_input in zip(inputs.frames, inputs.encoder_inputs, strict=True)
    ]
    layers: Sequence[int] = ()
    for attention, of_layers in found:
        layers = of_layers
        crops = 0
        for picture in pictures:
            picture.add(attention[:, crops : crops + picture.crops].flatten(1).cpu().numpy())
            crops += picture.crops
        assert crops == attention.shape[1], (crops, attention.shape)
    details = [request.details.get(key) for key in request.feature_keys] if detail else [None] * len(pictures)
    placed = [
        picture.evidence(number, detail, None if of_frame is None else of_frame.flatten(0, 1).cpu().numpy())
        for number, (picture, of_frame) in enumerate(zip(pictures, details, strict=True), 1)
    ]
    spelt = request.context.token_bytes
    tokens = tuple(spelt(token).decode("utf-8", errors="replace") for token in ids)
    return Evidence(tokens, tuple(placed), signal, tuple(layers), shared_words(placed), relevance_of(inputs.media))


class PlacedPicture:
    """The attention to one picture, chunk by chunk.

    Args:
        crops: How many the picture became.
        most: Cells along the longer side at most.
    """

    def __init__(self, frame: FrameUsed, grids: Sequence[PatchGrid], crops: int, most: int) -> None:
        self.frame, self.grids, self.crops = frame, tuple(grids), crops
        self.shape = cells_of(grids, frame.width, frame.height, most)
        self._shares: list[np.ndarray] = []
        self._maps: list[np.ndarray] = []
        self._patches = np.zeros(sum(map(len, grids)), np.float64)

    def add(self, attention: np.ndarray) -> None:
        """The attention of further tokens, (T, patches of all crops)."""
        check_patches(self.grids, attention.shape[1])
        self._shares.append(attention.sum(1))
        self._maps.append(on_picture(attention, self.grids, self.frame.width, self.frame.height, self.shape))
        self._patches += attention.sum(0)

    def evidence(self, number: int, detail: Detail, details: np.ndarray | None) -> PictureEvidence:
        """
        Args:
            details: What `detail` names, (P, …).
        """
        shares = np.concatenate([np.zeros(0, np.float32), *self._shares])
        maps = np.concatenate([np.zeros((0, *self.shape), np.float32), *self._maps])
        patches = (self._patches / max(1, len(shares))).astype(np.float32)
        padding = np.maximum(shares - maps.sum((1, 2)), 0)
        found = PictureEvidence(number, self.frame, shares, padding, maps, self.grids, patches)
        words = mined = None
        if details is not None and detail == "words":
            words = PictureWords(details[..., 0].astype(int), details[..., 1])
        elif details is not None and detail == "mined":
            mined = windows(found, details)
        return PictureEvidence(number, self.frame, shares, padding, maps, self.grids, patches, words, mined or ())


def cells_of(grids: Sequence[PatchGrid], width: int, height: int, most: int) -> tuple[int, int]:
    """Rows and columns of a map that is as fine as the finest patches, up to `most` along its longer side."""
    down = max(grid.rows * height / (grid.lower - grid.upper) for grid in grids)
    across = max(grid.columns * width / (grid.right - grid.left) for grid in grids)
    shrink = min(1.0, most / max(down, across))
    return max(1, round(down * shrink)), max(1, round(across * shrink))


def on_picture(
    attention: np.ndarray, grids: Sequence[PatchGrid], width: float, height: float, shape: tuple[int, int]
) -> np.ndarray:
    """Attention to patches (T, P) → to cells of the picture, (T, rows, columns)."""
    found = np.zeros((len(attention), *shape), np.float32)
    begin = 0
    for grid in grids:
        of_grid = attention[:, begin : begin + len(grid)].reshape(-1, grid.rows, grid.columns)
        left, upper, right, lower = grid.shown
        down = divided(grid.upper, grid.lower, grid.rows, (upper, lower), height, shape[0])
        across = divided(grid.left, grid.right, grid.columns, (left, right), width, shape[1])
        found += down.T @ of_grid @ across
        begin += len(grid)
    return found


def divided(
    begin: float, end: float, patches: int, shown: tuple[float, float], length: float, cells: int
) -> np.ndarray:
    """How patches between two places on a side are divided among the cells of that side, (patches, cells).

    Each row adds up to 1, or to 0 where nothing of the patch is in the part that is shown.
    """
    edges = np.linspace(begin, end, patches + 1).clip(*shown)[:, None]
    borders = np.linspace(0.0, length, cells + 1)
    covered = np.minimum(edges[1:], borders[1:]) - np.maximum(edges[:-1], borders[:-1])
    covered = np.maximum(covered, 0.0)
    covered[covered < 1e-9 * length] = 0.0
    total = covered.sum(1, keepdims=True)
    return np.divide(covered, total, out=np.zeros_like(covered), where=total > 0).astype(np.float32)


def windows(picture: PictureEvidence, weights: np.ndarray) -> tuple[MinedWindow, ...]:
    """The mined windows of the patches with most attention.

    Args:
        weights: Of each patch's fine patches, (P, m²).
    """
    side = math.isqrt(weights.shape[1])
    order = np.argsort(-picture.patches, kind="stable")
    found = []
    for patch in order.tolist():
        box = picture.patch_box(patch)
        if box is not None:
            found.append(MinedWindow(box, float(picture.patches[patch]), weights[patch].reshape(side, side)))
        if len(found) == MOST_WINDOWS:
            break
    return tuple(found)


def relevance_of(media: Sequence[Medium]) -> tuple[CandidateRelevance, ...]:
    """Of the videos whose frames were compared with the question."""
    return tuple(
        CandidateRelevance(
            number, tuple(found.indices), None if found.seconds is None else tuple(found.seconds), tuple(found.values)
        )
        for number, medium in enumerate(media)
        if (found := medium.relevance) is not None
    )


def shared_words(pictures: Sequence[PictureEvidence]) -> tuple[SharedWord, ...]:
    """Visual words that two pictures share, the most probable in both first."""
    ranked = sorted((each for each in pictures if each.words is not None), key=lambda each: -each.share)
    means: dict[int, dict[int, float]] = {}
    for picture in ranked[:MOST_COMPARED]:
        assert picture.words is not None
        words, inverse = np.unique(picture.words.words, return_inverse=True)
        sums = np.bincount(inverse.ravel(), picture.words.probabilities.ravel())
        means[picture.number] = dict(zip(words.tolist(), (sums / len(picture.patches)).tolist(), strict=True))
    found = [
        SharedWord((first, second), word, min(means[first][word], means[second][word]))
        for first, second in itertools.combinations(sorted(means), 2)
        for word in means[first].keys() & means[second].keys()
    ]
    found.sort(key=lambda each: (-each.probability, each.pictures, each.word))
    return tuple(found[:MOST_SHARED])
