"""`longview ask`: one question; the answer streams to stdout, its receipt goes to stderr."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

import longview
from longview.cli.evidence import EvidenceOptions
from longview.cli.files import STDIN, Question, open_parts, open_photos, piped_part, read_questions, split_question
from longview.cli.knowledge import RetrievalOptions
from longview.cli.options import (
    ModelOptions,
    PluginOptions,
    Similarity,
    System,
    check_question,
    check_similarity,
    initial_messages,
    read_stdin,
)
from longview.cli.terminal import is_terminal, made_lines, receipt_lines, spinner, stream, warn_if_cut
from longview.errors import LongviewError, RequestError
from longview.messages import Part
from longview.requests import Limits, MediaOptions, SamplingParams

if TYPE_CHECKING:
    from longview.engine import Engine


def ask(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]... QUESTION",
            help="Pictures, videos, URLs, folders or patterns; then the question. - reads either from a pipe.",
            show_default=False,
        ),
    ] = None,
    *,
    model: ModelOptions,
    media: MediaOptions,
    params: SamplingParams,
    plugins: PluginOptions,
    retrieval: RetrievalOptions,
    evidence: EvidenceOptions,
    limits: Limits,
    questions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Ask each question of a file of JSON lines; answers are JSON lines, too."),
    ] = None,
    image_file: Annotated[
        str | None, typer.Option(help="Pictures, with commas between them, as MGM's program takes them.")
    ] = None,
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
      longview ask photos/ 'more/*.png' "Which of these shows a cat?"
      echo "What is this?" | longview ask photo.jpg -
      longview ask - "What is this?" < photo.jpg
      longview ask photo.jpg --questions questions.jsonl > answers.jsonl
      longview ask a.jpg b.jpg --evidence why.html "In which picture is the red car?"
      longview ask film.mp4 --evidence why.html --compare-select mdp3 "When does the red car turn?"
      longview ask --knowledge my-index dog.jpg "Which breed is the dog?"
      longview ask --index my-index "Who wears the red hat?"
      longview ask -- "-5 and 3, how much is that?"
    """
    if params.logprobs is not None and not (json or questions):
        raise RequestError("--logprobs is printed in JSON; add --json")
    if questions is None and not arguments:
        raise RequestError("the QUESTION is missing; see longview ask --help")
    retrieval.check_use(questions, plugins)
    show = is_terminal() and not json and not quiet
    evidence.check_use(questions is not None or retrieval.given)
    check_similarity(similarity, evidence.compared(media) if evidence.compares and not media.by_content else media)
    files, question = split_question(arguments or []) if questions is None else (arguments or [], "")
    if [*files, question, questions].count(STDIN) > 1:
        raise RequestError("- stands for standard input, which can be read once; name a file in one of the places")
    with spinner("opening files", show and bool(files)):  # before torch is imported, so that a mistake is told at once
        parts = [*open_photos(image_file, limits)]
        for file in files:
            parts += [piped_part(limits)] if file == STDIN else open_parts([file], limits)
    if questions is not None:
        rows = list(read_questions(questions, parts, limits))
        _check_use(media, plugins, [part for row in rows for part in row.parts])
        engine = model.load(show, similarity=similarity)
        settings = {"params": params, "media": media, "limits": limits, "hooks": plugins.hooks(engine, params.seed)}
        _answer_all(engine, rows, system, settings)
        return
    _check_use(media, plugins, parts)
    text = check_question(read_stdin() if question == STDIN else question)
    evidence.check_parts(parts)
    if retrieval.given:
        settings = {"params": params, "media": media, "limits": limits}
        before = initial_messages(system)
        retrieval.answer(text, parts, model, similarity, before, json, quiet, settings)
        return
    messages = [*initial_messages(system), longview.ask(text, *parts)]
    engine = model.load(show, similarity=similarity)
    hooks = plugins.hooks(engine, params.seed)
    settings = {"params": params, "media": media, "limits": limits, "hooks": hooks, "evidence": evidence.given}
    if json:
        answer = engine.answer(messages, **settings)
        typer.echo(jsonlib.dumps(replace(answer, evidence=None).as_dict(), ensure_ascii=False))
        warn_if_cut(answer.finish_reason, params)
        if evidence.given:
            evidence.write(engine, messages, answer, model, plugins, similarity, settings, show, json, quiet)
        return
    pieces = []
    for piece in stream(engine, messages, show, settings):
        pieces.append(piece)
        if piece.evidence is not None:
            continue
        typer.echo(piece.text, nl=piece.receipt is not None)
        if piece.receipt is not None and not quiet:
            typer.echo("\n".join(receipt_lines(piece.receipt, piece.finish_reason)), err=True)
        warn_if_cut(piece.finish_reason, params)
        if piece.made is not None:
            typer.echo("\n".join(made_lines(piece.made)), err=True)
    if evidence.given:
        from longview.engine.request import whole_answer  # torch is imported by now

        answer = whole_answer(pieces)
        evidence.write(engine, messages, answer, model, plugins, similarity, settings, show, json, quiet)


def _check_use(media: MediaOptions, plugins: PluginOptions, parts: Sequence[Part]) -> None:
    """
    Raises:
        RequestError: an option is for media of which none is given.
    """
    if media != MediaOptions() and all(part.type != "video" for part in parts):
        raise RequestError(
            "--frames, --fps, --select, --start, --end, --candidates and --relevance-query choose frames of a video, "
            "and none is given"
        )
    if plugins.ocr and not parts:
        raise RequestError("--ocr reads the text in pictures, and none is given")


def _answer_all(engine: Engine, rows: Sequence[Question], system: str | None, settings: Mapping[str, Any]) -> None:
    """Print an answer a line, in the order of the questions; one that fails is an error in its line.

    Raises:
        RequestError: after the last, where some have failed.
    """
    conversations = ([*initial_messages(system), longview.ask(row.text, *row.parts)] for row in rows)
    failed = 0
    for row, answer in zip(rows, engine.batch(conversations, **settings), strict=True):
        line = {"question": row.text} if row.id is None else {"id": row.id, "question": row.text}
        if isinstance(answer, LongviewError):
            failed += 1
            line["error"] = str(answer)
        else:
            line |= answer.as_dict()
        typer.echo(jsonlib.dumps(line, ensure_ascii=False))
    if failed:
        raise RequestError(f"{failed} of {len(rows)} questions could not be answered; their lines say why")
