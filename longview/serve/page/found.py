"""What a search has found, as HTML: thumbnails with their files and seconds, and passages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longview.curves import format_time
from longview.serve.indexes import Result

NOTHING = '<p class="lv-hint">Nothing was found.</p>'


def html(results: Sequence[Result], warnings: Sequence[str]) -> str:
    """A card for each, best first, and what is no longer there."""
    told = "".join(f'<p class="lv-hint">{escape(warning)}</p>' for warning in warnings)
    cards = "".join(map(_card, results))
    return f'<ol class="lv-frames lv-results">{cards}</ol>{told}' if cards else NOTHING + told


def refused(message: str) -> str:
    """Why nothing was searched."""
    return f'<p class="lv-hint" role="alert">{escape(message)}</p>'


def _card(result: Result) -> str:
    found, name = result.found, escape(result.name, quote=True)
    when = ""
    if found["kind"] == "moment":
        when = f"{format_time(found['begin'])} – {format_time(found['end'])}"
    elif found["kind"] == "passage":
        when = f"passage {found['place'] + 1}"
    if result.thumbnail:
        shown = f'<img src="data:image/jpeg;base64,{result.thumbnail}" alt="{name} {when}" loading="lazy">'
    elif found.get("text"):
        shown = f"<blockquote>{escape(found['text'])}</blockquote>"
    else:
        shown = '<span class="lv-blank"></span>'
    source = f"<i>{escape(found['source'])}</i>" if found.get("source") else ""
    return (
        f'<li class="lv-frame" title="{name}, score {found["score"]:.3f}">{shown}<b>{when or "picture"}</b>'
        f"<span>{name}</span>{source}</li>"
    )
