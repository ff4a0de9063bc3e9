"""`longview chat`: a conversation of several turns, with pictures in any of them. Also reads its turns from a pipe.

prompt.py              a line, a question of several lines, or pasted paths, as they are typed
longview/chat.py       the conversation, without a terminal
kept_chats.py          where it is kept for --continue
"""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview import interrupts
from longview.chat import Chat, is_address, load_messages, save_messages
from longview.cli.files import open_parts, open_photos
from longview.cli.kept_chats import keep, latest_chat, new_chat
from longview.cli.options import (
    ModelOptions,
    PluginOptions,
    Similarity,
    System,
    check_question,
    check_similarity,
    stdin_lines,
)
from longview.cli.prompt import FENCE, ReadLine, fenced, pasted_paths, read_entry, split_paths, terminal_reader
from longview.cli.terminal import is_terminal, made_lines, medium_line, receipt_lines, spinner, stream, warn_if_cut
from longview.errors import LongviewError, RequestError
from longview.messages import Message, Part, Receipt
from longview.requests import Limits, MediaOptions, SamplingParams

if TYPE_CHECKING:
    from longview.engine import Engine

COMMANDS = {
    "/add": ("FILE...", "show pictures or videos with the next question; on a terminal their paths alone do so"),
    "/drop": ("", "take back what was added since the last question"),
    "/media": ("", "what has been shown, and what will be with the next question"),
    "/receipt": ("", "the receipt of the last answer"),
    "/reset": ("", "start a new conversation"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a saved conversation"),
    "/help": ("", "this list"),
    "/quit": ("", "end, as Ctrl-D does; Ctrl-C stops an answer"),
}
"""Each command: its arguments, and what it does."""

HELP = "\n".join(
    [
        *(f"{f'{command} {arguments}':<15}{about}" for command, (arguments, about) in COMMANDS.items()),
        f"{FENCE:<15}begins and ends a question of several lines",
    ]
)


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
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on with the conversation that was held last on a terminal.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON a turn.")] = False,
) -> None:
    """Talk about pictures and videos, which may come in any turn.

    Examples (/help lists the commands of a conversation):
      longview chat a.jpg b.jpg
      longview chat film.mp4 --fps 1 --model mPLUG/mPLUG-Owl3-7B-241101
      longview chat --continue
      printf 'What is this?\\n/add b.jpg\\nAnd this?\\n' | longview chat a.jpg
    """
    interactive = sys.stdin is not None and sys.stdin.isatty()
    check_similarity(similarity, media)
    conversation = Chat(system)
    kept = new_chat() if interactive else None
    if resume:
        if system is not None:
            raise RequestError("--system begins a conversation, and --continue goes on with one; leave one of them out")
        kept = latest_chat()
        conversation.reset(load_messages(kept))
    # Before torch is imported, so that a mistake is told at once.
    parts = [*open_photos(image_file, limits), *open_parts(files or [], limits)]
    engine = model.load(is_terminal() and not json, similarity=similarity)
    settings = {"params": params, "media": media, "limits": limits, "hooks": plugins.hooks(engine, params.seed)}
    interrupts.keep_state()
    session = ChatSession(engine, settings, conversation, json, interactive, kept)
    if interactive:
        typer.echo(f"{engine.name} is ready; /help lists the commands, /quit ends", err=True)
    if resume:
        session.list_media()
    if parts:
        session.add(parts)
    session.run(terminal_reader(list(COMMANDS), ["/add", "/save", "/load"]) if interactive else piped_reader())


