"""One self-contained page of one answer's evidence, or of two side by side: HTML that asks nothing of any address.

    question ── layers and legend ── view: answer, check, tokens ── axes ── pictures ── steps of the check ── words

`page.js` draws the maps of the token that is pointed at. With `MOST_DETAILED` pictures shown large and the
engine's bound on the numbers of a map, a page has at most about 12 MB for each answer, whatever was asked.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from longview.evidence.sentences import CLEARLY, signed
from longview.evidence.steps import steps_html
from longview.evidence.view import CAUTION, Axis, PictureView, View, axes_of, ramp
from longview.pages import STYLE
from longview.wording import counted

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
MOST_WORDS = 6
"""Visual words that are listed below a picture."""
MOST_MARKS = 7


def html(views: Sequence[View]) -> str:
    """The page of one answer, or of several to the same question."""
    question = views[0].data["question"] or "(no text)"
    data = {
        "ramp": ramp().tolist(),
        "views": [
            {"pictures": [each.packed(each in view.detailed) for each in view.pictures], "tokens": view.tokens}
            for view in views
        ],
    }
    return _PAGE.format(
        policy=escape(POLICY),
        title=escape(question),
        style=STYLE + _file("page.css"),
        caution=escape(CAUTION),
        layers=_layers(views),
        views="\n".join(
            _view(view, axes, number) for number, (view, axes) in enumerate(zip(views, axes_of(views), strict=True))
        ),
        columns=len(views),
        data=_inert(json.dumps(data, ensure_ascii=False, separators=(",", ":"))),
        script=_file("page.js"),
    )


def _file(name: str) -> str:
    return (files("longview.evidence") / name).read_text(encoding="utf-8")


def _inert(text: str) -> str:
    """JSON that ends no element of HTML."""
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _layers(views: Sequence[View]) -> str:
    """What is drawn over the pictures, to be switched on and off, and the legend."""
    every = [picture.data for view in views for picture in view.pictures]
    found = [("heat", "Heat map", True)]
    if any("words" in each for each in every):
        found.append(("words", "Visual words", False))
    if any("mined" in each for each in every):
        found.append(("mined", "Mined windows", False))
    boxes = "".join(
        f'<label><input type="checkbox" data-layer="{name}"{" checked" if on else ""}> {label}</label>'
        for name, label, on in found
    )
    own = '<label><input type="checkbox" id="own"> Each picture by its own highest cell</label>'
    return f'<fieldset class="layers"><legend>Over the pictures</legend>{boxes}{own}{_LEGEND}</fieldset>'


_LEGEND = (
    '<span class="legend" role="img" aria-label="Colours of the heat map, from no attention to its highest cell">'
    '<span>0</span><canvas id="ramp" width="256" height="1"></canvas><span id="highest"></span></span>'
)


# ── one answer ──


def _view(view: View, axes: Sequence[Axis], number: int) -> str:
    some, every = len(view.tokens), len(view.evidence["tokens"])
    more = f'<p class="faint">The first {some} tokens of {every}.</p>' if some < every else ""
    return f"""<article class="view" data-view="{number}" aria-label="{escape(view.label)}">
<h2>{escape(view.data["text"]) or "(nothing)"} <small>{escape(view.label)}</small></h2>
{_sentences(view)}
{_tokens(view)}{more}
<p class="now" aria-live="polite"></p>
{"".join(_axis(axis, number) for axis in axes)}
<div class="cards">{"".join(_card(each, view, number) for each in view.detailed)}</div>
{_others(view, number)}
{steps_html(view)}
{_shared_words(view)}
<p class="faint">{escape(_about(view))}</p>
</article>"""


def _about(view: View) -> str:
    parts = [f"A share is {view.evidence['signal']} ({counted(len(view.evidence['layers']), 'layer')})"]
    deletion = view.deletion
    if deletion is not None:
        parts.append(
            f"the check took {counted(deletion['passes'], 'pass', 'passes')} and {deletion['seconds']:.1f} s, and "
            f"scored {counted(deletion['tokens'], 'token')}, of {signed(deletion['logprob'])} nats with all pictures"
        )
    return f"{'; '.join(parts)}."


def _sentences(view: View) -> str:
    if view.deletion is None:
        return '<p class="verdict faint">The deletion check was not made.</p>'
    first, *against = map(escape, view.sentences)
    warnings = "".join(f'<p class="against" role="note">{each}</p>' for each in against)
    return f'<p class="verdict">{first}</p>{warnings}'


def _tokens(view: View) -> str:
    """The answer's tokens, as radio buttons: arrow keys go from one to the next."""
    totals = [sum(each) for each in zip(*(picture.shares[1:] for picture in view.pictures), strict=True)]
    buttons = ['<button type="button" role="radio" aria-checked="true" data-token="0">whole answer</button>']
    for number, (token, total) in enumerate(zip(view.tokens, totals, strict=True), 1):
        shown = escape(token.replace("\n", "⏎"))
        buttons.append(
            f'<button type="button" role="radio" aria-checked="false" tabindex="-1" data-token="{number}" '
            f'style="--part:{min(1.0, total):.3f}" aria-label="token {number}: {shown.strip() or "space"}, '
            f'{total:.1%} on pictures">{shown or "∅"}</button>'
        )
    return f'<div class="tokens" role="radiogroup" aria-label="Tokens of the answer">{"".join(buttons)}</div>'


