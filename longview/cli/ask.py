"""`longview ask`: one question; the answer streams to stdout, its receipt goes to stderr."""

from __future__ import annotations

import json as jsonlib
import os
import re
from typing import Annotated

import typer

import longview
from longview.cli.options import (
    ModelOptions,
    PluginOptions,
    Similarity,
    System,
    check_question,
    check_similarity,
    initial_messages,
    open_parts,
    read_stdin,
)
from longview.cli.terminal import is_terminal, made_lines, receipt_lines, spinner, stream, warn_if_cut
from longview.errors import RequestError
from longview.requests import Limits, MediaOptions, SamplingParams


def ask(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[FILE]... QUESTION",
            help="Pictures, videos or URLs, told apart by content; then the question, or - to read it from a pipe.",
            show_default=False,
        ),
    ],
    model: ModelOptions,
    media: MediaOptions,
    params: SamplingParams,
    plugins: PluginOptions,
    limits: Limits,
    similarity: Similarity = None,
    system: System = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: the answer and its receipt.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer and nothing else.")] = False,
) -> None:
    """Ask one question about pictures and videos, or about nothing.

    Examples:
      longview ask photo.jpg "What is on the chair?"
      longview ask before.png after.png "What has changed?"
      longview ask film.mp4 --frames 64 --start 60 --end 120 "What happens?"
      longview ask film.mp4 --select mdp3 --frames 16 "When does the red car turn?"
      longview ask --json page.png "Read the title."
      echo "What is this?" | longview ask photo.jpg -
    """
    *files, question = arguments
    if os.path.isfile(question) or re.fullmatch(r"https?://\S+", question):
        raise RequestError(f"the last argument is the question, and {question!r} is a medium; add a question after it")
    if re.fullmatch(r"\S+\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|mov|mkv|webm|avi)", question, re.IGNORECASE):
        raise RequestError(f"the last argument is the question, and {question!r} looks like a file, which is not there")
    if params.logprobs is not None and not json:
        raise RequestError("--logprobs is printed in JSON; add --json")
    show = is_terminal() and not json and not quiet
    check_similarity(similarity, media)
    with spinner("opening files", show and bool(files)):
        parts = open_parts(files, limits)  # before torch is imported, so that a mistake is told at once
    if media != MediaOptions() and all(part.type != "video" for part in parts):
        raise RequestError(
            "--frames, --fps, --select, --start, --end and --candidates choose frames of a video, and none is given"
        )
    if plugins.ocr and not parts:
        raise RequestError("--ocr reads the text in pictures, and none is given")
    text = check_question(read_stdin() if question == "-" else question)
    messages = [*initial_messages(system), longview.ask(text, *parts)]
    engine = model.load(show, similarity=similarity)
    hooks = plugins.hooks(engine, params.seed)
    settings = {"params": params, "media": media, "limits": limits, "hooks": hooks}
    if json:
        answer = engine.answer(messages, **settings)
        typer.echo(jsonlib.dumps(answer.as_dict(), ensure_ascii=False))
        warn_if_cut(answer.finish_reason, params)
        return
    for piece in stream(engine, messages, show, settings):
        typer.echo(piece.text, nl=piece.receipt is not None)
        if piece.receipt is not None and not quiet:
            typer.echo("\n".join(receipt_lines(piece.receipt, piece.finish_reason)), err=True)
        warn_if_cut(piece.finish_reason, params)
        if piece.made is not None:
            typer.echo("\n".join(made_lines(piece.made)), err=True)
