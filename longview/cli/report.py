"""`longview report`: a run on one page, at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.export import check_run
from longview.cli.options import import_libraries
from longview.cli.terminal import is_terminal

Answers = Annotated[int, typer.Option(min=0, max=64, help="Sample questions to ask before and after; 0: none.")]


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, which may still be going on.", show_default=False)],
    answers: Answers = 4,
) -> None:
    """Write report.html into a run's folder: curves, answers, recipe.

    Examples (each run writes its own page when it ends; this is for those that have not):
      longview report runs/owl3-3-instruct
      longview report runs/recipes-lora --answers 0
    """
    check_run(run)
    import_libraries(is_terminal())
    from longview.train.report.page import write_report

    typer.echo(write_report(run, answers))
