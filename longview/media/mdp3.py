"""MDP3: which frames of a video tell most about a question. Pure functions of similarities, without training.

    frames, question ── embeddings ── similarity ──┬── frame–frame S (n, n) ───┐
                                                   └── frame–question r (n,) ──┴── mdp3 ── indices

A set of frames Y is good when its frames are near the question and unlike each other:

    f(Y) = (2 / λ) · Σ log r_i + log det S_Y          a determinantal point process, weighted by relevance

Inside a segment of the video frames are added greedily, each the one that raises f most; across segments a dynamic
programme decides how many each may give. A segment is told the last frames chosen before it, so that it does not show
them again:

    segment 1           segment 2            segment 3                state: how many frames are chosen so far, a
    a = 0 ── greedy ──▸ a = 0 … b ─────────▸ a = 0 … k                value: the best sum of f;  its frames
              b = 0, 1, 2 … of this segment's frames, given the state's last ones

Source: arXiv 2501.02885, and its authors' plug-in for Ovis2, to the last tie. There a last segment that is shorter
than the others ends in an error; here it is what is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BANDWIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)
"""Of the Gaussians whose sum is the similarity."""
FLOOR = 1e-12
"""The least volume a frame can add: repeated frames add none, and its logarithm must exist."""


def similarity(a: ArrayLike, b: ArrayLike) -> Array:
    """Embeddings (n, d) and (m, d) → how near each is to each, (n, m): a sum of Gaussians, 5 for the same."""
    x, y = (np.atleast_2d(np.asarray(embeddings, dtype=np.float64)) for embeddings in (a, b))
    distance = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T  # (n, m), squared
    return np.asarray(sum(np.exp(-np.maximum(distance, 0) / (2 * alpha)) for alpha in BANDWIDTHS))


def mdp3(
    frames: ArrayLike,
    question: ArrayLike,
    count: int,
    segment: int | None = None,
    condition: int = 1,
    weight: float = 0.2,
) -> list[int]:
    """Choose `count` of n frames; all, where there are no more.

    Args:
        frames: (n, n), how near each frame is to each; see `similarity`.
        question: (n,), how near each frame is to the question, above 0.
        segment: Frames a segment; the last one may be shorter. None: one segment, as its authors run it.
        condition: How many of the frames chosen last a segment is told.
        weight: λ; the smaller, the more the question counts, and the less that frames differ.

    Returns:
        Ascending indices.
    """
    near = np.asarray(frames, dtype=np.float64)
    relevance = 2 / weight * np.log(np.asarray(question, dtype=np.float64).reshape(-1))
    n = len(near)
    assert near.shape == (n, n), near.shape
    assert relevance.shape == (n,), relevance.shape
    if n <= count:
        return list(range(n))
    size = segment or n
    values: dict[int, float] = {0: 0.0}  # state → best sum of f
    chosen: dict[int, list[int]] = {0: []}  # state → its frames, ascending
    for begin in range(0, n, size):
        candidates = np.arange(begin, min(begin + size, n))
        states = list(chosen)
        told = [chosen[state][-condition:] if condition else [] for state in states]
        picks, scores = greedy(near, relevance, candidates, told, min(len(candidates), count))
        new_values, new_chosen = {0: 0.0}, {0: list[int]()}
        for state, order, sums in zip(states, picks.tolist(), scores.tolist(), strict=True):
            for more in range(min(len(candidates), count - state) + 1):
                value = values[state] + (sums[more - 1] if more else 0.0)
                if value > new_values.get(state + more, -np.inf):
                    new_values[state + more] = value
                    new_chosen[state + more] = [*chosen[state], *sorted(order[:more])]
        values, chosen = new_values, dict(sorted(new_chosen.items()))
    return chosen[count]


def greedy(
    near: Array, relevance: Array, candidates: NDArray[np.int64], told: list[list[int]], steps: int
) -> tuple[NDArray[np.int64], Array]:
    """Order a segment's frames by how much each raises f, once for each of A states; all states side by side.

    The Cholesky factor of S grows by one row a step, for all candidates at once: with a frame p just chosen,
    e_i = (S_pi − l_p · l_i) / d_p is the new entry of candidate i, and d_i² − e_i² what it could still add.

    Args:
        told: For each state the frames chosen before, which the segment's are chosen in addition to.

    Returns:
        Frames in the order of choice, (A, steps), and f after each, (A, steps).
    """
    states, before = np.arange(len(told)), max(map(len, told))
    among = np.tile(np.concatenate([candidates[:1].repeat(before), candidates]), (len(told), 1))  # (A, U)
    absent = np.zeros(among.shape, dtype=bool)  # a state that was told fewer frames than another
    for state, frames in enumerate(told):
        among[state, before - len(frames) : before] = frames
        absent[state, : before - len(frames)] = True
    closed = np.tile(np.arange(among.shape[1]) < before, (len(told), 1))  # not to be chosen (again)
    gains, volume = relevance[among], near[among, among]  # (A, U): 2/λ · log r, and d²
    factor = np.zeros((*among.shape, before + steps))  # (A, U, step)
    picks, scores = np.empty((len(told), steps), dtype=np.int64), np.empty((len(told), steps))
    total = np.zeros(len(told))
    for step in range(before + steps):
        worth = gains + np.log(np.maximum(np.abs(volume), FLOOR))
        if step < before:
            pick, skipped = np.full(len(told), step), absent[:, step]
        else:
            pick, skipped = np.where(closed, -np.inf, worth).argmax(1), np.zeros(len(told), dtype=bool)
        total += np.where(skipped, 0.0, worth[states, pick])
        explained = (factor[:, :, :step] @ factor[states, pick, :step, None])[:, :, 0]
        edge = np.sqrt(np.maximum(np.abs(volume[states, pick]), FLOOR))
        entry = (near[among[states, pick][:, None], among] - explained) / edge[:, None]
        entry[skipped] = 0.0
        factor[:, :, step] = entry
        volume = volume - entry**2
        closed[states, pick] = True
        if step >= before:
            picks[:, step - before], scores[:, step - before] = among[states, pick], total
    return picks, scores
