"""`longview report`: a run of training, or an evaluation, on one page, at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.export import check_run
from longview.cli.options import import_libraries
from longview.cli.terminal import is_terminal

RESULTS = "results.json"
"""What tells the folder of an evaluation's task."""
Answers = Annotated[int, typer.Option(min=0, max=64, help="Sample questions to ask before and after; 0: none.")]


def report(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run, which may still be going on, or of an evaluation's task.", show_default=False
        ),
    ],
    answers: Answers = 4,
) -> None:
    """Write report.html into the folder of a run, or of an evaluation.

    Examples (each writes its own page when it ends; this is for those that have not, or whose page is old):
      longview report runs/owl3-3-instruct
      longview report runs/recipes-lora --answers 0
      longview report runs/eval/Ovis2-2B/mmbench_en
    """
    if (run / RESULTS).exists():
        from longview.eval.report.page import write_reports
        from longview.eval.results import read_result

        typer.echo(write_reports(run, read_result(run)))
        return
    check_run(run)
    import_libraries(is_terminal())
    from longview.train.report.page import write_report

    typer.echo(write_report(run, answers))
