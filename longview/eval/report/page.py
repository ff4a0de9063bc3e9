"""report.html: a result on one page that needs no network.

score, interval, what guessing gives, what was not understood, the published score
bars for each label: category, length, subject, …
answers that went wrong, with their pictures or frames, filtered by what became of them and by label
protocol, options, and all that is needed to repeat it
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import longview
from longview.errors import RequestError
from longview.eval.report.failures import KINDS, Pictures, chosen, kind_of
from longview.eval.report.markdown import REPORT, facts
from longview.eval.report.markdown import report as markdown
from longview.eval.results import Result
from longview.files import write_file
from longview.pages import STYLE

PAGE = "report.html"
MAX_BARS = 40


def write_reports(folder: Path, result: Result) -> Path:
    """Write report.md and report.html; returns the second.

    Raises:
        RequestError: one cannot be written; or a result that was read has lost pictures that a page which is there may
            have, and which therefore stays.
    """
    pictures = Pictures(result)
    written = page(result, pictures)
    write_file(folder / REPORT, markdown(result.numbers).encode())
    if pictures.missing and not result.graded and (folder / PAGE).exists():
        raise RequestError(
            f"{folder / PAGE} stays as it was, since its pictures cannot be read again: {pictures.missing[0]}; put "
            "them back, or remove the page for one without pictures"
        )
    write_file(folder / PAGE, written.encode())
    return folder / PAGE


def page(result: Result, pictures: Pictures | None = None) -> str:
    """The whole page."""
    numbers, pictures = result.numbers, pictures or Pictures(result)
    sections = [*_bars(numbers), *_curve(numbers), _answers(result, pictures), _settings(numbers)]
    return _PAGE.format(
        style=STYLE,
        own=_STYLE,
        script=_SCRIPT,
        title=escape(f"{numbers['title']}: {numbers['model']}"),
        about=escape(f"{numbers['metric']}, protocol {numbers['protocol']['name']}"),
        tiles="".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in _tiles(numbers)),
        sections="\n".join(filter(None, sections)),
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=longview.__version__,
    )


def _tiles(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"95 %: {numbers['low']:.1f} – {numbers['high']:.1f}", f"{numbers['score']:.1f}{numbers['scale']}"
    for name, value in numbers.get("more", {}).items():
        yield name, f"{value:.1f}"
    if numbers["guessing"] is not None:
        yield "guessing", f"{numbers['guessing']:.1f}%"
    yield "not understood", f"{numbers['unparsed']:.1f}%"
    if numbers["published"]:
        yield f"published for {numbers['published']['model']}", f"{numbers['published']['score']:.1f}"
    yield f"of {numbers['of']:,} questions", f"{numbers['questions']:,}"
    if numbers["failed"]:
        yield "failed", f"{numbers['failed']:,}"


def _bars(numbers: Mapping[str, Any]) -> Iterator[str]:
    """A chart for each label."""
    top = (
        100.0
        if numbers["scale"] == "%"
        else max(100.0, *(r["score"] for rows in numbers["by"].values() for r in rows.values()), 0.0)
    )
    for label, rows in numbers["by"].items():
        lines = []
        for name, row in list(rows.items())[:MAX_BARS]:
            share = max(0.0, min(1.0, row["score"] / top))
            lines.append(
                f'<div class="bar"><span>{escape(str(name))}</span><i><u style="width:{100 * share:.1f}%"></u></i>'
                f"<b>{row['score']:.1f}</b><small>{row['questions']:,}</small></div>"
            )
        more = f'<p class="faint">and {len(rows) - MAX_BARS} more, in results.json</p>' if len(rows) > MAX_BARS else ""
        yield f'<section><h2>By {escape(label)}</h2><div class="bars">{"".join(lines)}</div>{more}</section>'


def _curve(numbers: Mapping[str, Any]) -> Iterator[str]:
    """Accuracy against the number of pictures, where that was measured."""
    if numbers.get("curve"):
        from longview.eval.report.curve import svg

        yield f"<section><h2>Against the number of pictures</h2>{svg(numbers)}</section>"


def _answers(result: Result, pictures: Pictures) -> str:
    shown = chosen(result.samples)
    if not shown:
        return ""
    kinds = [kind for kind in KINDS if any(kind_of(sample) == kind for sample in shown)]
    labels = {name: sorted({s["labels"][name] for s in shown if name in s["labels"]}) for name in result.numbers["by"]}
    filters = _filter("kind", "what became of it", kinds)
    filters += "".join(
        _filter(f"label-{n}", name, labels[name]) for n, name in enumerate(labels) if len(labels[name]) > 1
    )
    cards = "".join(_card(sample, pictures, list(labels)) for sample in shown)
    lost = "".join(f'<p class="faint">without pictures: {escape(why)}</p>' for why in pictures.missing[:1])
    counts = ", ".join(f"{sum(kind_of(s) == kind for s in result.samples):,} {kind}" for kind in KINDS)
    return (
        f"<section><h2>Answers<small>{counts}; {len(shown)} are shown, samples.jsonl has all</small></h2>"
        f'{lost}<div class="filters">{filters}</div><div class="cards">{cards}</div></section>'
    )


def _filter(key: str, name: str, values: Sequence[str]) -> str:
    options = "".join(f"<option>{escape(str(value))}</option>" for value in values)
    return f'<label>{escape(name)} <select data-key="{key}"><option value="">all</option>{options}</select></label>'


def _card(sample: Mapping[str, Any], pictures: Pictures, labels: Sequence[str]) -> str:
    kind = kind_of(sample)
    found, count = pictures.of(sample)
    drawn = "".join(f'<img src="{picture}" alt="">' for picture in found)
    if count > len(found) and found:
        drawn += f'<span class="faint">of {count:,}</span>'
    options = sample.get("options", ())
    listed = "".join(
        f"<br>{escape(f'{letter}. {option}')}" for letter, option in zip("ABCDEFGHIJ", options, strict=False)
    )
    parsed = "nothing" if sample["parsed"] is None else str(sample["parsed"])
    if not sample["understood"] and sample["parsed"] is not None:
        parsed += " (by the protocol's default)"
    rows = [("truth", _said(sample["truth"]), "right"), ("answer", str(sample.get("answer", "")), "after")]
    rows += [("judge", str(sample["judge"]), "")] if sample.get("judge") else []
    rows += [("error", sample["error"], "")] if "error" in sample else [("parsed", parsed, "")]
    rows += [("score", f"{sample['score']:.2f}", "")] if sample["score"] not in (0, 1) else []
    cells = "".join(
        f'<dt>{name}</dt><dd class="{style}">{escape(text) or "<i>nothing</i>"}</dd>' for name, text, style in rows
    )
    data = {"kind": kind} | {f"label-{n}": sample["labels"].get(name, "") for n, name in enumerate(labels)}
    marks = "".join(f' data-{key}="{escape(str(value), quote=True)}"' for key, value in data.items())
    tags = " · ".join([kind, *map(str, sample["labels"].values()), str(sample["id"])])
    return (
        f'<article{marks}><div class="pictures">{drawn}</div><p class="question">{escape(sample["question"])}'
        f'<span class="options">{listed}</span></p><dl>{cells}</dl><p class="faint tags">{escape(tags)}</p></article>'
    )


def _said(truth: Any) -> str:
    return " | ".join(dict.fromkeys(map(str, truth))) if isinstance(truth, list) else str(truth)


def _settings(numbers: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in facts(numbers))
    return f'<section><h2>What was measured, and how</h2><div class="wide"><table>{rows}</table></div></section>'


_STYLE = """
.bars { display: grid; gap: 4px; }
.bar { display: grid; grid-template-columns: minmax(90px, 240px) 1fr 52px 52px; gap: 10px; align-items: center;
  font-size: 13.5px; font-variant-numeric: tabular-nums; }
