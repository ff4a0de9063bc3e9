"""What an answer rests on, as plain data: shares of attention by picture, and maps of them over the user's pictures.

    a patch of a crop ── PatchGrid: where on the user's picture ── cells of `PictureEvidence.maps`

Attention is no explanation by itself: `longview.evidence.deletion` checks what an answer loses without a picture. The
engine makes these (`longview.engine.evidence`); no torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

    from longview.messages import FrameUsed

Box = tuple[float, float, float, float]
"""Left, upper, right, lower, in pixels of a picture."""
DIGITS = 4
"""Decimals of shares in JSON; as many of a map, relative to its highest value."""


@dataclass(frozen=True)
class PatchGrid:
    """The rectangle of a picture, in its pixels, that rows · columns patches divide among them, row after row.

    It reaches beyond what the crop shows where that has a border; where a tower drops pixels, it ends before.
    """

    left: float
    upper: float
    right: float
    lower: float
    rows: int
    columns: int
    shown: Box
    """The part of the picture that the crop shows."""

    @classmethod
    def of_crop(cls, side: float, rows: int, columns: int, at: Box, shown: Box) -> PatchGrid:
        """Patches of the first `side` · `side` pixels of a crop, in which the part `shown` of a picture is `at`."""
        across, down = (shown[2] - shown[0]) / (at[2] - at[0]), (shown[3] - shown[1]) / (at[3] - at[1])
        left, upper = shown[0] - at[0] * across, shown[1] - at[1] * down
        return cls(left, upper, left + side * across, upper + side * down, rows, columns, shown)

    def __len__(self) -> int:
        return self.rows * self.columns

    def box(self, patch: int) -> Box | None:
        """What one of the patches shows of the picture; None where that is nothing."""
        row, column = divmod(patch, self.columns)
        wide, high = (self.right - self.left) / self.columns, (self.lower - self.upper) / self.rows
        left, upper = self.left + column * wide, self.upper + row * high
        box = (
            max(left, self.shown[0]),
            max(upper, self.shown[1]),
            min(left + wide, self.shown[2]),
            min(upper + high, self.shown[3]),
        )
        return box if box[0] < box[2] and box[1] < box[3] else None


@dataclass(frozen=True, eq=False)
class PictureWords:
    """Ovis2: the likeliest visual words of each patch, in the order of `PictureEvidence.grids`."""

    words: np.ndarray
    """Numbers in the visual vocabulary, (P, k), the likeliest first."""
    probabilities: np.ndarray
    """(P, k)."""


@dataclass(frozen=True, eq=False)
class MinedWindow:
    """MGM: what one coarse patch mined: how it weighed the fine patches of its own place."""

    box: Box
    """Of the coarse patch, and so of the window."""
    share: float
    """Attention of the answer to the coarse patch, the mean over its tokens."""
    weights: np.ndarray
    """(m, m), they add up to 1."""


@dataclass(frozen=True, eq=False)
class PictureEvidence:
    """How much attention the answer's tokens give to one picture, or frame of a video, and where on it."""

    number: int
    """Which picture, from 1, in the order in which the model sees them; each frame of a video counts."""
    frame: FrameUsed
    shares: np.ndarray
    """By token of the answer, (A,)."""
    padding: np.ndarray
    """The part of `shares` that goes to borders of crops, which show nothing of the picture, (A,)."""
    maps: np.ndarray
    """The other part by cells of the picture as it was given, row after row from its upper left: (A, rows, columns)."""
    grids: tuple[PatchGrid, ...]
    """Where its patches are: those of its crops in the order in which the model sees them."""
    patches: np.ndarray
    """Attention to each of these patches, the mean over tokens, (P,)."""
    words: PictureWords | None = None
    mined: tuple[MinedWindow, ...] = ()
    """Of the coarse patches with most attention, highest first."""

    @property
    def share(self) -> float:
        """The mean over the answer's tokens."""
        return float(self.shares.mean()) if len(self.shares) else 0.0

    @property
    def map(self) -> np.ndarray:
        """The mean of `maps` over the answer's tokens, (rows, columns)."""
        return self.maps.mean(0) if len(self.maps) else self.maps.sum(0)

    @property
    def peak(self) -> Box:
        """The place of the highest cell of `map`."""
        found = self.map
        row, column = divmod(int(found.argmax()), found.shape[1])
        wide, high = self.frame.width / found.shape[1], self.frame.height / found.shape[0]
        return column * wide, row * high, (column + 1) * wide, (row + 1) * high

    def patch_box(self, patch: int) -> Box | None:
        """What a patch shows of the picture, by its number among all of the picture's; None: a border."""
        for grid in self.grids:
            if patch < len(grid):
                return grid.box(patch)
            patch -= len(grid)
        raise IndexError(patch)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, rounded. `map` and `token_maps` are in units of `map_unit`."""
        unit = float(f"{max(float(self.maps.max(initial=0.0)), 1e-9) / 10**DIGITS:.3g}")
        frame = {name: value for name, value in asdict(self.frame).items() if value is not None}
        found: dict[str, Any] = {
            "number": self.number,
            **frame,
            "share": round(self.share, DIGITS),
            "shares": rounded(self.shares),
            "padding": rounded(self.padding),
            "peak": [round(each, 1) for each in self.peak],
            "map_unit": unit,
            "map": (self.map / unit).round().astype(int).tolist(),
            "token_maps": (self.maps / unit).round().astype(int).tolist(),
            "grids": [asdict(grid) for grid in self.grids],
        }
        if self.words is not None:
            found["words"] = self.words.words[:, 0].tolist()
            found["word_probabilities"] = rounded(self.words.probabilities[:, 0])
        if self.mined:
            found["mined"] = [
                {
                    "box": [round(each, 1) for each in window.box],
                    "share": float(f"{window.share:.3g}"),
                    "weights": [rounded(row) for row in window.weights],
                }
                for window in self.mined
            ]
        return found


@dataclass(frozen=True)
class SharedWord:
    """Ovis2: a visual word that two pictures have in common."""

    pictures: tuple[int, int]
    """Their numbers."""
    word: int
    probability: float
    """In both: the smaller of its two mean probabilities over a picture's patches."""


