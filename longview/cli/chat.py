"""`longview chat`: a conversation of several turns, with pictures in any of them. Also reads its turns from a pipe."""

from __future__ import annotations

import contextlib
import json as jsonlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

import longview
from longview import interrupts
from longview.cli.options import (
    ModelOptions,
    PluginOptions,
    Similarity,
    System,
    check_question,
    check_similarity,
    initial_messages,
    open_parts,
    stdin_lines,
)
from longview.cli.terminal import is_terminal, made_lines, receipt_lines, stream, warn_if_cut
from longview.errors import LongviewError, RequestError
from longview.messages import Message, Part, Receipt
from longview.requests import Limits, MediaOptions, SamplingParams

HELP = """\
/add FILE...   show pictures or videos with the next question
/receipt       the receipt of the last answer
/reset         start a new conversation
/save FILE     write the conversation as JSON
/help          this list
/quit          end, as Ctrl-D does; Ctrl-C stops an answer"""


def chat(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...", help="Pictures, videos or URLs for the first question.", show_default=False
        ),
    ] = None,
    *,
    model: ModelOptions,
    media: MediaOptions,
    params: SamplingParams,
    plugins: PluginOptions,
    limits: Limits,
    image_file: Annotated[
        str | None, typer.Option(help="Pictures for the first question, with commas between them, as MGM's program.")
    ] = None,
    similarity: Similarity = None,
    system: System = None,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a turn.")] = False,
) -> None:
    """Talk about pictures and videos, which may come in any turn.

    Examples (/help lists the commands of a conversation):
      longview chat a.jpg b.jpg
      longview chat film.mp4 --fps 1 --model mPLUG/mPLUG-Owl3-7B-241101
      printf 'What is this?\\n/add b.jpg\\nAnd this?\\n' | longview chat a.jpg
    """
    session = ChatSession(limits, system, json, interactive=sys.stdin is not None and sys.stdin.isatty())
    check_similarity(similarity, media)
    session.add(_photos(image_file), photos=True)
    session.add(files or [])  # before torch is imported, so that a mistake is told at once
    session.settings = {"params": params, "media": media, "limits": limits}
    session.engine = model.load(is_terminal() and not json, similarity=similarity)
    session.settings["hooks"] = plugins.hooks(session.engine, params.seed)
    interrupts.keep_state()
    if session.interactive:
        typer.echo(f"{session.engine.name} is ready; /help lists the commands, /quit ends", err=True)
    for line in _lines(session.interactive):
        try:
            if not session.handle(line):
                break
        except LongviewError as error:
            if not session.interactive:
                raise
            typer.echo(f"longview: {error}", err=True)


def _lines(interactive: bool) -> Iterator[str]:
    """The user's lines: typed, with editing where the platform has it, or piped."""
    if not interactive:
        yield from stdin_lines()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() history and editing)
    while True:
        try:
            yield input("> ")
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo("\n(/quit or Ctrl-D ends)", err=True)


@dataclass
class ChatSession:
    """A conversation: its messages so far, and how the next is answered."""

    limits: Limits
    system: str | None = None
    json: bool = False
    interactive: bool = False
    engine: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    pending: list[Part] = field(default_factory=list)  # media for the next question
    receipt: Receipt | None = None

    def __post_init__(self) -> None:
        self.messages = initial_messages(self.system)

    def handle(self, line: str) -> bool:
        """Run a command or answer a question; False when the user ends the conversation."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            self.answer(check_question(line.strip()))
            return True
        command, *rest = line.split(maxsplit=1)
        arguments = _split(rest[0]) if rest else []
        if command in ("/quit", "/exit"):
            return False
        elif command == "/help":
            typer.echo(HELP, err=True)
        elif command == "/add" and arguments:
            self.add(arguments)
        elif command == "/receipt":
            lines = receipt_lines(self.receipt) if self.receipt else ["nothing has been answered yet"]
            typer.echo("\n".join(lines), err=True)
        elif command == "/reset":
            self.messages, self.pending, self.receipt = initial_messages(self.system), [], None
        elif command == "/save" and len(arguments) == 1:
            self.save(Path(arguments[0]).expanduser())
        elif command in ("/add", "/save"):
            raise RequestError(f"{command} needs {'one file name' if command == '/save' else 'files'}; see /help")
        else:
            raise RequestError(f"there is no command {command:.40}; /help lists them")
        return True

    def add(self, sources: list[str], photos: bool = False) -> None:
        """Show these files with the next question; `photos` refuses videos and animations."""
        parts = open_parts(sources, self.limits)
        moving = next((part.source for part in parts if photos and part.type != "image"), None)
        if moving is not None:
            raise RequestError(f"--image-file takes photos, and {moving!s} moves; give it as an argument, as a video")
        self.pending += parts

    def answer(self, question: str) -> None:
        """Ask about the pending media, and print the answer. A question that fails is dropped, with its media."""
        messages = [*self.messages, longview.ask(question, *self.pending)]
        media, self.pending = self.pending, []
        texts: list[str] = []
        try:
            if self.json:
                answer = self.engine.answer(messages, **self.settings)
                texts, self.receipt = [answer.text], answer.receipt
                typer.echo(jsonlib.dumps(answer.as_dict(), ensure_ascii=False))
                warn_if_cut(answer.finish_reason, self.settings["params"])
            else:
                for piece in stream(self.engine, messages, is_terminal(), self.settings):
                    texts.append(piece.text)
                    self.receipt = piece.receipt or self.receipt
                    typer.echo(piece.text, nl=piece.receipt is not None)
                    warn_if_cut(piece.finish_reason, self.settings["params"])
                    if piece.made is not None:
                        typer.echo("\n".join(made_lines(piece.made)), err=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            typer.echo("\n(stopped)", err=True)
            if not texts:
                self.pending = media
                return
        self.messages = [*messages, Message.of("assistant", "".join(texts))]

    def save(self, path: Path) -> None:
        """Write the conversation as the list of messages that `Engine.answer` takes. An existing file is kept."""
        turns = [{"role": turn.role, "content": [_as_dict(part) for part in turn.parts]} for turn in self.messages]
        try:
            with path.open("x", encoding="utf-8") as file:
                jsonlib.dump(turns, file, ensure_ascii=False, indent=2)
                file.write("\n")
        except OSError as error:
            raise RequestError(f"{path} cannot be written ({error.strerror}); choose another name") from None
        typer.echo(f"saved {path}", err=True)


def _photos(names: str | None) -> list[str]:
    """The pictures of `--image-file a.jpg,b.jpg`."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def _as_dict(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part.text} if part.type == "text" else {"type": part.type, "path": part.source}


def _split(text: str) -> list[str]:
    """The arguments of a command, quoted as in a shell."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RequestError(f"{text!r:.80} has an open quotation mark ({error}); close it") from None
