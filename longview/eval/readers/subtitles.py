"""Subtitles: SRT files → lines with their seconds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from longview.errors import RequestError

_TIMES = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
_TAGS = re.compile(r"<[^>]*>")


class Subtitle(NamedTuple):
    """A line, and when it is on the screen."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> list[Subtitle]:
    """The lines of an SRT file, without its tags.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}); check the file") from None
    found = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        times = _TIMES.search(block)
        if times is None:
            continue
        numbers = [int(number) for number in times.groups()]
        said = " ".join(_TAGS.sub("", block[times.end() :]).split())
        if said:
            found.append(Subtitle(_seconds(numbers[:4], times[4]), _seconds(numbers[4:], times[8]), said))
    return found


def _seconds(numbers: list[int], fraction: str) -> float:
    hours, minutes, seconds, rest = numbers
    return hours * 3600 + minutes * 60 + seconds + rest / 10 ** len(fraction)
