"""Which answers a page shows, and their pictures, small."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from longview.errors import LongviewError
from longview.eval.items import Item, Shown
from longview.eval.results import Result
from longview.eval.tasks import Options, find_task
from longview.media import open_media
from longview.requests import Limits, MediaOptions

MOST = 60
"""Answers on a page."""
SHOWN = 4
"""Pictures, or frames, of each."""
SIDE = 240
"""Pixels of a picture's longer side."""
KINDS = ("wrong", "not understood", "failed", "right")
LIMITS = Limits(max_pictures=SHOWN)


def kind_of(sample: Mapping[str, Any]) -> str:
    """What became of an answer, in a word."""
    if "error" in sample:
        return "failed"
    if sample["score"] == 1:
        return "right"
    return "wrong" if sample["understood"] else "not understood"


def chosen(samples: Sequence[dict[str, Any]], most: int = MOST) -> list[dict[str, Any]]:
    """Answers that went wrong, of each kind and each label some; a few right ones fill up where there is room."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        kind = kind_of(sample)
        if kind != "right":
            groups.setdefault((KINDS.index(kind), *sample["labels"].values()), []).append(sample)
    found: list[dict[str, Any]] = []
    while groups and len(found) < most:
        for key in sorted(groups, key=str):
            found.append(groups[key].pop(0))
            if not groups[key]:
                del groups[key]
    right = [sample for sample in samples if kind_of(sample) == "right"]
    return found[:most] + right[: max(0, min(8, most - len(found)))]


class Pictures:
    """The pictures and frames of a result's answers, read where they were when it was made.

    Attributes:
        missing: Why some that were there are not any more.
    """

    def __init__(self, result: Result) -> None:
        self.missing: list[str] = []
        try:
            self._items = items_of(result)
        except LongviewError as error:
            self._items = {}
            self.missing.append(str(error))

    def of(self, sample: Mapping[str, Any]) -> tuple[list[str], int]:
        """Some of an answer's pictures or frames as data URIs, and how many there are in all."""
        try:
            return thumbnails(self._items.get(sample["id"]), sample)
        except LongviewError as error:
            if "error" not in sample:
                self.missing.append(str(error))
            return [], 0


def items_of(result: Result) -> dict[str, Item]:
    """The items of a result, by their ids.

    Raises:
        LongviewError: its files are not there any more.
    """
    if result.graded:
        return {each.item.id: each.item for each in result.graded}
    given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in result.numbers["options"].items()}
    data = result.numbers.get("data")
    options = Options(data=None if data is None else Path(data), **given)
    return {item.id: item for item in find_task(result.task).items(options)}


def thumbnails(item: Item | None, sample: Mapping[str, Any]) -> tuple[list[str], int]:
    """Some of an item's pictures or frames as data URIs, and how many there are in all.

    Raises:
        LongviewError: one does not open.
    """
    if item is None or not item.shown:
        return [], 0
    about = item.facts.get("about")  # the picture that is asked about, among distractors
    order = [about] if about is not None else range(min(SHOWN, len(item.shown)))
    if item.shown[0].kind == "video":
        frames = [frame for frame in sample.get("frames", ()) if frame.get("index") is not None]
        return _frames(item.shown[0]), max(len(frames), 1)
    found = [uri for place in order for uri in _opened(item.shown[place], MediaOptions())]
    return found, len(item.shown)


def _frames(shown: Shown) -> list[str]:
    return _opened(shown, MediaOptions(frames=SHOWN, select="uniform"))


def _opened(shown: Shown, options: MediaOptions) -> list[str]:
    """The frames of one medium."""
    (medium,) = open_media([shown.part(media=options)], options, LIMITS)
    return [uri(frame.image) for frame in medium.read()]


def uri(image: Image.Image) -> str:
    """A picture, small, as a data URI."""
    small, data = image.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    small.save(data, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
