"""The frames that the models were shown, as HTML whose buttons drop and pin them (`shown.js`).

<section data-model="demo-owl3" data-medium="0">    one for each medium of the conversation
  a curve of relevance, where frames were chosen by it
  <li data-index="12"> thumbnail, seconds, pin, drop
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from longview.curves import Curve, Pick, format_time
from longview.serve.page.asking import Media
from longview.serve.page.conversation import Conversation
from longview.wording import counted

SCRIPT = (Path(__file__).parent / "shown.js").read_text(encoding="utf-8")
EMPTY = '<p class="lv-hint">Here are the frames that the model was given, with their seconds, once it has answered.</p>'
CURVE_SIZE = 560, 150
MAX_MARKS = 6


def html(conversation: Conversation, number: int, opened: Mapping[str, Media]) -> str:
    """The frames of one turn: what each model was shown, once where they were shown the same."""
    sections: list[str] = []
    first = _first_with(opened)
    for model, media in opened.items():
        pins = [each.pinned for each in conversation.media(number, model)]
        if first[model] == model:
            sections += [
                _section(medium, model, len(set(first.values())), place, pinned)
                for place, (medium, pinned) in enumerate(zip(media, pins, strict=True))
            ]
    if not sections:
        return EMPTY
    models = "\n".join(f"{model}={other}" for model, other in first.items())
    buttons = _buttons() if any(medium["kind"] == "video" for media in opened.values() for medium in media) else ""
    return f'<div class="lv-media" data-models="{escape(models)}">{"".join(sections)}{buttons}</div>'


def _first_with(opened: Mapping[str, Media]) -> dict[str, str]:
    """Each model, and the first one that was shown the same frames, for which they are drawn."""

    def chosen(media: Media) -> list[Any]:
        return [
            (medium["name"], [frame["index"] for frame in medium["frames"]], medium["relevance"]) for medium in media
        ]

    return {
        model: next(other for other, its in opened.items() if chosen(its) == chosen(media))
        for model, media in opened.items()
    }


def _section(medium: Mapping[str, Any], model: str, models: int, place: int, pinned: Sequence[int]) -> str:
    frames = medium["frames"]
    about = []
    if medium["kind"] == "video":
        about.append(counted(len(frames), "frame"))
    if medium["duration"] is not None:
        about.append(format_time(medium["duration"]))
    if models > 1:
        about.append(model)
    cards = "".join(_card(frame, medium, frame["index"] in pinned) for frame in frames)
    return (
        f'<section data-model="{escape(model)}" data-medium="{place}" data-kind="{medium["kind"]}">'
        f"<h3>{escape(medium['name'])} <span>{escape(' · '.join(about))}</span></h3>"
        f'{curve_html(medium)}<ol class="lv-frames">{cards}</ol></section>'
    )


def _card(frame: Mapping[str, Any], medium: Mapping[str, Any], pinned: bool) -> str:
    when = _label(frame, medium)
    alt = escape(f"{medium['name']}{f' at {when}' if when else ''}", quote=True)
    picture = '<span class="lv-blank"></span>'
    if frame["jpeg"]:
        picture = f'<img src="data:image/jpeg;base64,{frame["jpeg"]}" alt="{alt}">'
    if medium["kind"] == "image":
        return f'<li class="lv-frame">{picture}</li>'
    buttons = (
        f'<button type="button" class="lv-pin" aria-pressed="{str(pinned).lower()}" title="Keep this frame whatever is '
        f'chosen" aria-label="Pin the frame at {when}">Pin</button>'
        f'<button type="button" class="lv-drop" aria-pressed="false" title="Do not show this frame" '
        f'aria-label="Drop the frame at {when}">Drop</button>'
    )
    return (
        f'<li class="lv-frame" data-index="{frame["index"]}">{picture}<b>{when}</b>'
        f'<span class="lv-does">{buttons}</span></li>'
    )


def _label(frame: Mapping[str, Any], medium: Mapping[str, Any]) -> str:
    if medium["kind"] == "image":
        return ""
    return f"picture {frame['index'] + 1}" if frame["seconds"] is None else format_time(frame["seconds"])


def _buttons() -> str:
    return (
        '<p class="lv-hint" aria-live="polite" data-count></p><div class="lv-again">'
        '<button type="button" class="lv-ask lv-primary">Ask again with these frames</button>'
        '<button type="button" class="lv-anew">Choose anew</button></div>'
    )


def curve_html(medium: Mapping[str, Any]) -> str:
    """The relevance of all candidates, with the chosen frames; nothing where nothing was compared."""
    relevance = medium["relevance"]
    if relevance is None or len(relevance["values"]) < 2:
        return ""
    timed = relevance["seconds"] is not None
    positions = relevance["seconds"] if timed else [float(index) for index in relevance["indices"]]
    by_index = dict(zip(relevance["indices"], zip(positions, relevance["values"], strict=True), strict=True))
    chosen = [(frame, by_index[frame["index"]]) for frame in medium["frames"] if frame["index"] in by_index]
    picks = [Pick(position, value, _label(frame, medium)) for frame, (position, value) in chosen]
    drawn = Curve(positions, relevance["values"], picks, timed).svg(*CURVE_SIZE, MAX_MARKS)
    return (
        f'<figure class="lv-curve">{drawn}<figcaption>relevance to the question; <i></i> chosen</figcaption></figure>'
    )


def kept(groups: Any) -> Iterable[tuple[str, int, list[int], list[int]]]:
    """What `shown.js` tells of the frames that are left: model, medium, indices, and those that are pinned."""
    found = [group for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    for group in found:
        model, medium = group.get("model"), group.get("medium")
        frames: Any = group.get("frames")
        pinned: Any = group.get("pinned")
        if isinstance(model, str) and isinstance(medium, int) and _numbers(frames) and _numbers(pinned):
            yield model, medium, sorted(frames), sorted(pinned)


def _numbers(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(each, int) and each >= 0 for each in given)
