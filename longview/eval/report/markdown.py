"""report.md: the numbers of a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from longview.wording import counted

REPORT = "report.md"


def facts(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is said about a result beside its scores, name by name."""
    scale = numbers["scale"]
    spread = f"{numbers['score']:.1f}{scale} (95 %: {numbers['low']:.1f} – {numbers['high']:.1f})"
    yield numbers["metric"], spread
    yield from ((name, f"{value:.1f}") for name, value in numbers.get("more", {}).items())
    if numbers["guessing"] is not None:
        yield "guessing", f"{numbers['guessing']:.1f}"
    yield "not understood", f"{numbers['unparsed']:.1f} % of the answers"
    if numbers["failed"]:
        yield "failed", f"{counted(numbers['failed'], 'answer')}, counted as wrong; the same command asks them again"
    if numbers.get("unjudged"):
        number = counted(numbers["unjudged"], "answer")
        yield "not judged", f"{number}: the judge failed, and the same command asks it again"
    if numbers["published"]:
        theirs = numbers["published"]
        yield "published", f"{theirs['score']:.1f} for {theirs['model']}, in {theirs['source']}"
    asked = f"{counted(numbers['questions'], 'question')} of {numbers['of']:,}, {counted(numbers['answers'], 'answer')}"
    yield "questions", asked
    yield "protocol", ", ".join(f"{name} {value}" for name, value in numbers["protocol"].items() if name != "name")
    yield "mode", "generated and parsed" if numbers["mode"] == "generate" else "the likeliest letter"
    if numbers.get("judge"):
        yield "judge", numbers["judge"]
    yield "model", f"{numbers['model']} ({numbers['where']})"
    yield "options", ", ".join(f"{name} {value}" for name, value in numbers["options"].items()) or "as usual"
    yield "written", f"{numbers['date']} by longview {numbers['longview']}; questions {numbers['questions_digest']}"


def report(numbers: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    lines = [f"# {numbers['title']}: {numbers['model']}", "", f"Protocol {numbers['protocol']['name']}.", ""]
    lines += ["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts(numbers)), ""]
    for label, rows in numbers["by"].items():
        lines += [f"| {label} | {numbers['metric']} | questions |", "|---|---|---|"]
        lines += [f"| {name} | {row['score']:.1f} | {row['questions']:,} |" for name, row in rows.items()] + [""]
    return "\n".join(lines)