.bar i { height: 12px; background: var(--rule); border-radius: 3px; overflow: hidden; }
.bar u { display: block; height: 100%; background: var(--curve); }
.bar b, .bar small { text-align: right; font-weight: 600; }
.bar small { color: var(--faint); font-weight: 400; }
.filters { display: flex; flex-wrap: wrap; gap: 10px 18px; margin-bottom: 14px; font-size: 13px; color: var(--faint); }
select { font: inherit; padding: 3px 6px; color: var(--ink); background: var(--card); border: 1px solid var(--rule);
  border-radius: 6px; max-width: 220px; }
.options { font-weight: 400; }
.tags { margin: 10px 0 0; font-size: 12px; }
dd.right { color: var(--good); font-weight: 600; }
[hidden] { display: none !important; }
"""
_SCRIPT = """
const filters = [...document.querySelectorAll('select')];
function show() {
  for (const card of document.querySelectorAll('article')) {
    card.hidden = filters.some(f => f.value && card.getAttribute('data-' + f.dataset.key) !== f.value);
  }
}
filters.forEach(f => f.addEventListener('change', show));
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>
{style}{own}</style></head><body>
<h1>{title}</h1>
<p class="about">{about}</p>
<div class="tiles">{tiles}</div>
{sections}
<footer>written {made} by longview {version}</footer>
<script>{script}</script>
</body></html>
"""
