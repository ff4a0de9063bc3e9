"""`longview recipes` and `longview examples`: what travels with the package beside its code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview import shipped
from longview.errors import RequestError


def recipes(
    copy: Annotated[
        str | None, typer.Option("--copy", metavar="NAME", help="Write this one to a file, to change it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where --copy writes; default: its name, in this folder.")
    ] = None,
) -> None:
    """List the recipes that `longview train NAME` knows, or copy one.

    Examples:
      longview recipes
      longview recipes --copy lora
      longview recipes --copy owl3/1-align --output my-align.yaml
    """
    if copy is not None:
        typer.echo(shipped.copy_recipe(copy, output))
        return
    if output is not None:
        raise RequestError(f"--output {output} is where --copy writes; name a recipe by --copy, or leave it out")
    found = shipped.recipes()
    width = max(map(len, found))
    for name, path in found.items():
        typer.echo(f"{name:<{width}}  {shipped.about(path)}")


def examples(
    folder: Annotated[Path, typer.Argument(help="Where they go; made if it is not there.", show_default=False)],
) -> None:
    """Write the files of the documents' examples into a folder.

    Examples:
      longview examples examples
      longview ask examples/shapes.jpg "What colour is the circle?"
    """
    for path in shipped.copy_examples(folder):
        typer.echo(path)
