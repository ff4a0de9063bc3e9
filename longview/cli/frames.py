"""`longview frames`: which frames of a video would be used, and their relevance; as text, JSON, or a contact sheet."""

from __future__ import annotations

import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview import names
from longview.cli.config_file import read_config
from longview.cli.options import Similarity, check_question, import_libraries, named
from longview.cli.terminal import bars, is_terminal, spinner
from longview.errors import RequestError
from longview.messages import Part
from longview.requests import Limits, MediaOptions

if TYPE_CHECKING:
    from longview.eval.sheet import Sheet
    from longview.media import Medium, RelevanceQuery


def show_frames(
    video: Annotated[str, typer.Argument(help="A video file or URL.", show_default=False)],
    question: Annotated[
        str | None, typer.Argument(help="What frames are compared with; --select mdp3 needs it.", show_default=False)
    ] = None,
    *,
    media: MediaOptions,
    limits: Limits,
    similarity: Similarity = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model whose default sampler is used without --select.")
    ] = None,
    device: Annotated[
        str | None, named(names.check_device, "Device of the SigLIP checkpoint: cpu, cuda, cuda:N or mps.")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write a contact sheet: .html or .png; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which frames of a video are chosen, and their relevance.

    Examples:
      longview frames film.mp4 "When does the red car turn?" --select mdp3 --frames 16 --out sheet.html
      longview frames film.mp4 --select uniform --frames 12 --out sheet.png
      longview frames film.mp4 "Who comes in?" --select mdp3 --similarity ./siglip --json
    """
    from longview.eval.sheet import Sheet, check_path, write
    from longview.media import open_medium, sniff

    for path in out or ():
        check_path(path)
    if question is not None:
        question = check_question(question)
    elif media.by_content:
        raise RequestError(f"--select {media.select} chooses the frames that a question is about; add a question")
    elif similarity is not None or device is not None:
        raise RequestError("--similarity and --device are used to compare frames with a question; add a question")
    if sniff(video, limits) == "image":
        raise RequestError(f"{video} is a picture; frames are chosen of a video")
    from longview.models.sources import check_name

    model = read_config().model_named(model)
    check_name(model)
    show = is_terminal() and not json
    import_libraries(show)
    default = family_default(model)
    with spinner("opening SigLIP", show):
        relevance_query = open_relevance_query(question, media, similarity, model, device)
    with bars(show) as progress:
        medium = open_medium(
            Part("video", source=video), media, limits, progress, default=default, relevance_query=relevance_query
        )
    if relevance_query is not None:
        medium = replace(medium, warnings=(*medium.warnings, *domain_warnings(similarity, model, medium)))
    sheet = Sheet(medium, media.select or ("fps" if media.fps is not None else default.select) or "uniform", question)
    if json:
        typer.echo(jsonlib.dumps(as_dict(sheet), ensure_ascii=False))
    else:
        typer.echo(sheet.summary)
        typer.echo(f"{'time':>12}  {'frame':>8}{'' if medium.relevance is None else '  relevance'}")
        for frame in medium.frames:
            relevance = sheet.relevance(frame)
            shown = "" if relevance is None else f"  {relevance:>9.2f}"
            typer.echo(f"{sheet.label(frame):>12}  {frame.index:>8,}{shown}")
    for warning in medium.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if question is not None and relevance_query is None:
        typer.echo("no relevance curve: name a SigLIP checkpoint with --similarity FOLDER", err=True)
    for path in out or ():
        write(sheet, path)
        typer.echo(f"wrote {path}", err=True)


def family_default(model: str) -> MediaOptions:
    """The media options that a model defaults to; its weights are not loaded."""
    from longview.models import checkpoint
    from longview.models.families import family_of

    folder = checkpoint.peek(model)[0]
    return family_of(folder).Processor.media_defaults(folder)


def open_relevance_query(
    question: str | None, media: MediaOptions, similarity: str | None, model: str, device: str | None
) -> RelevanceQuery | None:
    """The relevance query of a question, with the SigLIP checkpoint that measures it.

    A sampler that needs no question gets a curve where a checkpoint is on this machine: named, or embedded. None is
    fetched for a curve alone.
    """
    from longview.engine.devices import best_device, check_device
    from longview.media import RelevanceQuery
    from longview.models.similarity import DEMO, Similarity, default_for

    name = similarity or default_for(model)
    if question is None or not (media.by_content or similarity or name == DEMO):
        return None
    device = device or best_device()
    check_device(device)
    return RelevanceQuery(question, Similarity.open(name, device), media.relevance_query == "published")


def domain_warnings(similarity: str | None, model: str, medium: Medium) -> list[str]:
    """A warning where the embedded SigLIP compares a question with frames of a world that it does not know."""
    from longview.models.similarity import DEFAULT, DEMO, default_for
    from longview.world.recognition import is_drawn, warning_of

    if (similarity or default_for(model)) != DEMO or is_drawn(next(iter(medium.read([0]))).image):
        return []
    return [warning_of(DEMO, medium.name, option="--similarity", example=DEFAULT, what="relevance")]


def as_dict(sheet: Sheet) -> dict[str, Any]:
    """A choice as plain data."""
    medium, relevance = sheet.medium, sheet.medium.relevance
    facts = ("name", "width", "height", "num_frames", "duration", "fps", "digest")
    seconds = relevance.seconds if relevance else None
    return {
        "question": sheet.question,
        "select": sheet.select,
        "video": {fact: getattr(medium, fact) for fact in facts},
        "frames": [
            {"index": frame.index, "seconds": frame.seconds, "relevance": sheet.relevance(frame)}
            for frame in medium.frames
        ],
        "candidates": [
            {"index": index, "seconds": seconds[number] if seconds else None, "relevance": value}
            for number, (index, value) in enumerate(zip(relevance.indices, relevance.values, strict=True))
        ]
        if relevance
        else [],
        "warnings": list(medium.warnings),
    }
