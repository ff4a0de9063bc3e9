"""MGM's sampler: a step holds samples of one modality.

A step holds samples with pictures or samples without, never both, but for the last ones of an epoch; within it, the
samples are dealt out so that those that pass the model together have about as many words each time. A sample's length
is its number of words between spaces: nothing is tokenised and no picture opened.

Source: the sampler of MGM's trainer, which is LLaVA's.
"""

from __future__ import annotations

import heapq

import numpy as np


def grouped(lengths: np.ndarray, batch: int, chunks: int, generator: np.random.Generator, lead: int = 0) -> np.ndarray:
    """An order of samples, (n,).

    Args:
        lengths: Of each sample, (n,); negative where it has no media.
        batch: Samples of a step.
        chunks: How often in a step samples pass the model.
        lead: Samples that the step which the epoch before has begun still lacks; they are taken from the last ones, so
            that all other steps hold one modality in each epoch.
    """
    whole: list[np.ndarray] = []
    held: list[np.ndarray] = []
    for some in (np.flatnonzero(lengths > 0), np.flatnonzero(lengths <= 0)):
        some = generator.permutation(some)
        steps = [some[begin : begin + batch] for begin in range(0, len(some), batch)]
        dealt = [deal(step, np.abs(lengths[step]), chunks) for step in steps]
        whole += dealt[:-1]
        held += dealt[-1:]
    whole = [whole[number] for number in generator.permutation(len(whole))]
    while sum(map(len, held)) < lead and whole:
        held.append(whole.pop())
    rest = np.sort(np.concatenate(held))
    return np.concatenate([rest[:lead], *whole, rest[lead:]])


def deal(step: np.ndarray, lengths: np.ndarray, chunks: int) -> np.ndarray:
    """A step's samples, the longest first, in chunks of one size and about one sum of lengths, one after another."""
    order = np.argsort(-lengths, kind="stable")
    step, lengths = step[order], lengths[order]
    if len(step) % chunks:
        return np.concatenate([step[number::chunks] for number in range(chunks)])
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    sums = [(0, number) for number in range(chunks)]
    for sample, length in zip(step.tolist(), lengths.tolist(), strict=True):
        total, number = heapq.heappop(sums)
        dealt[number].append(sample)
        if len(dealt[number]) < len(step) // chunks:
            heapq.heappush(sums, (total + length, number))
    return np.array([sample for chunk in dealt for sample in chunk], dtype=step.dtype)
