"""`longview eval`: measure a model."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.options import ModelOptions, import_libraries
from longview.cli.terminal import bars, is_terminal
from longview.errors import RequestError

if TYPE_CHECKING:
    from longview.eval.world import Score

TASKS = ("world",)
SHOWN = ("shown", "blank", "swapped")


def evaluate(
    model: ModelOptions,
    task: Annotated[str, typer.Option(help="What is measured: world.")] = "world",
    shown: Annotated[
        str, typer.Option(help="Pictures that the model is given: shown (the true ones), blank or swapped.")
    ] = "shown",
    group: Annotated[
        list[str] | None, typer.Option(help="Only these media: one picture, two pictures, …, clip; may be repeated.")
    ] = None,
    per_kind: Annotated[
        int, typer.Option(metavar="N", help="Questions of each kind; four times as many of each event of clips.")
    ] = 50,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the questions.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a model's accuracy for each kind of question.

    Examples:
      longview eval --task world --model demo
      longview eval --shown blank --per-kind 20
      longview eval --model runs/curricula-owl3/model --json
    """
    if task not in TASKS:
        raise RequestError(f"unknown task {task!r}; there is {', '.join(TASKS)}")
    if shown not in SHOWN:
        raise RequestError(f"unknown value {shown!r} of --shown; expected {', '.join(SHOWN)}")
    if per_kind < 1:
        raise RequestError(f"per_kind is {per_kind}; give a whole number from 1 up")
    show = is_terminal() and not json
    model.locate(show)
    import_libraries(show, downloads=show)
    from longview.eval.world import GROUPS, evaluate, summarise

    unknown = [name for name in group or () if name not in GROUPS]
    if unknown:
        raise RequestError(f"unknown group {unknown[0]!r}; expected {', '.join(GROUPS)}")
    groups = tuple(dict.fromkeys(group or GROUPS))  # each once, however often it was named
    engine = model.load(show)

    with bars(show) as progress:
        report = (lambda done, total: progress(done, total, "asking")) if progress else None
        scores = evaluate(engine, seed, per_kind, shown, groups, report)  # type: ignore[arg-type]
    totals = list(summarise(scores).values())
    if json:
        rows = {"kinds": [score.as_dict() for score in scores], "groups": [score.as_dict() for score in totals]}
        typer.echo(jsonlib.dumps({"task": task, "model": engine.name, "shown": shown, "seed": seed, **rows}))
        return
    typer.echo(f"{'':<40}{'right':>10}  accuracy (95 % interval)  guessing")
    for total in totals:
        typer.echo(_line(total.group, total))
        for score in scores:
            if score.group == total.group:
                typer.echo(_line(f"  {score.kind}", score))


def _line(name: str, score: Score) -> str:
    low, high = score.interval
    spread = f"{score.accuracy:8.1%} ({low:.1%} – {high:.1%})"
    return f"{name:<40}{f'{score.right}/{score.total}':>10}  {spread:<24}  {score.chance:8.1%}"
