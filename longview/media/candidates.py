"""Choosing by content: what the door asks of somebody who understands pictures, and what it keeps of the answer.

    video ── candidates ── Embed ── embeddings ── similarity ── mdp3 ── chosen frames
             one a second   handed in from above   this room's arithmetic

No model here: an `Embed` is handed in (`longview.models.similarity`), as numbers would be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longview.errors import RequestError
from longview.media.mdp3 import mdp3, similarity
from longview.media.medium import Frame, Relevance, Shrink

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The frames of a video among which is chosen. None is decoded until it is read."""

    name: str  # of the video, fit to be shown
    digest: str  # of the video, SHA-256 in hex
    indices: list[int]  # ascending
    read: Callable[[Sequence[int], Shrink], Iterator[Frame]]
    """Decode some of them, in order, each as small as `Shrink` makes it."""


class Embed(Protocol):
    """Frames and a question as points on one sphere; the nearer, the more alike."""

    def __call__(self, candidates: Candidates, question: str) -> tuple[Array, Array]:
        """Embeddings of the frames (n, d) and of the question (1, d)."""


@dataclass(frozen=True)
class RelevanceQuery:
    """What frames are held against.

    Raises:
        RequestError: the question is empty.
    """

    question: str
    embed: Embed

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise RequestError("select 'mdp3' chooses the frames that a question is about, and there is none; ask one")


def choose_by_content(
    candidates: Candidates, query: RelevanceQuery, count: int, seconds: Sequence[float] | None
) -> tuple[list[int], Relevance]:
    """The `count` candidates that tell most about the question; all, where there are no more.

    Returns ascending indices into the video, and how near each candidate is to the question.
    """
    relevance, frames = measure(candidates, query, seconds)
    chosen = mdp3(similarity(frames, frames), relevance.values, count)
    return [candidates.indices[i] for i in chosen], relevance


def measure(candidates: Candidates, query: RelevanceQuery, seconds: Sequence[float] | None) -> tuple[Relevance, Array]:
    """How near each candidate is to the question, and the candidates' embeddings (n, d)."""
    frames, question = query.embed(candidates, query.question)
    values = similarity(frames, question)[:, 0].tolist()
    times = None if seconds is None else [seconds[index] for index in candidates.indices]
    return Relevance(candidates.indices, times, values), frames