@dataclass(frozen=True)
class CandidateRelevance:
    """How near the candidates of a video are to the question, where its frames were chosen by that."""

    medium: int
    """Which picture or video of the conversation, from 0."""
    indices: tuple[int, ...]
    """Ascending, into the video."""
    seconds: tuple[float, ...] | None
    values: tuple[float, ...]
    """From 0 (far) to 5 (identical)."""

    def as_dict(self) -> dict[str, Any]:
        """As plain data, rounded."""
        return {**asdict(self), "values": rounded(self.values)}


Detail = Literal["", "words", "mined"]
"""What a family says of a patch besides attention: its visual words (Ovis2), or what it mined (MGM)."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an answer gave its attention to. Sums over pictures are what the model gave to pictures altogether."""

    tokens: tuple[str, ...]
    """The answer's A tokens, without its end; half a character is a replacement character."""
    pictures: tuple[PictureEvidence, ...]
    """Whether or not an answer looks at them; none where there are none."""
    signal: str
    """What a share is, in a line."""
    layers: tuple[int, ...]
    """Decoder layers that it is the mean of, from 0."""
    shared_words: tuple[SharedWord, ...] = ()
    relevance: tuple[CandidateRelevance, ...] = ()
    """Of each video whose frames were chosen by the question."""
    seconds: float = 0.0
    """What it took, behind the answer."""

    @property
    def ranked(self) -> list[int]:
        """The pictures' numbers, the one with the highest share first."""
        return [picture.number for picture in sorted(self.pictures, key=lambda each: (-each.share, each.number))]

    def __repr__(self) -> str:
        shares = ", ".join(f"picture {each.number}: {each.share:.1%}" for each in self.pictures[:8])
        more = ", …" if len(self.pictures) > 8 else ""
        return f"Evidence({len(self.tokens)} tokens; {shares or 'no picture'}{more})"

    def as_dict(self) -> dict[str, Any]:
        """As plain data, rounded."""
        return {
            "signal": self.signal,
            "layers": list(self.layers),
            "tokens": list(self.tokens),
            "ranked": self.ranked,
            "pictures": [picture.as_dict() for picture in self.pictures],
            "shared_words": [asdict(word) for word in self.shared_words],
            "relevance": [each.as_dict() for each in self.relevance],
            "seconds": round(self.seconds, 4),
        }


def rounded(values: Iterable[float]) -> list[float]:
    """A row of numbers for JSON."""
    return [round(float(value), DIGITS) for value in values]


def check_patches(grids: Sequence[PatchGrid], patches: int) -> None:
    """
    Raises:
        ValueError: a family says of another number of patches where they are than it has.
    """
    placed = sum(map(len, grids))
    if placed != patches:
        raise ValueError(f"a picture of {patches} patches has places for {placed}")
