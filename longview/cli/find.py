"""`longview find`: moments of films, pictures and passages of an index."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview import names
from longview.cli.index import LIBRARIES
from longview.cli.options import import_libraries, named
from longview.cli.terminal import is_terminal, print_table, spinner
from longview.errors import MissingExtraError, RequestError
from longview.index.settings import FindOptions
from longview.versions import missing

if TYPE_CHECKING:
    from longview.index.moments import Found


def find(
    query: Annotated[
        list[str], typer.Argument(metavar="[TEXT] INDEX", help="What is looked for, and the index.", show_default=False)
    ],
    *,
    options: FindOptions,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Look for what is like this picture.")] = None,
    device: Annotated[
        str | None, named(names.check_device, "Device of the SigLIP checkpoint: cpu, cuda, cuda:N or mps.")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write a contact sheet: .html or .png; may be repeated."),
    ] = None,
    clips: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Cut the moments into files here, without encoding again.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find moments, pictures and passages in an index. Look for a text, for what is like a picture (--image), or both.

    Examples:
      longview find "a red circle flashes" my-index
      longview find "a dog on a beach" my-index --top 5 --out found.html --clips found
      longview find --image photo.jpg my-index --json
    """
    if len(query) > 2 or (len(query) < 2 and image is None):
        raise RequestError('expected a text and an index, as in longview find "a red circle" my-index')
    text, folder = (query[0] if len(query) == 2 else None), Path(query[-1]).expanduser()
    if missing(LIBRARIES):
        raise MissingExtraError("longview find", *LIBRARIES)
    from longview.index import sheet

    for path in out or ():
        sheet.check_path(path)
    show = is_terminal() and not json
    import_libraries(show)
    from longview.engine.devices import check_device
    from longview.index.clips import write_clips
    from longview.index.index import Index, as_dict, read_picture

    if device is not None:
        check_device(device)
    index = Index(folder, device=device)
    picture = None if image is None else read_picture(image)
    with spinner("looking", show):
        found, warnings = index.find(text, picture, options)
    if json:
        typer.echo(
            jsonlib.dumps({"found": [as_dict(each) for each in found], "warnings": warnings}, ensure_ascii=False)
        )
    else:
        _print(found)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if out:
        cards = sheet.cards(found)
        for path in out:
            sheet.write(text or str(image), cards, path)
            typer.echo(f"wrote {path}", err=True)
    if clips is not None:
        for path in write_clips(found, clips):
            typer.echo(f"wrote {path}", err=True)


def _print(found: list[Found]) -> None:
    from longview.index.sheet import clock

    rows = []
    for each in found:
        when = f"{clock(each.begin or 0)}–{clock(each.end or 0)}" if each.kind == "moment" else each.kind
        said = f"  {each.text[:60]}" if each.text else ""
        rows.append((f"{_short(each.path)}{said}", when, f"{each.score:.3f}"))
    print_table(("file", "when", "score"), rows)


def _short(path: str) -> str:
    """A path, from the current folder if it lies below it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
