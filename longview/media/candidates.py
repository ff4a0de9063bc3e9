"""Frame selection by relevance: score the candidates of a video against a question, and choose among them with MDP3.

    video ── candidates ── Embed ── embeddings ── similarity ── mdp3 ── chosen frames
             one a second   (SigLIP)

No model here: `RelevanceQuery` carries an `Embed`, which `longview.models.similarity` implements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longview.errors import RequestError
from longview.media.mdp3 import mdp3, similarity
from longview.media.medium import Frame, FrameTransform, Relevance

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The frames of a video to choose among. None is decoded before `read`."""

    name: str  # of the video, safe to print
    digest: str  # of the video, SHA-256 in hex
    indices: list[int]  # ascending
    read: Callable[[Sequence[int], FrameTransform], Iterator[Frame]]
    """Decode some of them, in order; the transform is applied to each image."""


class Embed(Protocol):
    """Embeds frames and a question in one space, in which distance means dissimilarity."""

    def __call__(self, candidates: Candidates, question: str) -> tuple[Array, Array]:
        """Embeddings of the frames (n, d) and of the question (1, d)."""


@dataclass(frozen=True)
class RelevanceQuery:
    """A question that frames are scored against, and the embedding that they are scored with.

    `published`: as MDP3's authors score, whose text still holds the `<image>` of each candidate, on a line of its own
    before the question. Source: their plug-in for Ovis2, which embeds the conversation as it was before the choice.

    Raises:
        RequestError: the question is empty.
    """

    question: str
    embed: Embed
    published: bool = False

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise RequestError("select 'mdp3' chooses the frames that a question is about, and there is none; ask one")

    def text(self, candidates: int) -> str:
        """What is embedded beside so many candidates."""
        return "<image>\n" * candidates + self.question if self.published else self.question


def select_by_relevance(
    candidates: Candidates, query: RelevanceQuery, count: int, seconds: Sequence[float] | None
) -> tuple[list[int], Relevance]:
    """Choose `count` candidates with MDP3; all, where there are no more.

    Returns ascending indices into the video, and the relevance of each candidate.
    """
    relevance, frames = score_candidates(candidates, query, seconds)
    chosen = mdp3(similarity(frames, frames), relevance.values, count)
    return [candidates.indices[i] for i in chosen], relevance


def score_candidates(
    candidates: Candidates, query: RelevanceQuery, seconds: Sequence[float] | None
) -> tuple[Relevance, Array]:
    """The relevance of each candidate to the question, and the candidates' embeddings (n, d)."""
    frames, question = query.embed(candidates, query.text(len(candidates.indices)))
    values = similarity(frames, question)[:, 0].tolist()
    times = None if seconds is None else [seconds[index] for index in candidates.indices]
    return Relevance(candidates.indices, times, values), frames
