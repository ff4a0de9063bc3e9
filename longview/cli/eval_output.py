"""What `longview eval` prints: results, comparisons, and the tasks there are."""

from __future__ import annotations

import json as jsonlib
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longview.cli.terminal import print_table
from longview.wording import counted

if TYPE_CHECKING:
    from longview.eval.compare import Comparison
    from longview.eval.results import Result
    from longview.eval.world import Score

CHANGED = 20
"""Answers that changed and are printed one by one."""
WIDTH = 100
BEHIND = ("protocol", "mode", "model", "options", "written")
"""Facts of a result that its files have, and its summary leaves out."""


def as_json(result: Result) -> dict[str, Any]:
    """A result as one JSON object; that of the world with its rows, as before there were other tasks."""
    if result.task != "world":
        return result.numbers
    from longview.eval.world import summarise

    scores = _world_scores(result)
    rows = {
        "kinds": [score.as_dict() for score in scores],
        "groups": [score.as_dict() for score in summarise(scores).values()],
    }
    options = {"shown": "shown", "seed": 0, **result.numbers["options"]}
    return {**result.numbers, "shown": options["shown"], "seed": options["seed"], **rows}


def print_result(result: Result, folder: Path | None) -> None:
    """A result for people."""
    if result.task == "world":
        _print_world(result)
    else:
        _print_numbers(result.numbers)
    if folder is not None:
        typer.echo(f"kept in {folder}")


def _print_numbers(numbers: Mapping[str, Any]) -> None:
    from longview.eval.report.markdown import facts

    typer.echo(f"{numbers['title']}, {numbers['model']}, protocol {numbers['protocol']['name']}")
    for name, value in facts(numbers):
        if name not in BEHIND:
            typer.echo(f"  {name:<28}{value}")
    for label, rows in numbers["by"].items():
        typer.echo()
        lines = [[str(name), f"{row['score']:.1f}", f"{row['questions']:,}"] for name, row in rows.items()]
        print_table([label, numbers["metric"], "questions"], lines)


def _world_scores(result: Result) -> list[Score]:
    from longview.eval.world import Score

    scores: dict[tuple[str, str], Score] = {}
    for sample in result.samples:
        key = sample["labels"]["group"], sample["labels"]["kind"]
        score = scores.setdefault(key, Score(*key))
        score.total += 1
        score.right += int(sample["score"])
        score.answers[sample["truth"]] += 1
    return list(scores.values())


def _print_world(result: Result) -> None:
    from longview.eval.world import summarise

    scores = _world_scores(result)
    lines = []
    for total in summarise(scores).values():
        lines.append(_line(total.group, total))
        lines += [_line(f"  {score.kind}", score) for score in scores if score.group == total.group]
    print_table(["media and kind", "right", "accuracy", "95 % interval", "guessing"], lines)


def _line(name: str, score: Score) -> list[str]:
    low, high = score.interval
    spread = f"{low:.1%} – {high:.1%}"
    return [name, f"{score.right}/{score.total}", f"{score.accuracy:.1%}", spread, f"{score.chance:.1%}"]


# ── tasks ──


