"""How an index is made, and how it is searched; the options of the command line are derived from these."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from longview.errors import RequestError
from longview.settings import setting, validate


@dataclass(frozen=True)
class IndexOptions:
    """What is kept of videos.

    Raises:
        RequestError: a value outside its range.
    """

    rate: float = setting(1.0, "Frames a second of a video.", low=0, above=True, high=60)
    duplicate: float = setting(
        0.985, "A frame whose cosine with the one kept before reaches this is left out.", low=0, high=1
    )
    shot: float = setting(0.85, "A frame whose cosine with the one before is below this begins a shot.", low=-1, high=1)

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class FindOptions:
    """What is found.

    Raises:
        RequestError: a value outside its range.
    """

    top: int = setting(20, "Moments, pictures and passages, at most.", low=1, high=10_000)
    under: str | None = setting(None, "Only files below this folder.")
    after: str | None = setting(None, "Only files changed since this day, as 2026-11-29.")
    before: str | None = setting(None, "Only files changed before this day.")
    min_duration: float | None = setting(None, "Only videos of at least so many seconds.", low=0)
    max_duration: float | None = setting(None, "Only videos of at most so many seconds.", low=0)

    def __post_init__(self) -> None:
        validate(self)
        for given in (self.after, self.before):
            if given is not None:
                day(given)


def day(text: str) -> datetime.date:
    """
    Raises:
        RequestError: it is none.
    """
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise RequestError(f"{text!r:.40} is no day; expected one as 2026-11-29") from None
