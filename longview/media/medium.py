"""Data types of this package: `Frame`, `Medium`, and `FrameReader`, the interface of every video reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

from PIL import Image

from longview.messages import Progress

Kind = Literal["image", "video"]

FrameTransform: TypeAlias = Callable[[Image.Image], Image.Image]
"""Applied to each frame as soon as it is decoded, to resize it, so that full-size frames do not pile up in memory."""

UNDECODED = Image.new("RGB", (0, 0))
"""The image of a frame that has been chosen and not decoded yet; `Medium.read` decodes it."""


@dataclass(frozen=True)
class Frame:
    """One frame of a video, or a picture: RGB, upright, at its full size; or `UNDECODED`."""

    image: Image.Image
    index: int  # in presentation order, from 0; 0 for a picture
    seconds: float | None  # after the first frame of the video; None where there is no time


@dataclass(frozen=True)
class Relevance:
    """Similarity of frames of a video to a question, from 0 (far) to 5 (identical); see `longview.media.mdp3`."""

    indices: list[int]  # ascending, into the video
    seconds: list[float] | None  # None where there are no times
    values: list[float]

    def of(self, index: int) -> float | None:
        """The value of one frame; None where it was not among the candidates."""
        return dict(zip(self.indices, self.values, strict=True)).get(index)


@dataclass(frozen=True)
class Medium:
    """An opened picture or video: the frames chosen from it, and the properties of the whole."""

    kind: Kind
    name: str  # safe to print: no folders, no query string, no secrets
    frames: list[Frame] = field(repr=False)
    width: int  # pixels, upright, of the whole medium; frames of a list may differ
    height: int
    num_frames: int  # of the whole video; 1 for a picture
    duration: float | None  # seconds of the whole video
    fps: float | None  # average over the whole video
    digest: str  # SHA-256 in hex of the raw bytes, whatever frames were chosen
    warnings: tuple[str, ...] = ()
    relevance: Relevance | None = None  # of the candidates, where a relevance query was given
    decoder: FrameDecoder | None = field(default=None, repr=False)  # of the frames that are `UNDECODED`

    def read(self, places: Sequence[int] | None = None, progress: Progress | None = None) -> Iterator[Frame]:
        """Yield some of `frames`, by their ascending positions in that list (default: all), decoded.

        Raises:
            MediaError: one cannot be decoded.
        """
        chosen = self.frames if places is None else [self.frames[place] for place in places]
        if self.decoder is None:
            yield from chosen
        elif chosen:
            yield from self.decoder.read([frame.index for frame in chosen], progress)

    def close(self) -> None:
        """Close the file; `read` opens it again."""
        if self.decoder is not None:
            self.decoder.close()


def distinctly_named(media: Sequence[Medium]) -> list[Medium]:
    """The same media, numbered where several of one name differ: `cat.jpg (1)`, `cat.jpg (2)`; no folders."""
    digests: dict[str, list[str]] = {}
    for medium in media:
        known = digests.setdefault(medium.name, [])
        if medium.digest not in known:
            known.append(medium.digest)
    return [_numbered(medium, digests[medium.name]) for medium in media]


def _numbered(medium: Medium, digests: Sequence[str]) -> Medium:
    if len(digests) == 1:
        return medium
    name = f"{medium.name} ({digests.index(medium.digest) + 1})"
    warnings = [
        name + warning.removeprefix(medium.name) if warning.startswith(medium.name) else warning
        for warning in medium.warnings
    ]
    return replace(medium, name=name, warnings=tuple(warnings))


class FrameDecoder:
    """Decodes frames of a video on demand, so that they need not all be in memory.

    Args:
        reader: An open reader, used by the first `read`, if there is one.
        reopen: Makes another one like it.
    """

    def __init__(self, reader: FrameReader | None, reopen: Callable[[], FrameReader]) -> None:
        self._reader = reader
        self._reopen = reopen
        self._lock = threading.Lock()

    def read(self, indices: Sequence[int], progress: Progress | None = None) -> Iterator[Frame]:
        """As `FrameReader.read`. Several threads may read at once, each from a reader of its own."""
        reader = self._take() or self._reopen()
        try:
            yield from reader.read(indices, progress)
        finally:
            reader.close()

    def close(self) -> None:
        """Close the file."""
        reader = self._take()
        if reader is not None:
            reader.close()

    def _take(self) -> FrameReader | None:
        with self._lock:
            reader, self._reader = self._reader, None
            return reader


class FrameReader(Protocol):
    """A video, an animation or a list of pictures: says when its frames appear, and decodes some of them."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def seconds(self) -> Sequence[float] | None: ...

    @property
    def duration(self) -> float | None: ...

    @property
    def fps(self) -> float | None: ...

    @property
    def warnings(self) -> Sequence[str]: ...

    def read(
        self, indices: Sequence[int], progress: Progress | None = None, transform: FrameTransform | None = None
    ) -> Iterator[Frame]:
        """Yield exactly the frames at `indices`, which ascend and may repeat; `transform` is applied to each image."""
        ...

    def close(self) -> None: ...
