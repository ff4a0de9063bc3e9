"""The deletion check as a whole, for a page: changes without several pictures, as a chart and a table."""

from __future__ import annotations

from longview.evidence.sentences import CLEARLY, signed
from longview.evidence.view import View

WIDE, HIGH, LEFT, TOP, BOTTOM = 340, 190, 40, 12, 26
MIN_APART = 14
"""Of two labels."""


def steps_html(view: View) -> str:
    """The section of the page; nothing for a single picture."""
    steps = view.deletion["steps"] if view.deletion else []
    if not steps:
        return ""
    rows = "".join(
        f"<tr><td>{each['count']}</td><td>{signed(each['highest'])}</td><td>{signed(each['lowest'])}</td>"
        f"<td>{signed(each['random_mean'])} ± {each['random_deviation']:.1f}</td></tr>"
        for each in steps
    )
    table = (
        "<div class=wide><table><thead><tr><th>pictures left out</th><th>highest shares</th><th>lowest</th>"
        f"<th>at random</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    title = "<h3>Without several pictures <small>change of the answer's log-probability, in nats</small></h3>"
    return f'<section class="steps">{title}<div class="both">{_chart(view)}{table}</div></section>'


def _chart(view: View) -> str:
    assert view.deletion is not None
    steps = view.deletion["steps"]
    spread = [each["random_mean"] + sign * each["random_deviation"] for each in steps for sign in (-1, 1)]
    every = [0.0, *spread, *(each[name] for each in steps for name in ("highest", "lowest"))]
    low, high = min(*every, -CLEARLY), max(every)

    def x(place: int) -> float:
        return LEFT + 16 + place * (WIDE - LEFT - 32) / max(1, len(steps) - 1)

    def y(nats: float) -> float:
        return TOP + (high - nats) / (high - low) * (HIGH - TOP - BOTTOM)

    parts = [
        f'<line class="rule" x1="{LEFT}" x2="{WIDE}" y1="{y(nats):.1f}" y2="{y(nats):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(nats) + 4:.1f}" text-anchor="end">{signed(nats)}</text>'
        for nats in {0.0, *(end for end in (low, high) if abs(y(end) - y(0.0)) > MIN_APART)}
    ]
    for place, each in enumerate(steps):
        above, below = (y(each["random_mean"] + sign * each["random_deviation"]) for sign in (1, -1))
        at = x(place)
        parts.append(
            f'<path class="error" d="M{at:.1f} {above:.1f}V{below:.1f}m-4 0h8M{at - 4:.1f} {above:.1f}h8"/>'
            f'<text x="{at:.1f}" y="{HIGH - 8}" text-anchor="middle">{each["count"]}</text>'
        )
    for kind, name in (("random", "random_mean"), ("lowest", "lowest"), ("highest", "highest")):
        points = [(x(place), y(each[name])) for place, each in enumerate(steps)]
        parts.append(f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>')
        parts += [f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>' for a, b in points]
    keys = "".join(
        f'<span class="key {kind}">{label}</span>'
        for kind, label in (("highest", "highest shares"), ("lowest", "lowest"), ("random", "at random, ± deviation"))
    )
    label = "Change of the log-probability against the number of pictures that are left out"
    drawn = f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<div class="chart">{drawn}<p class="keys">{keys}</p></div>'
