"""The nouns of this room: a `Frame`, and the `Medium` it belongs to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from PIL import Image

Kind = Literal["image", "video"]

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called as progress(done, total, label) while media are opened; may be called from several threads, one at a time."""


Shrink: TypeAlias = Callable[[Image.Image], Image.Image]
"""Makes a decoded picture as small as its reader needs it, at once, so that no large ones pile up."""
UNDECODED = Image.new("RGB", (0, 0))
"""Stands for the picture of a frame that has been chosen and not yet decoded; `Medium.read` decodes it."""


@dataclass(frozen=True)
class Frame:
    """One picture of a medium: RGB, upright, at its full size; or `UNDECODED`."""

    image: Image.Image
    index: int  # in presentation order, from 0; 0 for a picture
    seconds: float | None  # after the first frame of the video; None where there is no time


@dataclass(frozen=True)
class Relevance:
    """How near frames of a video are to a question, from 0 (far) to 5 (the same); see `longview.media.mdp3`."""

    indices: list[int]  # ascending, into the video
    seconds: list[float] | None  # None where there are no times
    values: list[float]

    def of(self, index: int) -> float | None:
        """How near one frame is; None where it was not among them."""
        return dict(zip(self.indices, self.values, strict=True)).get(index)


@dataclass(frozen=True)
class Medium:
    """An opened picture or video: the frames chosen from it, and what is known about the whole."""

    kind: Kind
    name: str  # fit to be shown: no folders, no query string, no secrets
    frames: list[Frame] = field(repr=False)
    width: int  # pixels, upright, of the whole medium; frames of a list may differ
    height: int
    num_frames: int  # of the whole video; 1 for a picture
    duration: float | None  # seconds of the whole video
    fps: float | None  # average over the whole video
    digest: str  # SHA-256 in hex of the raw bytes, whatever frames were chosen
    warnings: tuple[str, ...] = ()
    relevance: Relevance | None = None  # of the candidates, where a question was held against them
    footage: Footage | None = field(default=None, repr=False)  # decodes those frames that are not

    def read(self, places: Sequence[int] | None = None, progress: Progress | None = None) -> Iterator[Frame]:
        """Yield some of `frames`, by their ascending places in it (default: all), each with its picture.

        Raises:
            MediaError: one cannot be decoded.
        """
        chosen = self.frames if places is None else [self.frames[place] for place in places]
        if self.footage is None:
            yield from chosen
        elif chosen:
            yield from self.footage.read([frame.index for frame in chosen], progress)

    def close(self) -> None:
        """Let go of the file; `read` opens it again."""
        if self.footage is not None:
            self.footage.close()


class Footage:
    """A video whose frames are decoded as they are read, so that they need not all be in memory.

    Args:
        reader: Open already, for the first reading; `reopen` makes another one like it.
    """

    def __init__(self, reader: Reader, reopen: Callable[[], Reader]) -> None:
        self._reader: Reader | None = reader
        self._reopen = reopen
        self._lock = threading.Lock()

    def read(self, indices: Sequence[int], progress: Progress | None = None) -> Iterator[Frame]:
        """As `Reader.read`. Several threads may read at once, each from a reader of its own."""
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

    def _take(self) -> Reader | None:
        with self._lock:
            reader, self._reader = self._reader, None
            return reader


class Reader(Protocol):
    """What every kind of moving medium can do: say when its frames appear, and read some of them."""

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
        self, indices: Sequence[int], progress: Progress | None = None, shrink: Shrink | None = None
    ) -> Iterator[Frame]:
        """Yield exactly the frames asked for; `indices` ascends and may repeat."""
        ...

    def close(self) -> None: ...
