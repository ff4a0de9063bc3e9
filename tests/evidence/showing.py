"""Evidence whose every number is constructed, to be shown: two pictures, or a film."""

from __future__ import annotations

import numpy as np
from samples import noise

import longview
from longview.answer_evidence import (
    CandidateRelevance,
    Evidence,
    MinedWindow,
    PatchGrid,
    PictureEvidence,
    PictureWords,
    SharedWord,
)
from longview.evidence.deletion import Deletion, Step
from longview.evidence.report import Report
from longview.messages import Answer, FrameUsed, Receipt, Timings, Usage

HOSTILE = '<script>alert("1")</script>'
SIZE = (60, 40)
CELLS = (4, 6)
"""Rows and columns of a map."""
PEAKS = [(1, 4), (3, 0), (0, 2)]
"""The cell that each token looks at, on every picture."""
TOKENS = ("red", HOSTILE, "\n")
WORDS = [7, 7, 1234, 9]
BOX = (30.0, 20.0, 45.0, 30.0)
SENTENCES = ("The answer rests on picture 2.", "The map says otherwise: picture 1 has most attention.")


def report(frames: int = 0, pictures: int = 2, family: str = "", checked: bool = True, tokens=TOKENS) -> Report:
    """
    Args:
        frames: Of a film behind the pictures; chosen by MDP3, a frame a second.
        family: Whose details there are: "words" or "mined".
    """
    used = [FrameUsed(number, HOSTILE, "image", 0, None, *SIZE, 1) for number in range(pictures)]
    used += [FrameUsed(pictures, "film", "video", 3 * place, float(place), *SIZE, 1) for place in range(frames)]
    found = tuple(picture(number, frame, len(used), family, len(tokens)) for number, frame in enumerate(used, 1))
    shared = (SharedWord((1, 2), 1234, 0.25),) if family == "words" else ()
    relevance = ()
    if frames:
        seconds = tuple(range(frames + 2))
        relevance = (
            CandidateRelevance(pictures, tuple(3 * s for s in seconds), seconds, tuple(s / 8 for s in seconds)),
        )
    evidence = Evidence(tuple(tokens), found, "attention <b>", (0, 1), shared, relevance)
    parts = [longview.messages.Part("image", source=noise(number, *SIZE), name=HOSTILE) for number in range(pictures)]
    if frames:
        film = [noise(1000 + number, *SIZE) for number in range(3 * frames + 6)]
        parts.append(longview.messages.Part("video", source=film, name="film"))
    receipt = Receipt("scripted", tuple(used), Usage(9, 3, len(used), 0), Timings(0, 0, 0, 0, 0, 0), {"media": {}})
    answer = Answer(HOSTILE, "stop", receipt, tuple(range(len(tokens))), evidence=evidence)
    changes = tuple(-0.5 * number for number in range(1, len(used) + 1)) if len(used) <= 64 else ()
    steps = (Step(1, -1.5, -0.25, (-1.0, -2.0)),) if len(used) > 1 else ()
    deletion = Deletion(-2.0, len(tokens), -6.0, changes, steps, SENTENCES, 9, 0, 1.5)
    return Report((longview.ask(f"What? {HOSTILE}", *parts),), answer, deletion if checked else None)


def picture(number: int, frame: FrameUsed, count: int, family: str, tokens: int) -> PictureEvidence:
    """A picture whose map has a peak for each token; the earlier, the higher its share."""
    maps = np.zeros((tokens, *CELLS), np.float32)
    share = 0.5 * (count - number + 1) / (count * count)
    for token in range(tokens):
        maps[token] += 0.1 * share / (CELLS[0] * CELLS[1])
        maps[(token, *PEAKS[token % len(PEAKS)])] += 0.9 * share * (1 + token % 3) / 2
    grid = PatchGrid(0, 0, *SIZE, 2, 2, (0, 0, *SIZE))
    words = PictureWords(np.array(WORDS)[:, None], np.full((4, 1), 0.5)) if family == "words" else None
    mined = (MinedWindow(BOX, 0.1, np.array([[0.7, 0.1], [0.1, 0.1]])),) if family == "mined" else ()
    shares = maps.sum((1, 2))
    return PictureEvidence(number, frame, shares, np.zeros(tokens), maps, (grid,), np.full(4, 0.1), words, mined)
