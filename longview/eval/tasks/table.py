"""The table of tasks as data: for `longview eval --list`, `--describe` and the documents."""

from __future__ import annotations

from typing import Any

from longview.eval.items import Item, Protocol, Shown
from longview.eval.published import published
from longview.eval.tasks.task import Task

RAN, NEVER = "ran on the real files", "never ran on the real files"


def row_of(task: Task) -> dict[str, Any]:
    """A task in a line."""
    return {
        "name": task.name,
        "title": task.title,
        "metric": task.metric.name,
        "protocols": list(task.protocols),
        "citation": task.citation,
        "judged": task.judging is not None,
        "ran": task.checked or ("needs no files" if task.make is not None else RAN if task.ran else NEVER),
    }


def described(task: Task) -> dict[str, Any]:
    """All about a task."""
    return {
        **row_of(task),
        "about": task.about,
        "files": [f"{form.about}: {', '.join(form.files)}".replace(" | ", " or ") for form in task.forms] or ["none"],
        "get": task.get,
        "protocols": {
            name: {"settings": protocol.facts(), "prompt": example(task, protocol), "note": protocol.note}
            for name, protocol in task.protocols.items()
        },
        "published": [vars(each) for each in published(task.name)],
    }


def example(task: Task, protocol: Protocol) -> str:
    """A protocol's prompt, with placeholders for what an item fills in."""
    kind = "video" if protocol.frames or task.shows == "video" else "image"
    shown = tuple(Shown(kind, bytes, "") for _ in range(task.pictures))  # type: ignore[arg-type]
    options = () if task.free else ("{A}", "{B}", "…")
    item = Item("0", "{question}", "", shown, options, facts=dict(task.example))
    return protocol.text(item)


def page() -> str:
    """The tables of the documents: all tasks, and every published score."""
    return f"{_tasks()}\n{_published()}"


def _tasks() -> str:
    from longview.eval.tasks import TASKS

    lines = [
        "## Tasks\n",
        "| task | benchmark | counts | protocols | checked | citation |",
        "|---|---|---|---|---|---|",
    ]
    for row in map(row_of, TASKS.values()):
        protocols = ", ".join(row["protocols"])
        cells = (f"`{row['name']}`", row["title"], row["metric"], protocols, row["ran"], row["citation"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _published() -> str:
    from longview.eval.tasks import TASKS

    lines = ["## Published scores\n", "What a result is put beside.\n"]
    lines += ["| task | model | score | source |", "|---|---|---|---|"]
    for name in TASKS:
        lines += [f"| `{name}` | {each.model} | {each.score:.1f} | {each.source} |" for each in published(name)]
    return "\n".join(lines) + "\n"
