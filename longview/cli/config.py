"""`longview config`: the default model, and short names of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from longview.cli.config_file import DEFAULT_MODEL, check_alias, config_path, read_config, write_config
from longview.errors import RequestError
from longview.models.sources import check_name


def config(
    key: Annotated[
        str | None, typer.Argument(help="model, or alias.NAME; without it, all is shown.", show_default=False)
    ] = None,
    value: Annotated[
        str | None, typer.Argument(help="What a --model may be: demo, a folder, a hub id.", show_default=False)
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Forget what was set for this key.")] = False,
) -> None:
    """Set the default model, and short names of models.

    Examples:
      longview config
      longview config model demo-ovis2
      longview config alias.owl mPLUG/mPLUG-Owl3-7B-241101
      longview ask --model owl photo.jpg "What is it?"
      longview config --unset alias.owl
    """
    known = read_config()
    if key is None:
        if unset:
            raise RequestError("--unset needs a key: model, or alias.NAME")
        typer.echo(f"{'file':<14}{config_path()}")
        typer.echo(f"{'model':<14}{known.model or f'{DEFAULT_MODEL} (nothing is set)'}")
        for alias, name in known.aliases.items():
            typer.echo(f"{f'alias.{alias}':<14}{name}")
        return
    kind, _, alias = key.partition(".")
    if key != "model" and not (kind == "alias" and alias):
        raise RequestError(f"unknown key {key!r:.40}; there are model and alias.NAME")
    if unset == (value is not None):
        raise RequestError(f"give either a value for {key}, or --unset")
    if value is not None:
        check_name(known.model_named(value))
    if key == "model":
        write_config(replace(known, model=value))
        return
    if value is None and alias not in known.aliases:
        raise RequestError(f"there is no alias {alias!r:.40}; longview config lists them")
    aliases = {name: model for name, model in known.aliases.items() if name != alias}
    if value is not None:
        check_alias(alias, value)
        aliases[alias] = known.model_named(value)
    write_config(replace(known, aliases=aliases))