# ── timeline ──


def _axis(axis: Axis, view: int) -> str:
    curve, highest = axis.curve, max(max(picture.data["share"] for picture in axis.pictures), 1e-9)
    losses = [-picture.change for picture in axis.pictures if picture.change is not None]
    deepest = max([*losses, CLEARLY])
    marks = "".join(
        f'<span class="mark {curve.anchor(mark)}" style="left:{axis.place(mark):.2%}">{label}</span>'
        for mark, label in curve.marks(MOST_MARKS)
    )
    bars = "".join(
        _bar(picture, view, place, picture.data["share"] / highest, deepest)
        for picture, place in zip(axis.pictures, axis.places, strict=True)
    )
    keys = [f'<span class="key share">share of the attention, at most <b data-highest>{highest:.1%}</b></span>']
    if losses:
        keys.append(f'<span class="key loss">nats lost without it, at most <b>{max(0.0, *losses):.1f}</b></span>')
    if curve.values:
        low, high = min(curve.values), max(curve.values)
        keys.append(f'<span class="key relevance">relevance to the question, {low:.2f} to {high:.2f}; ● chosen</span>')
    width = f"max(3px, min(18px, {60 / max(1, len(axis.pictures)):.2f}%))"
    return f"""<figure class="axis{"" if losses else " unchecked"}" style="--wide:{width}">
<figcaption>{escape(axis.title)}</figcaption>
<div class="plot" role="group" aria-label="{escape(axis.title)}: shares and changes of {len(axis.pictures)} pictures">
{_relevance(axis)}{bars}{marks}</div><p class="keys">{"".join(keys)}</p></figure>"""


def _bar(picture: PictureView, view: int, place: float, height: float, deepest: float) -> str:
    said = escape(f"picture {picture.number}, {picture.label}: {picture.data['share']:.1%}; {picture.said}")
    lost = max(0.0, -(picture.change or 0.0)) / deepest
    return (
        f'<a href="#v{view}-{picture.number}" tabindex="-1" data-picture="{picture.number}" style="left:{place:.2%}" '
        f'aria-label="{said}" title="{said}"><i class="share" style="height:{height:.1%}"></i>'
        f'<i class="loss" style="height:{lost:.1%}"></i></a>'
    )


def _relevance(axis: Axis) -> str:
    curve = axis.curve
    if not curve.values:
        return ""
    low, high = curve.range

    def up(value: float) -> float:
        return 100 * (high - value) / (high - low)

    points = " ".join(
        f"{1000 * axis.place(each):.1f},{up(value):.1f}"
        for each, value in zip(curve.positions, curve.values, strict=True)
    )
    dots = "".join(
        f'<i class="pick" style="left:{axis.place(pick.position):.2%};top:{up(pick.value):.1f}%" '
        f'title="{escape(pick.label)}: relevance {pick.value:.2f}"></i>'
        for pick in curve.picks
    )
    return (
        '<div class="over"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="relevance over time"><polyline class="line" points="{points}"/></svg>{dots}</div>'
    )


# ── pictures ──


def _card(picture: PictureView, view: View, number: int) -> str:
    name = f"Picture {picture.number}"
    return f"""<figure class="card" id="v{number}-{picture.number}" data-picture="{picture.number}">
{_stage(picture, view, f"{name}: {picture.label}")}
<figcaption><b>{name}</b><span>{escape(picture.label)}</span><b class="rank">{picture.data["share"]:.1%}</b>
<span class="part"><i style="width:{min(1.0, picture.data["share"]):.1%}"></i></span>
{_check(picture, view)}{_words(picture)}{_mined(picture)}</figcaption></figure>"""


