"""`longview export`: what a run has learned so far, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.merge import Target, check_target
from longview.cli.options import quieten
from longview.errors import CheckpointError


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, which may still be going on.", show_default=False)],
    folder: Target,
) -> None:
    """Write what a run has learned up to its newest checkpoint: a model, or an adapter where it trains one.

    Examples:
      longview export runs/demo-owl3 early-model
      longview ask --model early-model photo.jpg "What is it?"
    """
    check_target(folder)
    if not (run / "recipe.json").is_file():
        raise CheckpointError(f"{run} holds no run (recipe.json); name the folder that `longview train` wrote")
    quieten(show=False)
    from longview.train.export import export_checkpoint

    typer.echo(export_checkpoint(run, folder))
