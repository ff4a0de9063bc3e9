"""The style of the pages that reports are: self-contained HTML, light and dark, that needs no network."""

from __future__ import annotations

STYLE = """\
:root { --paper: #faf9f6; --card: #fff; --ink: #22262a; --faint: #6f757c; --rule: #e4e2dc; --accent: #e4572e;
  --curve: #3c6e91; --good: #2f7d4f; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --card: #1f2226; --ink: #eceae5; --faint: #969ba3;
  --rule: #33373d; --accent: #ff8a65; --curve: #7fb3d5; --good: #7cc49a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: clamp(18px, 4vw, 44px); background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: clamp(23px, 4vw, 32px); line-height: 1.2; font-weight: 680; letter-spacing: -0.015em; }
h2 { margin: 0 0 14px; font-size: 19px; font-weight: 650; }
h2 small { display: block; font-size: 13px; font-weight: 400; color: var(--faint); }
section { margin-top: 40px; }
.about, .faint, footer { color: var(--faint); }
.about { margin: 6px 0 0; }
.state span { display: inline-block; margin-top: 12px; padding: 2px 12px; border-radius: 99px; font-size: 13px;
  border: 1px solid currentColor; }
.state .done { color: var(--good); }
.state .under-way { color: var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 12px; margin-top: 22px; }
.tiles div { padding: 12px 14px; border: 1px solid var(--rule); border-radius: 10px; background: var(--card);
  color: var(--faint); font-size: 12.5px; }
.tiles b { display: block; color: var(--ink); font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 14px; }
.chart, article { margin: 0; padding: 12px 14px; border: 1px solid var(--rule); border-radius: 10px;
  background: var(--card); }
figcaption { display: flex; justify-content: space-between; gap: 10px; font-size: 13px; color: var(--faint); }
figcaption b { color: var(--ink); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; margin-top: 4px; }
svg text { fill: var(--faint); font-size: 11px; font-variant-numeric: tabular-nums; }
.rule { stroke: var(--rule); }
polyline { fill: none; stroke: var(--curve); stroke-linejoin: round; }
.line { stroke-width: 1.8; }
.raw { stroke-width: 1; opacity: 0.35; }
.dot { fill: var(--curve); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 14px; }
.pictures { display: flex; flex-wrap: wrap; gap: 6px; align-items: end; }
.pictures img { height: 112px; max-width: 100%; border-radius: 6px; border: 1px solid var(--rule); }
.question { margin: 10px 0; font-weight: 600; white-space: pre-line; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; margin: 0; }
dt { color: var(--faint); font-size: 12.5px; padding-top: 2px; }
dd { margin: 0; white-space: pre-line; max-height: 9em; overflow: auto; }
dd.after { color: var(--curve); font-weight: 600; }
.wide { overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; overflow-wrap: normal; }
th, td { padding: 7px 12px; text-align: left; vertical-align: top; border-top: 1px solid var(--rule); }
th { border-top: 0; color: var(--faint); font-weight: 500; }
pre { margin: 0; padding: 14px; overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px;
  background: var(--card); font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { font: 12px ui-monospace, Menlo, Consolas, monospace; }
footer { margin-top: 44px; font-size: 12.5px; }
"""