def _stage(picture: PictureView, view: View, label: str) -> str:
    """The picture, and a canvas over it for each layer."""
    jpeg = view.jpegs.get(picture.number)
    shown = '<span class="missing">no longer there</span>'
    if jpeg is not None:
        source = base64.b64encode(jpeg).decode()
        shown = f'<img alt="{escape(label)}" loading="lazy" decoding="async" src="data:image/jpeg;base64,{source}">'
    layers = "".join(f'<canvas data-layer="{name}" aria-hidden="true"></canvas>' for name in ("heat", "words", "mined"))
    shape = f"{picture.data['width']}/{picture.data['height']}"
    return f'<div class="stage" style="aspect-ratio:{shape}">{shown}{layers}</div>'


def _check(picture: PictureView, view: View) -> str:
    """What the answer loses without a picture, in words and on a scale with what it loses without any at random."""
    if picture.change is None:
        return "" if view.deletion is None else f'<span class="said">{escape(picture.said)}</span>'
    random, changes = view.at_random, [each.change or 0.0 for each in view.pictures]
    ends = [0.0, *changes] if random is None else [0.0, *changes, random[0] - random[1], random[0] + random[1]]
    low, high = min(*ends, -CLEARLY), max(ends)

    def place(nats: float) -> str:
        return f"{3 + 94 * (nats - low) / (high - low):.2f}%"

    said, band = picture.said, ""
    if random is not None:
        mean, deviation = random
        said += f"; {signed(mean)} ± {deviation:.1f} without one at random"
        wide = 94 * 2 * deviation / (high - low)
        band = (
            f'<i class="error" style="left:{place(mean - deviation)};width:{wide:.2f}%"></i>'
            f'<i class="mean" style="left:{place(mean)}"></i>'
        )
    clear = " clear" if picture.change <= -CLEARLY else ""
    return (
        f'<span class="said{clear}">{escape(said)}</span><span class="scale" aria-hidden="true">'
        f'<i class="zero" style="left:{place(0)}"></i>{band}<i class="dot" style="left:{place(picture.change)}"></i>'
        "</span>"
    )


def _words(picture: PictureView) -> str:
    words = picture.data.get("words")
    if not words:
        return ""
    counts: dict[int, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    found = sorted(counts, key=lambda word: (-counts[word], word))
    chips = "".join(_chip(word, counted(counts[word], "patch", "patches")) for word in found[:MOST_WORDS])
    left = len(found) - MOST_WORDS
    more = f'<span class="faint">and {counted(left, "other")}</span>' if left > 0 else ""
    return f'<span class="chips" aria-label="Visual words">{chips}{more}</span>'


def _chip(word: int, about: str) -> str:
    return (
        f'<button type="button" class="word" data-word="{word}" aria-pressed="false" '
        f'title="word {word}: {about}"><i></i>{word}</button>'
    )


def _mined(picture: PictureView) -> str:
    mined = picture.data.get("mined")
    if not mined:
        return ""
    found = counted(len(mined), "mined window")
    return f'<span class="said">{found}, of the patches with most attention: the bluer, the more is from there</span>'


def _others(view: View, number: int) -> str:
    if not view.others:
        return ""
    cards = "".join(
        f'<figure class="card" id="v{number}-{each.number}" data-picture="{each.number}">'
        f"{_stage(each, view, f'Picture {each.number}: {each.label}')}<figcaption><b>{each.number}</b>"
        f'<span>{escape(each.label)}</span><b class="rank">{each.data["share"]:.1%}</b>'
        f"{'' if each.change is None else f'<span class=said>{signed(each.change)} nats without it</span>'}"
        f"</figcaption></figure>"
        for each in view.others
    )
    below = counted(len(view.others), "picture")
    return f'<details class="others"><summary>{below} with lower shares</summary><div>{cards}</div></details>'


def _shared_words(view: View) -> str:
    shared = view.evidence["shared_words"]
    if not shared:
        return ""
    items = "".join(
        f"<li>{_chip(each['word'], 'shared')} pictures {each['pictures'][0]} and {each['pictures'][1]}"
        f' <span class="faint">{each["probability"]:.1%}</span></li>'
        for each in shared
    )
    small = "<small>with the smaller of a word's mean probabilities in the two</small>"
    return f'<section class="shared"><h3>Visual words that two pictures share {small}</h3><ul>{items}</ul></section>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style></head><body>
<header><p class="about">What the answer rests on</p><h1>{title}</h1><p class="about">{caution}</p></header>
{layers}
<main class="views" style="--columns:{columns}">
{views}
</main>
<script type="application/json" id="data">{data}</script>
<script>
{script}
</script>
</body></html>
"""
