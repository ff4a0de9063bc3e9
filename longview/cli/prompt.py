"""What is typed at the prompt of a chat: lines, questions of several lines, pasted paths; and completion by Tab.

Editing, history and completion are readline's, which Python has on Linux and macOS: a question is one line of text, and
a dependency such as prompt_toolkit would add to it menus and colours only.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import unquote

from longview.errors import RequestError

FENCE = '"""'
"""Begins and ends a question of several lines."""

_MEDIA_NAME = re.compile(r".\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|mov|mkv|webm|avi)$", re.IGNORECASE)
_FILE_ADDRESS = re.compile(r"file:(//(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"""\s*((?:'[^']*'|"[^"]*"|\\.|[^\s'"\\])+)(?=\s|$)""")
_TYPED = re.compile(r"""(?:^|(?<=\s))(?:"(?P<double>[^"]*)|'(?P<single>[^']*)|(?P<bare>(?:\\.|[^\s\\"'])*))$""")

ReadLine = Callable[[str], str]
"""Reads a line after a prompt; raises EOFError behind the last."""


def read_entry(read_line: ReadLine) -> str:
    """A line, or all from a line that begins with three quotation marks to one that ends with them.

    Raises:
        EOFError: there is no further line.
        RequestError: nor one that ends with the quotation marks.
    """
    entry = read_line("> ")
    if not entry.lstrip().startswith(FENCE):
        return entry
    while not _closed(entry):
        try:
            entry = f"{entry}\n{read_line('... ')}"
        except EOFError:
            raise RequestError(f"a question begins with {FENCE} and does not end; end it with {FENCE}") from None
    return entry


def fenced(entry: str) -> str | None:
    """The text between three quotation marks; None where an entry has none."""
    entry = entry.strip()
    return entry[len(FENCE) : -len(FENCE)].strip("\n") if entry.startswith(FENCE) and _closed(entry) else None


def _closed(entry: str) -> bool:
    return entry.strip().endswith(FENCE) and len(entry.strip()) >= 2 * len(FENCE)


# ── paths ──


def split_paths(text: str) -> list[str]:
    """The paths and URLs behind a command, quoted as in a shell or dropped by a file manager.

    Raises:
        RequestError: a quotation mark is open, or a file: address names another machine.
    """
    if os.path.isfile(os.path.expanduser(text)):  # a name with spaces or a quotation mark, as it is
        return [text]
    try:
        return [local_path(word) for word in shlex.split(text)]
    except ValueError as error:
        raise RequestError(f"{text!r:.80} has an open quotation mark ({error}); close it") from None


def pasted_paths(entry: str) -> tuple[list[str], str]:
    """The files and URLs that an entry begins with, as a terminal writes those that are dropped; and what follows.

    A bare name counts only where nothing but names of media stands in the entry: it may be a word of a question.
    """
    entry = entry.strip()
    if os.path.isfile(os.path.expanduser(entry)) and _is_medium(entry, alone=True):  # spaces in it as they are
        return [entry], ""
    words: list[str] = []
    place = 0
    while (word := _WORD.match(entry, place)) and _is_medium(_unquoted(word[1]), alone=True):
        words.append(_unquoted(word[1]))
        place = word.end()
    rest = entry[place:].strip()
    if rest and not all(_is_medium(word, alone=False) for word in words):
        return [], entry
    return [local_path(word) for word in words], rest


def local_path(path: str) -> str:
    """A path, also of a file: address.

    Raises:
        RequestError: it names another machine.
    """
    address = _FILE_ADDRESS.match(path)
    if address is None:
        return path
    if (address["host"] or "localhost").lower() != "localhost":
        raise RequestError(f"{path:.80} is a file on {address['host']}; copy it to this machine")
    return unquote(address["path"])


def _is_medium(word: str, alone: bool) -> bool:
    """Whether a word is the address or path of a medium, which may be missing; `alone`: or the bare name of one."""
    if re.match(r"https?://\S", word, re.IGNORECASE) or _FILE_ADDRESS.match(word):
        return True
    path = os.path.expanduser(word)
    named = _MEDIA_NAME.search(path) is not None
    if os.path.isabs(path) and named:
        return True
    return os.path.isfile(path) and (os.path.isabs(path) or word.startswith(("./", "../")) or (alone and named))


def _unquoted(word: str) -> str:
    return re.sub(r"""'([^']*)'|"([^"]*)"|\\(.)""", lambda match: match[1] or match[2] or match[3] or "", word)


# ── completion ──


def completions(line: str, begin: int, commands: Sequence[str], of_files: Sequence[str]) -> list[str]:
    """What `line[begin:]` may become: a command; or a path, at the beginning or behind a command in `of_files`."""
    named = [f"{command} " for command in commands if command.startswith(line)]
    if line.startswith("/") and named:
        return [command[begin:] for command in named]
    command, space, _ = line.partition(" ")
    typed = _TYPED.search(line)
    if typed is None or not (command in of_files if space else line[:1] in ("/", "~", ".", "'", '"')):
        return []
    quote = {"double": '"', "single": "'"}.get(typed.lastgroup or "", "")
    path = typed[typed.lastgroup] if typed.lastgroup else ""
    whole = line[: typed.start()]
    found = []
    for candidate in _paths(path if quote else re.sub(r"\\(.)", r"\1", path)):
        end = "" if candidate.endswith("/") else quote
        spelt = f"{quote}{candidate}{end}" if quote else re.sub(r"""([\s\\'"])""", r"\\\1", candidate)
        found.append(f"{whole}{spelt}"[begin:])
    return found


def _paths(typed: str) -> Iterator[str]:
    """Files and folders whose path begins so; hidden ones where the dot is typed."""
    folder, name = os.path.split(typed)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield os.path.join(folder, entry.name) + ("/" if entry.is_dir() else "")


def terminal_reader(commands: Sequence[str], of_files: Sequence[str]) -> ReadLine:
    """Reads lines from the terminal, edited and completed where the platform has readline."""
    try:
        import readline
    except ImportError:
        return _read_line
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found[:] = completions(line, len(line) - len(text), commands, of_files)
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    libedit = "libedit" in (readline.__doc__ or "")  # macOS
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    return _read_line


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return input(prompt)
    print(prompt, end="", file=sys.stderr, flush=True)  # `input` would write it to stdout, among the answers
    return input()
