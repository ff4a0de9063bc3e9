"""The command line: one verb a file, each of which parses, calls and prints.

A verb imports torch, transformers and av when it runs, so that `longview --help` answers at once.

    verb.py       a verb's groups of options become options; how help is laid out
    options.py    the groups that are not in longview/requests.py: the model, the plugins
    terminal.py   progress bars and receipts, on stderr
    ask.py …      the verbs
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from longview import __version__, interrupts, status
from longview.cli.ask import ask
from longview.cli.batch import batch
from longview.cli.bench import bench
from longview.cli.chat import chat
from longview.cli.config import config
from longview.cli.convert_weights import convert_weights
from longview.cli.eval import evaluate
from longview.cli.export import export
from longview.cli.find import find
from longview.cli.frames import show_frames
from longview.cli.index import index
from longview.cli.info import info
from longview.cli.merge import merge
from longview.cli.models import models
from longview.cli.prefer import prefer
from longview.cli.report import report
from longview.cli.serve import serve
from longview.cli.shipped import examples, recipes
from longview.cli.train import train
from longview.cli.verb import Verb, with_options
from longview.errors import LongviewError
from longview.versions import UntestedWarning

app = typer.Typer(
    help="Multimodal language models that look at much: hundreds of pictures, hours of video.",
    epilog="`longview VERB --help` shows examples.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help takes longer to import than all the rest
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
VERBS: dict[str, Callable[..., None]] = {
    "ask": ask,
    "chat": chat,
    "serve": serve,
    "batch": batch,
    "frames": show_frames,
    "index": index,
    "find": find,
    "info": info,
    "train": train,
    "recipes": recipes,
    "examples": examples,
    "prefer": prefer,
    "merge": merge,
    "export": export,
    "convert-weights": convert_weights,
    "report": report,
    "eval": evaluate,
    "bench": bench,
    "models": models,
    "config": config,
}
UNLISTED = {"convert-weights"}
"""Verbs that `longview --help` leaves out: what names them is the error that they mend."""
for _name, _verb in VERBS.items():
    app.command(_name, cls=Verb, hidden=_name in UNLISTED)(with_options(_verb))


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"longview {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program: exits with 0; with 2 after one line on stderr, where the user can mend it; with 130 on Ctrl-C; with
    what a verb says (`typer.Exit`).

    Any other exception is our bug, and keeps its traceback.
    """
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *place: (
        f"warning: {message}\n" if issubclass(category, UntestedWarning) else usual(message, category, *place)
    )
    try:
        sys.exit(app(args=arguments, prog_name="longview", standalone_mode=False))
    except LongviewError as error:
        _fail(str(error))
    except KeyboardInterrupt:  # between typer's own clean-up and here
        sys.exit(interrupts.CODE)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # typer ends the program with 1, whosever pipe it is
            _end_unread(ended.__context__)
        raise
    except typer.TyperException as error:  # an unknown option or a missing argument
        context = getattr(error, "ctx", None)
        hint = f"see {context.command_path if context else 'longview'} --help"
        if re.match(r"-([^\w-]|\d)", getattr(error, "option_name", None) or "") or _has_dashed_text(arguments):
            hint = 'what begins with a dash and is no option comes after --, as in longview ask photo.jpg -- "-5?"'
        _fail(f"{error.format_message().rstrip('.')}; {hint}")
    finally:
        warnings.formatwarning = usual


def _has_dashed_text(arguments: Sequence[str] | None) -> bool:
    """Whether an argument begins as an option does, and is a text."""
    return any(re.match(r"-[^=]*\s", each) for each in (sys.argv[1:] if arguments is None else arguments))


def _end_unread(error: BrokenPipeError) -> NoReturn:
    """End in silence, as one that SIGPIPE kills, a program whose output nobody reads; else raise the error."""
    unread = [descriptor for descriptor in (1, 2) if _is_unread(descriptor)]
    if not unread:
        raise error
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in unread:
        os.dup2(nothing, descriptor)  # for what is flushed at the end
    sys.exit(128 + signal.SIGPIPE)


def _is_unread(descriptor: int) -> bool:
    """Whether a file descriptor is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _fail(message: str) -> NoReturn:
    status.clear()
    sys.stdout.flush()
    typer.echo(f"longview: {' '.join(message.split())}", err=True)
    sys.exit(2)
