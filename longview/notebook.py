"""How answers and receipts look in a notebook: HTML that needs nothing else, with thumbnails of the frames.

A receipt holds no pictures. `THUMBNAILS` keeps small ones of the frames that were looked at last, whichever engine did.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from longview.messages import Answer, FrameUsed, Receipt

SIDE = 96
"""Pixels of a thumbnail's longer side."""
MAX_SHOWN = 16
"""Thumbnails of one receipt."""

_FIGURE = "display:inline-block;margin:0 8px 8px 0;vertical-align:top;font-size:11px;text-align:center"
_BLANK = f"display:inline-block;width:{SIDE}px;height:{SIDE * 2 // 3}px;background:#8883"


class Thumbnails:
    """JPEGs of frames by the digest of their medium and their index in it; the least recently shown are dropped."""

    def __init__(self, max_frames: int = 2048) -> None:
        self.max_frames = max_frames
        self._jpegs: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, digest: str, index: int, image: Image.Image) -> None:
        """Keep a small copy of a frame."""
        key = digest, index
        if key in self._jpegs:
            return
        jpeg = thumbnail(image)
        with self._lock:
            self._jpegs[key] = jpeg
            while len(self._jpegs) > self.max_frames:
                self._jpegs.popitem(last=False)

    def get(self, digest: str, index: int) -> bytes | None:
        with self._lock:
            if (digest, index) in self._jpegs:
                self._jpegs.move_to_end((digest, index))
            return self._jpegs.get((digest, index))


THUMBNAILS = Thumbnails()


def spread(count: int, most: int = MAX_SHOWN) -> list[int]:
    """At most so many of `count` places, evenly spread."""
    return list(range(count)) if count <= most else [place * count // most for place in range(most)]


def answer_html(answer: Answer) -> str:
    """The text, and its receipt below."""
    ended = "" if answer.finish_reason == "stop" else f" <small>({escape(answer.finish_reason)})</small>"
    text = f'<div style="white-space:pre-wrap;margin-bottom:8px">{escape(answer.text)}{ended}</div>'
    return f"<div>{text}{receipt_html(answer.receipt)}</div>"


def receipt_html(receipt: Receipt) -> str:
    """Thumbnails of the frames, tokens and seconds, and warnings."""
    shown = [receipt.frames[place] for place in spread(len(receipt.frames))]
    figures = "".join(_figure(frame, receipt.digests) for frame in shown)
    more = (
        f"<div><small>{len(shown)} of {len(receipt.frames)} frames</small></div>" if shown != [*receipt.frames] else ""
    )
    warnings = "".join(f"<div><small>warning: {escape(warning)}</small></div>" for warning in receipt.warnings)
    return f"<div>{figures}{more}<div><small>{escape(receipt.summary)}</small></div>{warnings}</div>"


def _figure(frame: FrameUsed, digests: Sequence[str]) -> str:
    jpeg = THUMBNAILS.get(digests[frame.medium], frame.index) if frame.medium < len(digests) else None
    name = escape(frame.name, quote=True)
    picture = f'<span style="{_BLANK}"></span>'
    if jpeg is not None:
        picture = f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="{name}">'
    when = f"<br>{frame.seconds:.2f} s" if frame.seconds is not None else ""
    return f'<span style="{_FIGURE}">{picture}<br>{name}{when}</span>'


def thumbnail(image: Image.Image, side: int = SIDE) -> bytes:
    """A small copy of a picture as a JPEG, whose longer side has so many pixels at most."""
    factor = max(image.size) // (2 * side)
    small = image.reduce(factor) if factor > 1 and min(image.size) >= factor else image.copy()
    small.thumbnail((side, side))
    encoded = io.BytesIO()
    small.convert("RGB").save(encoded, "JPEG", quality=70)
    return encoded.getvalue()
