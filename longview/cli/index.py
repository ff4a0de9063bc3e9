"""`longview index`: make films, pictures and passages searchable."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from longview import names
from longview.cli.options import import_libraries, named
from longview.cli.terminal import bars, is_terminal, spinner
from longview.errors import MissingExtraError
from longview.index.settings import IndexOptions
from longview.requests import Limits
from longview.versions import missing
from longview.wording import counted

LIBRARIES = ("lancedb",)
FAILED = 3
"""The exit code where some files could not be read."""


def index(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Folders of files, or files.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(metavar="INDEX", help="Folder of the index; made, or brought up to date.", show_default=False),
    ],
    *,
    options: IndexOptions,
    limits: Limits,
    similarity: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="SigLIP checkpoint; default: google/siglip-so400m-patch14-384."),
    ] = None,
    device: Annotated[
        str | None, named(names.check_device, "Device of the SigLIP checkpoint: cpu, cuda, cuda:N or mps.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: what became of the files.")] = False,
) -> None:
    """Make films, pictures and passages searchable. Passages are JSON lines of text, image and source. Unchanged files
    are not read again; stop it at any time, and go on with the same command. Ends with exit code 3 where a file could
    not be read.

    Examples:
      longview index ~/films ~/photos --output my-index
      longview index examples --output my-index --similarity demo-siglip
      longview index knowledge.jsonl --output dogs
    """
    if missing(LIBRARIES):
        raise MissingExtraError("longview index", *LIBRARIES)
    show = is_terminal() and not json
    import_libraries(show)
    from longview.engine.devices import best_device, check_device
    from longview.index.index import made_with, update_index
    from longview.models.similarity import DEFAULT, Similarity

    name = similarity or made_with(output.expanduser()) or DEFAULT
    device = device or best_device()
    check_device(device)
    with spinner("opening SigLIP", show):
        opened = Similarity.open(name, device)
    with bars(show) as progress:
        summary = update_index(output.expanduser(), folders, opened, name, options, limits, progress)
    if json:
        typer.echo(jsonlib.dumps(asdict(summary), ensure_ascii=False))
    else:
        for reason in summary.failed.values():
            typer.echo(f"left out: {reason}", err=True)
        changes = {"read": summary.added, "unchanged": summary.unchanged, "moved": summary.moved}
        changes |= {"removed": summary.removed, "left out": len(summary.failed)}
        told = ", ".join(f"{count:,} {what}" for what, count in changes.items() if count) or "nothing to do"
        typer.echo(f"{told}; {counted(summary.items, 'vector')} in {output}")
    if summary.failed:
        raise typer.Exit(FAILED)