def print_tasks(name: str | None, json: bool) -> None:
    """All tasks, a line each; or all about one."""
    from longview.eval.tasks import TASKS, find_task
    from longview.eval.tasks.table import described, row_of

    if name is not None:
        task = find_task(name)
        typer.echo(jsonlib.dumps(described(task), ensure_ascii=False) if json else _description(described(task)))
        return
    rows = [row_of(task) for task in TASKS.values()]
    if json:
        typer.echo(jsonlib.dumps(rows, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row['name']:<20}{row['title']:<42.41}{row['metric']:<26.25}{row['ran']}")


def _description(task: Mapping[str, Any]) -> str:
    lines = [f"{task['name']}: {task['title']}", "", *_wrapped(task["about"], ""), ""]
    lines += [f"citation    {task['citation']}", f"metric      {task['metric']}", f"checked     {task['ran']}"]
    if task["judged"]:
        lines.append("judge       --judge URL --judge-model NAME: any OpenAI-compatible server")
    lines += ["", "files", *(f"  {each}" for each in task["files"]), f"  from {task['get']}"]
    for name, protocol in task["protocols"].items():
        settings = ", ".join(f"{key} {value}" for key, value in protocol["settings"].items())
        lines += ["", f"protocol {name}: {settings}"]
        lines += [f"  | {line}" for line in protocol["prompt"].split("\n")]
        lines += _wrapped(protocol["note"], "  ") if protocol["note"] else []
    if task["published"]:
        lines += ["", "published"]
        lines += [f"  {each['model']:<28}{each['score']:8.1f}  {each['source']}" for each in task["published"]]
    return "\n".join(lines)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


# ── comparisons ──


def print_exported(written: Sequence[Mapping[str, Any]], to: str, folder: Path, json: bool) -> None:
    """What was written for another evaluator, and how it is asked."""
    if json:
        typer.echo(jsonlib.dumps({"to": to, "tasks": list(written)}, ensure_ascii=False))
        return
    for each in written:
        typer.echo(f"{each['task']}: {counted(each['questions'], 'question')} in {', '.join(each['files'])}")
        if to == "evalscope":
            settings = {"general_vqa": {"local_path": str(folder), "subset_list": [each["task"]]}}
            decoding = {"temperature": 0, "max_tokens": each["max_tokens"]}
            typer.echo(
                "evalscope eval --eval-type openai_api --api-url http://127.0.0.1:8000/v1 --model NAME --datasets "
                f"general_vqa --dataset-args {shlex.quote(jsonlib.dumps(settings, ensure_ascii=False))} "
                f"--generation-config {shlex.quote(jsonlib.dumps(decoding))}"
            )
        else:
            typer.echo(
                f"LMUData={shlex.quote(str(folder))} python run.py --data {each['task']} --model NAME "
                "--base-url http://127.0.0.1:8000/v1 --key none"
            )


def print_comparison(found: Comparison, rows: Sequence[Mapping[str, Any]], json: bool) -> None:
    """Two results, side by side."""
    if json:
        typer.echo(jsonlib.dumps({**found.as_dict(), "changed": list(rows)}, ensure_ascii=False))
        return
    first, second = found.names
    typer.echo(f"{found.task}: {counted(found.units, 'question')} that both were asked")
    if found.left_out:
        typer.echo(f"  {counted(found.left_out, 'question')} that only one was asked are left out")
    if found.differing:
        typer.echo(f"  {counted(found.differing, 'question')} of one number but of another text or truth are left out")
    table = [
        [name, f"{score:.2f}", f"{mean:.2f}", str(len(only))]
        for name, score, mean, only in zip(
            (f"A {first}", f"B {second}"), found.scores, found.means, (found.only_first, found.only_second), strict=True
        )
    ]
    only = "only it is right" if found.p is not None else "it is better in"
    print_table(["model", "score", "mean of these", only], table)
    verdict = "may be chance" if found.low <= 0 <= found.high else "is not chance"
    test = "no McNemar test of fractions" if found.p is None else f"p = {found.p:.3g} (McNemar)"
    typer.echo(
        f"B − A {found.difference:+.2f} (95 % {found.low:+.2f} … {found.high:+.2f}, paired bootstrap), {test}: "
        f"the difference {verdict}"
    )
    for row in rows[:CHANGED]:
        answers = " | ".join(" ".join(str(answer).split())[:40] for answer in row["answers"])
        typer.echo(
            f"  {row['id']:<14}{' '.join(row['question'].split())[:48]:<50}{answers}  (true: {row['truth']!s:.30})"
        )
    if len(rows) > CHANGED:
        typer.echo(f"  and {len(rows) - CHANGED} more; --json names all")
