"""What a request may choose (`MediaOptions`) and what it may cost and reach (`Limits`).

Both are plain values with the same field names on the command line (`--max-pixels`), in Python (`max_pixels=`) and over
HTTP (`"max_pixels"`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from longview.errors import MediaError, RequestError
from longview.media.select import SAMPLERS

MiB = 1024 * 1024
CANDIDATES = 1024
"""Frames of a video that a sampler chooses among by what they show, unless told."""
MAX_CANDIDATES = 8192


@dataclass(frozen=True)
class MediaOptions:
    """Which frames of a video are looked at. None leaves the choice to the model's family.

    `select` names a sampler of `longview.media.select.SAMPLERS`. `frames` is how many frames it keeps at most; `fps`
    how many it takes a second of video, for the samplers that go by time. `start` and `end` (seconds) cut a clip out of
    the video first; a frame belongs to the clip when it is on the screen at some moment of it.

    A sampler that goes by what frames show ("mdp3") chooses among `candidates` frames at most; `fps` is their rate.

    Raises:
        RequestError: a value out of range, an unknown sampler, or options that contradict each other.
    """

    frames: int | None = None
    fps: float | None = None
    select: str | None = None
    start: float | None = None
    end: float | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and (type(self.frames) is not int or self.frames < 1):
            raise RequestError(f"frames is {self.frames!r:.40}; give a whole number from 1 up")
        if self.fps is not None and (not _is_number(self.fps) or self.fps <= 0):
            raise RequestError(f"fps is {self.fps!r:.40}; give a number of frames per second above 0, such as 1 or 0.5")
        if self.start is not None and (not _is_number(self.start) or self.start < 0):
            raise RequestError(f"start is {self.start!r:.40}; give seconds from the beginning of the video, from 0 up")
        if self.end is not None and (not _is_number(self.end) or self.end <= (self.start or 0)):
            raise RequestError(f"end is {self.end!r:.40}; give seconds after the start, {self.start or 0:g}")
        if self.candidates is not None and (
            type(self.candidates) is not int or not 1 <= self.candidates <= MAX_CANDIDATES
        ):
            raise RequestError(
                f"candidates is {self.candidates!r:.40}; give a whole number from 1 to {MAX_CANDIDATES:,}, as all "
                "pairs are compared"
            )
        if self.candidates is not None and self.select is None:
            raise RequestError(f"candidates means nothing without select; add select {_named('by_content')}")
        if self.select is None:
            return
        if self.select not in SAMPLERS:
            near = get_close_matches(str(self.select), SAMPLERS, n=1, cutoff=0)[0]
            raise RequestError(
                f"unknown select {self.select!r:.40}; did you mean {near!r}? Known: {', '.join(SAMPLERS)}"
            )
        if self.fps is not None and not SAMPLERS[self.select].by_time:
            raise RequestError(
                f"fps means nothing to select {self.select!r}, which counts frames; use select {_named('by_time')}"
            )
        if self.candidates is None:
            return
        if not SAMPLERS[self.select].by_content:
            raise RequestError(f"candidates means nothing to select {self.select!r}; use select {_named('by_content')}")
        if self.frames is not None and self.frames > self.candidates:
            raise RequestError(
                f"frames is {self.frames}, to be chosen among candidates {self.candidates}; ask for fewer frames, or "
                "choose among more"
            )

    def as_candidates(self) -> MediaOptions:
        """The same stretch of the video, of which every candidate is meant."""
        return MediaOptions(select="mdp3", start=self.start, end=self.end)

    @property
    def by_content(self) -> bool:
        """Whether frames are chosen by what they show, so that a question is needed."""
        return self.select is not None and SAMPLERS[self.select].by_content


@dataclass(frozen=True)
class Limits:
    """What one medium, or one call of `open_media`, may cost and reach. Sizes in pixels or bytes, times in seconds."""

    max_pixels: int = 50_000_000  # of one picture or frame, upright or not
    min_side: int = 2  # pixels; a thinner picture shows nothing and breaks patch grids
    max_aspect: float = 200.0  # longer side over shorter side
    max_frames: int = 512  # kept of one video, or given as a list
    max_image_bytes: int = 64 * MiB  # encoded, of one picture
    max_video_bytes: int = (
        512 * MiB
    )  # encoded, of one video in memory; a local video file is read in place and may be larger
    max_decoded_bytes: int = 4096 * MiB  # RGB, of all frames of one call together
    connect_seconds: float = 5.0
    fetch_seconds: float = 30.0  # from the first name lookup to the last byte, redirects included
    decode_seconds: float = 120.0  # of one medium
    max_redirects: int = 3
    allow_urls: bool = True
    url_hosts: tuple[str, ...] | None = None  # the only hosts to fetch from; None: any public one
    allow_private_addresses: bool = False  # loopback, private networks, link-local
    file_roots: tuple[Path, ...] | None = None  # the only folders local files are read from; None: any; (): none

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(("max_", "min_")) or field.name.endswith("_seconds"):
                lowest = 0 if field.name == "max_redirects" else 1 if isinstance(field.default, int) else 0.001
                if not _is_number(value) or value < lowest:
                    raise RequestError(f"{field.name} is {value!r:.40}; give a number from {lowest} up")


def beyond(name: str, found: str, limits: Limits, field: str) -> MediaError:
    """The error for a medium over a limit: what was found, the limit, and the option that raises it."""
    value = getattr(limits, field)
    amount = size(value) if field.endswith("_bytes") else f"{value:,} s" if field.endswith("_seconds") else f"{value:,}"
    return MediaError(
        f"{name} {found}; the limit is {amount}, raise it with --{field.replace('_', '-')} or Limits({field}=…)"
    )


def size(count: float) -> str:
    """Return a number of bytes as a user reads it; exact where rounding would make it look like a whole limit."""
    if count < MiB or (count % MiB and f"{count / MiB:.1f}".endswith(".0")):
        return f"{count:,} byte{'' if count == 1 else 's'}"
    return f"{count / MiB:,.{1 if count % MiB else 0}f} MiB"


def _named(trait: str) -> str:
    """The samplers with a trait, as an error names them."""
    return " or ".join(name for name, sampler in SAMPLERS.items() if getattr(sampler, trait))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
