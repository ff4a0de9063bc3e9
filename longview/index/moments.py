"""From nearest items to what was looked for: frames that follow each other are one moment; rankings are fused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from longview.index.store import Hit

FUSION = 5
"""Of reciprocal ranks: how little the first few places count more than the next (Cormack et al. 2009, who take 60).

So small, as one of two rankings may say nothing: "What is it called?" beside a photo.
"""
MARGIN = 0.03
"""A frame belongs to a moment beside it if its cosine is so near to the moment's best."""


@dataclass(frozen=True)
class Found:
    """A moment of a video, a picture or a passage."""

    path: str
    kind: str
    """moment, picture or passage."""
    score: float
    """Cosine with what was looked for; where rankings were fused, the sum of reciprocal ranks."""
    begin: float | None = None
    """Seconds."""
    end: float | None = None
    at: float | None = None
    """Seconds of the frame that fits best."""
    frame: int | None = None
    """Its index in the video."""
    text: str = ""
    source: str = ""
    place: int = 0
    """Number of a passage in its file."""


def fuse(queries: Sequence[Sequence[Sequence[Hit]]]) -> list[Hit]:
    """Rankings as one, best first; one alone stays as it is.

    Args:
        queries: For each thing that was looked for, rankings of different sorts of items. Of these an item has the best
            reciprocal rank, as a passage without a picture cannot be in the ranking of pictures; those of several
            queries are added.
    """
    rankings = [ranking for rankings in queries for ranking in rankings if ranking]
    if len(rankings) < 2:
        return [hit for ranking in rankings for hit in ranking]
    scores: dict[tuple[str, str, int], float] = {}
    hits: dict[tuple[str, str, int], Hit] = {}
    for sorts in queries:
        best: dict[tuple[str, str, int], float] = {}
        for ranking in sorts:
            for rank, hit in enumerate(ranking, 1):
                key = hit.item.digest, hit.item.kind, hit.item.place
                hits[key] = max(hit, hits.get(key, hit), key=lambda each: each.score)
                best[key] = max(best.get(key, 0.0), 1 / (FUSION + rank))
        for key, score in best.items():
            scores[key] = scores.get(key, 0.0) + score
    order = sorted(scores, key=lambda key: (-scores[key], -hits[key].score))
    return [Hit(hits[key].item, scores[key]) for key in order]


def moments(hits: Iterable[Hit], margin: float | None = MARGIN) -> list[Found]:
    """Each picture and passage once; frames that follow each other, of one shot, as one moment; best first.

    The paths are the files' digests.

    Args:
        margin: How much worse than the best of its moment a frame may be; None: as much as it likes.
    """
    found: dict[tuple[str, str, int], Found] = {}
    frames = []
    for hit in hits:
        item = hit.item
        if item.kind == "frame":
            frames.append(hit)
            continue
        key = item.digest, item.kind, item.place
        if key not in found or hit.score > found[key].score:
            found[key] = Found(item.digest, item.kind, hit.score, text=item.text, source=item.source, place=item.place)
    frames.sort(key=lambda hit: (hit.item.digest, hit.item.place))
    merged = [
        _moment(run)
        for _, of_file in groupby(frames, key=lambda hit: (hit.item.digest, hit.item.shot))
        for run in _runs(list(of_file), margin)
    ]
    return sorted([*found.values(), *merged], key=lambda each: -each.score)


def _runs(hits: list[Hit], margin: float | None) -> Iterable[list[Hit]]:
    """Frames of one shot that follow each other without a gap, cut where one is much worse than its neighbours."""
    run: list[Hit] = []
    for hit in hits:
        touches = run and hit.item.seconds <= run[-1].item.until + 1e-6
        best = max((each.score for each in run), default=hit.score)
        is_near = margin is None or abs(best - hit.score) <= margin
        if run and not (touches and is_near):
            yield run
            run = []
        run.append(hit)
    if run:
        yield run


def _moment(run: list[Hit]) -> Found:
    best = max(run, key=lambda hit: hit.score)
    return Found(
        best.item.digest,
        "moment",
        best.score,
        begin=run[0].item.seconds,
        end=run[-1].item.until,
        at=best.item.seconds,
        frame=best.item.place,
    )


def at_path(found: Found, path: str) -> Found:
    return replace(found, path=path)
