"""`longview export`: what a run has learned so far, as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.options import import_libraries
from longview.cli.terminal import is_terminal
from longview.errors import CheckpointError, RequestError
from longview.files import UNFINISHED, writing

if TYPE_CHECKING:
    from longview.models.official import Form

Target = Annotated[Path, typer.Argument(help="Folder to be written; it must not hold a model yet.", show_default=False)]


@dataclass
class HubOptions:
    """Where it goes"""

    official: Annotated[
        bool, typer.Option("--official", help="In the form of the authors' releases, which their code reads, too.")
    ] = False
    transformers: Annotated[
        bool,
        typer.Option("--transformers", help="In the form of transformers' own model: Ovis2 only."),
    ] = False
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="NAME", help="Upload it to the Hugging Face hub as well, under this name.")
    ] = None
    private: Annotated[bool, typer.Option("--private", help="A repository made for that is private.")] = False

    @property
    def form(self) -> Form | None:
        """The form of the folder, where it is not longview's own."""
        return "official" if self.official else "transformers" if self.transformers else None

    def check(self) -> None:
        """
        Raises:
            RequestError, CheckpointError: they contradict each other, or the hub's name or token is missing.
        """
        if self.official and self.transformers:
            raise RequestError("--official and --transformers are two forms of a folder; choose one")
        if self.private and self.push_to_hub is None:
            raise RequestError("--private is about --push-to-hub; name a repository, or leave it out")
        if self.push_to_hub is not None:
            from longview.train.saved.hub import check_name

            check_name(self.push_to_hub)

    def push(self, folder: Path, base: str | None, run: Path | None) -> str | None:
        """Upload a folder with a card of its own; returns its address, or None where that is not wanted."""
        if self.push_to_hub is None:
            return None
        from longview.train.saved.hub import push, write_card

        with writing(folder):
            write_card(folder, self.push_to_hub, base, run)
        return push(folder, self.push_to_hub, self.private)


def export(
    run: Annotated[
        Path,
        typer.Argument(help="Folder of a run, which may still be going on; or a model as --model.", show_default=False),
    ],
    folder: Target,
    hub: HubOptions,
) -> None:
    """Write what a run has learned so far, or a model in another form.

    Examples:
      longview export runs/ovis2-3-instruct early-model
      longview ask --model early-model photo.jpg "What is it?"
      longview export runs/ovis2-3-instruct my-ovis --official
      longview export AIDC-AI/Ovis2-2B ovis2-2b-hf --transformers
      longview export runs/recipes-lora my-adapter --push-to-hub you/my-adapter --private
    """
    check_target(folder)
    is_model = hub.form is not None and not (run / "recipe.json").is_file()
    if not is_model:
        check_run(run)
    hub.check()
    import_libraries(is_terminal())
    from longview.train.saved.export import export_checkpoint, export_model

    if is_model:
        typer.echo(export_model(str(run), folder, hub.form))
        address = hub.push(folder, str(run), None)
    else:
        typer.echo(export_checkpoint(run, folder, hub.form))
        address = hub.push(folder, base_of_run(run), run)
    if address is not None:
        typer.echo(address)


def base_of_run(run: Path) -> str | None:
    """The model that a run begins with; None for one made from nothing."""
    from longview.models.checkpoint import read_json

    return (read_json(run, "recipe.json").get("model") or {}).get("start")


def check_run(run: Path) -> None:
    """
    Raises:
        CheckpointError: the folder is not that of a run.
    """
    if not (run / "recipe.json").is_file():
        raise CheckpointError(f"{run} holds no run (recipe.json); name the folder that `longview train` wrote")


def check_target(folder: Path) -> None:
    """
    Raises:
        CheckpointError: something is there that would be overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(path.name != UNFINISHED for path in folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an empty folder; choose another one")
