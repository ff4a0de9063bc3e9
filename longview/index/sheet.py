"""What was found, as one picture or one page: a thumbnail of each, with its file and seconds."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from longview.errors import LongviewError, RequestError
from longview.files import write_file
from longview.index.moments import Found
from longview.media.decoders.pictures import PictureSource
from longview.media.open import open_reader
from longview.requests import Limits

WIDTH, HEIGHT = 320, 200
"""Pixels of a thumbnail, at most."""
COLUMNS, GAP, LABEL = 4, 16, 40
SUFFIXES = (".html", ".png")


@dataclass(frozen=True)
class Card:
    """One thing that was found."""

    found: Found
    thumbnail: Image.Image | None
    """None: a passage, or a file that can no longer be read."""

    @property
    def label(self) -> str:
        found = self.found
        name = Path(found.path).name
        if found.kind == "moment":
            return f"{name}  {clock(found.begin or 0.0)}–{clock(found.end or 0.0)}"
        return f"{name}, passage {found.place + 1}" if found.kind == "passage" else name


def check_path(path: Path) -> None:
    """
    Raises:
        RequestError: a sheet cannot be written there, as far as can be checked beforehand.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"a sheet is written as .html or .png, and the file is {path.name!r:.80}; change its suffix")
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}; make it, or give another file")


def cards(found: Sequence[Found], limits: Limits | None = None) -> list[Card]:
    """Each with its thumbnail: the frame that fits best, or the picture."""
    return [Card(each, _thumbnail(each, limits or Limits())) for each in found]


def write(title: str, cards: Sequence[Card], path: Path) -> None:
    """Write a sheet in the format of the path's suffix.

    Raises:
        RequestError: another suffix, or a file that cannot be written.
    """
    check_path(path)
    write_file(path, html(title, cards).encode() if path.suffix.lower() == ".html" else png(cards))


def clock(seconds: float) -> str:
    """1:02 or 1:00:02."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _thumbnail(found: Found, limits: Limits) -> Image.Image | None:
    try:
        if found.kind == "picture":
            image, _ = PictureSource.of(Path(found.path), limits).decode(limits)
        elif found.kind == "moment" and found.frame is not None:
            reader = open_reader(Path(found.path), limits)
            try:
                image = next(iter(reader.read([found.frame]))).image
            finally:
                reader.close()
        else:
            return None
    except (LongviewError, IndexError):  # changed since
        return None
    image = image.copy()
    image.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    return image


def png(cards: Sequence[Card]) -> bytes:
    """A grid of thumbnails with their labels."""
    rows = max(1, -(-len(cards) // COLUMNS))
    size = GAP + COLUMNS * (WIDTH + GAP), GAP + rows * (HEIGHT + LABEL + GAP)
    sheet = Image.new("RGB", size, "#faf9f6")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, card in enumerate(cards):
        left = GAP + number % COLUMNS * (WIDTH + GAP)
        top = GAP + number // COLUMNS * (HEIGHT + LABEL + GAP)
        if card.thumbnail is None:
            draw.rectangle((left, top, left + WIDTH, top + HEIGHT), fill="#eceae4")
            draw.multiline_text((left + 10, top + 10), _wrapped(card.found.text), fill="#22262a", font=font)
        else:
            offset = (WIDTH - card.thumbnail.width) // 2, (HEIGHT - card.thumbnail.height) // 2
            sheet.paste(card.thumbnail, (left + offset[0], top + offset[1]))
        draw.text((left, top + HEIGHT + 6), card.label[:48], fill="#22262a", font=font)
        draw.text((left, top + HEIGHT + 22), f"{card.found.score:.3f}", fill="#7a7f86", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _wrapped(text: str, width: int = 44, lines: int = 10) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:lines])


def html(title: str, cards: Sequence[Card]) -> str:
    """A self-contained page."""
    figures = "\n".join(_figure(card) for card in cards) or "<p>Nothing was found.</p>"
    return _PAGE.format(title=escape(title), figures=figures, width=WIDTH)


def _figure(card: Card) -> str:
    found = card.found
    if card.thumbnail is None:
        shown = f"<blockquote>{escape(found.text)}</blockquote>"
    else:
        buffer = io.BytesIO()
        card.thumbnail.save(buffer, "JPEG", quality=82)
        data = base64.b64encode(buffer.getvalue()).decode()
        shown = f'<img alt="{escape(card.label)}" src="data:image/jpeg;base64,{data}">'
    source = f"<br>{escape(found.source)}" if found.source else ""
    place = f'<b>{escape(card.label)}</b><br><span title="{escape(found.path)}">{found.score:.3f}</span>{source}'
    return f"<figure>{shown}<figcaption>{place}</figcaption></figure>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: light-dark(#faf9f6, #17191c); --ink: light-dark(#22262a, #e8e6e1);
  --faint: light-dark(#62676d, #9aa0a6); --card: light-dark(#eceae4, #24272b) }}
body {{ background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem }}
h1 {{ font-size: 1.3rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min({width}px, 100%), 1fr)); gap: 1rem }}
figure {{ margin: 0 }}
img {{ width: 100%; aspect-ratio: 8 / 5; object-fit: contain; background: var(--card); border-radius: 6px }}
blockquote {{ margin: 0; padding: .8rem; aspect-ratio: 8 / 5; overflow: auto; background: var(--card);
  border-radius: 6px; box-sizing: border-box }}
figcaption {{ color: var(--faint); overflow-wrap: anywhere }}
figcaption b {{ color: var(--ink) }}
</style></head><body><h1>{title}</h1><main>
{figures}
</main></body></html>
"""