def piped_reader() -> ReadLine:
    """Reads lines from a pipe."""
    lines = stdin_lines()

    def read_line(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    return read_line


@dataclass
class ChatSession:
    """A conversation with an engine: runs its commands, asks its questions, prints the answers."""

    engine: Engine
    settings: dict[str, Any]
    chat: Chat
    json: bool = False
    interactive: bool = False
    kept: Path | None = None  # where the conversation is kept
    receipt: Receipt | None = None
    told: set[str] = field(default_factory=set)
    """Warnings that have been printed."""
    described: dict[Part, str] = field(default_factory=dict)
    """Media that have been opened, as they are listed."""

    def run(self, read_line: ReadLine) -> None:
        """Handle entries until the last, or /quit. On a terminal a mistake ends the entry, in a pipe the program."""
        while True:
            try:
                if not self.handle(read_entry(read_line)):
                    return
            except EOFError:
                if self.interactive:
                    typer.echo()
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                typer.echo("\n(/quit or Ctrl-D ends)", err=True)
            except LongviewError as error:
                if not self.interactive:
                    raise
                typer.echo(f"longview: {error}", err=True)

    def handle(self, entry: str) -> bool:
        """Run a command or answer a question; False when the user ends the conversation."""
        question = fenced(entry)
        if question is not None:
            self.answer(question)
            return True
        paths, rest = pasted_paths(entry) if self.interactive else ([], entry.strip())
        if paths:
            self.add_files(paths)
        if rest.startswith("/") and not paths:
            return self.command(rest)
        if rest:
            self.answer(rest)
        return True

    def command(self, line: str) -> bool:
        """Run a command; False when it ends the conversation."""
        command, *rest = line.split(maxsplit=1)
        command = {"/exit": "/quit"}.get(command, command)
        if command not in COMMANDS:
            if rest:  # perhaps meant as /add
                self.chat.failed = f"{line:.40} was not understood"
            raise RequestError(f"there is no command {command:.40}; /help lists them")
        arguments = split_paths(rest[0]) if rest else []
        wanted = COMMANDS[command][0]
        if bool(arguments) != bool(wanted) or (wanted == "FILE" and len(arguments) > 1):
            needs = {"": "stands alone", "FILE": "needs one file name", "FILE...": "needs files"}[wanted]
            raise RequestError(f"{command} {needs}; see /help")
        if command == "/add":
            self.add_files(arguments)
        elif command == "/drop":
            self.drop()
        elif command == "/media":
            self.list_media()
        elif command == "/receipt":
            self._echo(*(receipt_lines(self.receipt) if self.receipt else ["nothing has been answered yet"]))
        elif command == "/reset":
            self._begin(None)
        elif command == "/save":
            self.save(Path(arguments[0]).expanduser())
        elif command == "/load":
            self.load(Path(arguments[0]).expanduser())
        elif command == "/help":
            self._echo(HELP)
        return command != "/quit"

    # ── media ──

    def add_files(self, sources: list[str]) -> None:
        """Show these files with the next question. If one cannot be, none is, and the next question is held back."""
        try:
            self.add(open_parts(sources, self.settings["limits"]))
        except LongviewError:
            self.chat.failed = f"{sources[0]} was not added" if len(sources) == 1 else "nothing was added"
            raise

    def add(self, parts: Sequence[Part]) -> None:
        """Show these media with the next question; on a terminal they are opened and listed.

        Raises:
            MediaError: one of them cannot be opened.
        """
        if self.interactive:
            self._describe(parts)
        self.chat.add(parts)
        if self.interactive:
            self._list_pending()

    def drop(self) -> None:
        """Take back what was added since the last question."""
        names = [_name(part) for part in self.chat.pending]
        self.chat.pending, self.chat.failed = [], None
        self._echo(f"dropped {', '.join(names)}" if names else "nothing was added since the last question")

    def list_media(self) -> None:
        """Say what has been shown and what will be."""
        names = [_name(part) for part in self.chat.media]
        self._echo(f"{'shown':<10}{', '.join(names) or 'nothing yet'}")
        self._list_pending()

    def _list_pending(self) -> None:
        """Say what the next question will show, with the numbers by which it may name them."""
        pending = self.chat.pending
        for number, part in enumerate(pending, 1):
            label = f"{part.type.capitalize()} {number}: " if len(pending) > 1 else ""
            head = "to show" if number == 1 else ""
            self._echo(f"{head:<10}{label}{self.described.get(part) or _name(part)}")

    def _describe(self, parts: Sequence[Part]) -> None:
        """Open media, which also finds out whether the engine will be able to."""
        options, limits = self.settings["media"], self.settings["limits"]
        chosen_later = options.select if options.by_content else None
        if chosen_later:  # which frames, the question decides
            options = MediaOptions(select="uniform", start=options.start, end=options.end)
        default = self.engine.processor.default_media
        with spinner(f"opening {', '.join(map(_name, parts)):.60}", is_terminal()):
            opened = self.engine.video_cache.open_media(parts, options, limits, None, default)
        for part, medium in zip(parts, opened, strict=True):
            self.described[part] = medium_line(medium, chosen_later)
            medium.close()

    # ── questions ──

    def answer(self, question: str) -> None:
        """Ask about the pending media, and print the answer. If that fails, the media stay pending."""
        messages = self.chat.ask(check_question(question))
        texts: list[str] = []
        try:
            if self.json:
                answer = self.engine.answer(messages, **self.settings)
                texts, self.receipt = [answer.text], answer.receipt
                typer.echo(jsonlib.dumps(answer.as_dict(), ensure_ascii=False))
                warn_if_cut(answer.finish_reason, self.settings["params"])
            else:
                self._stream(messages, texts)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            self._echo("\n(stopped)")
            if not texts:
                return
        except LongviewError:
            if self.interactive and self.chat.pending:
                names = ", ".join(_name(part) for part in self.chat.pending)
                self._echo(f"still to be shown: {names}; /drop takes that back")
            raise
        self.chat.commit(messages, "".join(texts))
        self._keep()

    def _stream(self, messages: list[Message], texts: list[str]) -> None:
        """Print an answer as it is made, and collect its pieces, also of one that is stopped."""
        for piece in stream(self.engine, messages, is_terminal(), self.settings):
            texts.append(piece.text)
            self.receipt = piece.receipt or self.receipt
            typer.echo(piece.text, nl=piece.receipt is not None)
            if piece.receipt is not None:
                new = [warning for warning in piece.receipt.warnings if warning not in self.told]
                self.told.update(new)
                self._echo(*(f"warning: {warning}" for warning in new))
            warn_if_cut(piece.finish_reason, self.settings["params"])
            if piece.made is not None:
                self._echo(*made_lines(piece.made))

    # ── files ──

    def save(self, path: Path) -> None:
        """Write the conversation as the list of messages that `Engine.answer` takes. An existing file is kept."""
        if path.exists():
            raise RequestError(f"{path} cannot be written (File exists); choose another name")
        save_messages(self.chat.messages, path)
        self._echo(f"saved {path}")

    def load(self, path: Path) -> None:
        """Go on with a saved conversation; if it cannot be read, the next question is held back."""
        try:
            messages = load_messages(path)
        except LongviewError:
            self.chat.failed = f"{path} was not loaded"
            raise
        self._begin(messages)
        self.list_media()

    def _begin(self, messages: list[Message] | None) -> None:
        """Leave the conversation for a new one, or for one that was saved."""
        self.chat.reset(messages)
        self.receipt = None
        self.kept = self.kept and new_chat()

    def _keep(self) -> None:
        """Keep the conversation for --continue; where that fails, say so once."""
        if self.kept is None:
            return
        try:
            keep(self.chat.messages, self.kept)
        except RequestError as error:
            self._echo(f"warning: this conversation is not kept for --continue: {error}")
            self.kept = None

    @staticmethod
    def _echo(*lines: str) -> None:
        """Print on stderr, beside the answers."""
        for line in lines:
            typer.echo(line, err=True)


def _name(part: Part) -> str:
    """A medium's name: of a file without its folders, of a URL without its query."""
    source = str(part.source) if isinstance(part.source, (str, Path)) else part.type
    if source.startswith("data:"):
        return source[:30]
    return source.partition("?")[0] if is_address(source) else Path(source).name
