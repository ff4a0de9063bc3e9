"""MDP3: choose the frames of a video that are relevant to a question and differ from each other, without training.

Pure functions of similarities:

    frames, question ── embeddings ── similarity ──┬── frame–frame S (n, n) ───┐
                                                   └── frame–question r (n,) ──┴── mdp3 ── indices

A set of frames Y is good when its frames are near the question and unlike each other:

    f(Y) = (2 / λ) · Σ log r_i + log det S_Y          a determinantal point process, weighted by relevance

Inside a segment of the video frames are added greedily, each the one that raises f most; across segments a dynamic
programme decides how many each may give. A segment is conditioned on the last frames chosen before it, so that it does
not repeat them:

    segment 1           segment 2            segment 3                state: how many frames are chosen so far, a
    a = 0 ── greedy ──▸ a = 0 … b ─────────▸ a = 0 … k                value: the best sum of f;  its frames
              b = 0, 1, 2 … of this segment's frames, given the state's last ones

Source: arXiv 2501.02885, and its authors' plug-in for Ovis2, tie-breaking included. There a last segment that is
shorter than the others ends in an error; here it is what is left.
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
    """Embeddings (n, d) and (m, d) → similarity of each pair, (n, m): a sum of Gaussians, 5 for identical ones."""
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
        frames: (n, n), similarity of each frame to each; see `similarity`.
        question: (n,), similarity of each frame to the question, above 0.
        segment: Frames a segment; the last one may be shorter. None: one segment, as its authors run it.
        condition: How many of the frames chosen last a segment is conditioned on.
        weight: λ; the smaller, the more relevance counts against diversity.

    Returns:
        Ascending indices.
    """
    kernel = np.asarray(frames, dtype=np.float64)
    relevance = 2 / weight * np.log(np.asarray(question, dtype=np.float64).reshape(-1))
    n = len(kernel)
    assert kernel.shape == (n, n), kernel.shape
    assert relevance.shape == (n,), relevance.shape
    if n <= count:
        return list(range(n))
    size = segment or n
    values: dict[int, float] = {0: 0.0}  # state → best sum of f
    chosen: dict[int, list[int]] = {0: []}  # state → its frames, ascending
    for begin in range(0, n, size):
        candidates = np.arange(begin, min(begin + size, n))
        states = list(chosen)
        given = [chosen[state][-condition:] if condition else [] for state in states]
        picks, scores = greedy(kernel, relevance, candidates, given, min(len(candidates), count))
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
    kernel: Array, relevance: Array, candidates: NDArray[np.int64], given: list[list[int]], steps: int
) -> tuple[NDArray[np.int64], Array]:
    """Order a segment's frames by how much each raises f, once for each of A states; all states as one batch.

    The Cholesky factor of S grows by one row a step, for all candidates at once: with a frame p just chosen,
    e_i = (S_pi − l_p · l_i) / d_p is the new entry of candidate i, and d_i² − e_i² what it could still add.

    Args:
        given: For each state the frames that were chosen in earlier segments, which f is conditioned on.

    Returns:
        Frames in the order of choice, (A, steps), and f after each, (A, steps).
    """
    states, before = np.arange(len(given)), max(map(len, given))
    among = np.tile(np.concatenate([candidates[:1].repeat(before), candidates]), (len(given), 1))  # (A, U)
    absent = np.zeros(among.shape, dtype=bool)  # padding of a state that has fewer frames given than another
    for state, frames in enumerate(given):
        among[state, before - len(frames) : before] = frames
        absent[state, : before - len(frames)] = True
    closed = np.tile(np.arange(among.shape[1]) < before, (len(given), 1))  # not to be chosen (again)
    gains, volume = relevance[among], kernel[among, among]  # (A, U): 2/λ · log r, and d²
    factor = np.zeros((*among.shape, before + steps))  # (A, U, step)
    picks, scores = np.empty((len(given), steps), dtype=np.int64), np.empty((len(given), steps))
    total = np.zeros(len(given))
    for step in range(before + steps):
        gain = gains + np.log(np.maximum(np.abs(volume), FLOOR))
        if step < before:
            pick, skipped = np.full(len(given), step), absent[:, step]
        else:
            pick, skipped = np.where(closed, -np.inf, gain).argmax(1), np.zeros(len(given), dtype=bool)
        total += np.where(skipped, 0.0, gain[states, pick])
        explained = (factor[:, :, :step] @ factor[states, pick, :step, None])[:, :, 0]
        edge = np.sqrt(np.maximum(np.abs(volume[states, pick]), FLOOR))
        entry = (kernel[among[states, pick][:, None], among] - explained) / edge[:, None]
        entry[skipped] = 0.0
        factor[:, :, step] = entry
        volume = volume - entry**2
        closed[states, pick] = True
        if step >= before:
            picks[:, step - before], scores[:, step - before] = among[states, pick], total
    return picks, scores
