"""`longview batch`: many requests from a file, answered by a model here or by running servers."""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli.options import ModelOptions, Similarity, check_similarity
from longview.cli.serve import LIBRARIES
from longview.cli.terminal import bars, is_terminal, spinner
from longview.errors import MissingExtraError, RequestError
from longview.messages import Progress
from longview.requests import Limits, MediaOptions, SamplingParams
from longview.serve.batches.settings import ServersOptions
from longview.versions import missing

if TYPE_CHECKING:
    from longview.serve.batches.job import BatchJob, Summary
    from longview.serve.batches.rows import Rows

FAILED = 3
"""The exit code where some rows could not be answered."""
AT_A_SERVER = 64
"""Rows that are asked of a server at a time."""


def batch(
    rows: Annotated[
        Path,
        typer.Argument(
            metavar="ROWS",
            help="JSON lines: as OpenAI's batches have them, or each a question with its image, video or files.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the answers, and of the journal.", show_default=False)
    ],
    model: ModelOptions,
    servers: ServersOptions,
    params: SamplingParams,
    media: MediaOptions,
    limits: Limits,
    ocr: Annotated[bool, typer.Option("--ocr", help="Read the text in pictures into the questions.")] = False,
    similarity: Similarity = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where relative paths in the rows begin; default: the file's own folder.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column of the rows to leave out; may be repeated.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask rows again that an earlier run of this batch could not answer.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: what became of the rows.")] = False,
) -> None:
    """Answer thousands of requests from a file. Stop it at any time, and go on with the same command: each row is
    answered once, and the answers come in the order of the rows. Ends with exit code 3 where rows failed.

    Examples:
      longview batch questions.jsonl --output answers/
      longview batch batch.jsonl --model mPLUG/mPLUG-Owl3-7B-241101 --output answers/
      longview batch films.jsonl --select mdp3 --frames 16 --max-tokens 100 --output answers/
      longview batch batch.jsonl --server http://10.0.0.1:8000 --server http://10.0.0.2:8000 --output answers/
    """
    check_similarity(similarity, media)
    if missing(LIBRARIES):
        raise MissingExtraError("longview batch", *LIBRARIES)
    if servers.server:
        _check_unused(model, limits, similarity)
    from longview.serve.batches.job import BatchJob
    from longview.serve.batches.rows import Rows, body_of_settings

    show = is_terminal() and not json
    settings = body_of_settings(params, media, ocr)
    with spinner("reading the rows", show):
        found = Rows(rows.expanduser(), folder, ignore or (), settings, model.model if servers.server else None, limits)
    if not servers.server:
        model, found.model = _model_of(found, model)
        model.locate(show)
    job = BatchJob(found, output.expanduser(), _told(found, model, settings, servers), retry_failed)
    try:
        if job.num_left:
            with bars(show) as progress:
                asyncio.run(_run(job, found, model, servers, limits, similarity, progress))
        summary = job.finish()
    finally:
        job.close()
    _print(summary, json)


def _check_unused(model: ModelOptions, limits: Limits, similarity: str | None) -> None:
    """
    Raises:
        RequestError: an option is of a model here, and would mean nothing to servers.
    """
    names = [each.name for each in fields(model) if each.name != "model" and getattr(model, each.name) != each.default]
    names += [each.name for each in fields(limits) if getattr(limits, each.name) != each.default]
    names += ["similarity"] if similarity else []
    if names:
        raise RequestError(
            f"--{names[0].replace('_', '-')} is of a model here, and servers have their own; leave it out, or leave "
            "out --server"
        )


def _model_of(rows: Rows, model: ModelOptions) -> tuple[ModelOptions, str]:
    """The model that answers every row: the one of the command line, or the one that the rows name."""
    if model.model is None and model.adapter is None and rows.models:
        if len(rows.models) > 1:
            raise RequestError(
                f"the rows name several models ({', '.join(sorted(rows.models))}); name the one that answers with "
                "--model, or write a file for each"
            )
        model = replace(model, model=next(iter(rows.models)))
    return model, model.shown_name


def _told(rows: Rows, model: ModelOptions, settings: Mapping[str, Any], servers: ServersOptions) -> dict[str, Any]:
    """What must be the same for a killed batch to go on."""
    opened = ("adapter", "revision", "quantize", "load_8bit", "load_4bit")
    given = {name: str(value) for name in opened if (value := getattr(model, name))}
    who = {} if servers.server and rows.model is None else {"model": rows.model}
    return {**who, **given, **settings}


async def _run(
    job: BatchJob,
    rows: Rows,
    model: ModelOptions,
    options: ServersOptions,
    limits: Limits,
    similarity: str | None,
    progress: Progress | None,
) -> None:
    from longview.http_client import Client
    from longview.serve.batches.local import local_routes
    from longview.serve.batches.servers import Servers

    if not options.server:
        assert rows.model is not None
        load = {**model.load_arguments(), "similarity": similarity}
        async with local_routes(rows.model, load, limits) as (routes, max_requests):
            servers = Servers([routes], options.concurrency or 2 * max_requests, sends_files=False)
            await job.run(servers.answer, servers.concurrency, progress)
        return
    clients = [Client(address, options.key, options.reply_seconds) for address in options.server]
    try:
        servers = Servers(clients, options.concurrency or AT_A_SERVER)
        found = await servers.models()
        rows.default_model = found[0] if found else None
        await job.run(servers.answer, servers.concurrency, progress)
    finally:
        for client in clients:
            client.close()


def _print(summary: Summary, json: bool) -> None:
    if json:
        typer.echo(jsonlib.dumps(summary.as_dict(), ensure_ascii=False))
    else:
        for place, reason in summary.reasons.items():
            typer.echo(f"{place}: {reason}", err=True)
        typer.echo(f"{summary.answered:,} of {summary.rows:,} rows are answered: {summary.output}")
        if summary.failed:
            typer.echo(f"{summary.failed:,} are not: {summary.errors}")
    if summary.failed:
        raise typer.Exit(FAILED)
