"""Files on the command line: folders and patterns in their place, pictures from a pipe, and JSON lines of questions."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longview.errors import MediaError, RequestError
from longview.messages import Part
from longview.requests import Limits
from longview.settings import check_names

SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|m4v|mov|mkv|webm|avi)$", re.IGNORECASE)
"""What names of pictures and videos in a folder end with; a file that is named itself is known by its content."""
ADDRESS = re.compile(r"(https?|data):", re.IGNORECASE)
STDIN = "-"


# ── pictures and videos ──────────────────────────────────────────────────────────────────────────────────────────────


def open_parts(sources: Sequence[str], limits: Limits) -> list[Part]:
    """Files and URLs as parts of a message: pictures or videos, by their content.

    A folder stands for the pictures and videos in it, a pattern (`*.jpg`) for what it matches, in the order of names.

    Raises:
        MediaError: one of them is neither, or nothing is there.
    """
    from longview.media import sniff

    return [Part(sniff(source, limits), source=source) for given in sources for source in expand(given)]


def open_photos(names: str | None, limits: Limits) -> list[Part]:
    """The pictures of `--image-file a.jpg,b.jpg`.

    Raises:
        RequestError: one of them is a video or an animation.
    """
    parts = open_parts([name.strip() for name in (names or "").split(",") if name.strip()], limits)
    for part in parts:
        if part.type != "image":
            raise RequestError(
                f"--image-file takes photos, and {part.source!s} moves; give it as an argument, as a video"
            )
    return parts


def expand(source: str) -> list[str]:
    """The files that a name, a folder or a pattern stands for.

    Raises:
        MediaError: a folder without media, or a pattern that nothing matches.
    """
    if ADDRESS.match(source):
        return [source]
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        found = sorted(name for name in os.listdir(path) if SUFFIX.search(name) and not name.startswith("."))
        if not found:
            raise MediaError(f"the folder {source} holds no pictures and no videos; name files, or another folder")
        return [os.path.join(source, name) for name in found]
    if not os.path.exists(path) and glob.has_magic(source):
        matches = sorted(name for name in glob.glob(path) if not os.path.isdir(name))
        if not matches:
            raise MediaError(f"no file matches {source!r}; check the pattern")
        return matches
    return [source]


def piped_part(limits: Limits) -> Part:
    """The picture or video on standard input.

    Raises:
        RequestError: nothing is there.
        MediaError: it is neither, or too large.
    """
    from longview.media import sniff

    data = sys.stdin.buffer.read(limits.max_video_bytes + 1)
    if not data:
        raise RequestError("standard input is empty; pipe a picture or video into it")
    return Part(sniff(data, limits), source=data)


# ── the question among the arguments ─────────────────────────────────────────────────────────────────────────────────


def split_question(arguments: Sequence[str]) -> tuple[list[str], str]:
    """Files, and the question after them.

    Raises:
        RequestError: the question is missing, or its words are not quoted.
    """
    *files, question = arguments
    if os.path.exists(question) or re.fullmatch(r"https?://\S+", question):
        raise RequestError(f"the last argument is the question, and {question!r} is a medium; add a question after it")
    if SUFFIX.search(question) and not re.search(r"\s", question):
        raise RequestError(f"the last argument is the question, and {question!r} looks like a file, which is not there")
    first = next((number for number, name in enumerate(files) if _is_word(name)), len(files))
    if first < len(files) and all(_is_word(name) for name in files[first:]):
        whole = " ".join([*files[first:], question])
        raise RequestError(
            f"there is no file {files[first]!r}; if it begins the question, put that in quotation marks: {whole!r:.60}"
        )
    return files, question


def _is_word(argument: str) -> bool:
    """Whether an argument is no file, nor the name of one that is missing."""
    return not (
        argument == STDIN
        or ADDRESS.match(argument)
        or SUFFIX.search(argument)
        or glob.has_magic(argument)
        or "/" in argument
        or os.path.exists(argument)
    )


# ── many questions ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Question:
    """A line of `--questions`."""

    text: str
    parts: list[Part]
    id: Any = None


def read_questions(path: str, parts: list[Part], limits: Limits) -> Iterator[Question]:
    """Questions from JSON lines: each a string, or an object of `question`, `files` and `id`.

    Args:
        path: A file, beside which its files are looked for, or - for standard input.
        parts: What each question is about, before its own files.

    Raises:
        RequestError: the file cannot be read, or a line is no question; names the line.
        MediaError: a file of a line cannot be opened.
    """
    try:
        text = sys.stdin.read() if path == STDIN else Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise RequestError(f"{path} cannot be read ({reason}); give a file of JSON lines") from None
    folder = "" if path == STDIN else os.path.dirname(path)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise RequestError(f"{path} holds no questions; write one a line")
    for number, line in lines:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RequestError(f"line {number} of {path} is no JSON ({error})") from None
        row = {"question": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not isinstance(row.get("question"), str) or not row["question"].strip():
            raise RequestError(f'line {number} of {path} has no question; write {{"question": "What is this?"}}')
        check_names(row, ("question", "files", "id"), f"key in line {number} of {path}:")
        files = row.get("files") or []
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise RequestError(f"files in line {number} of {path} are a list of names, not {files!r:.60}")
        own = [file if ADDRESS.match(file) else os.path.join(folder, os.path.expanduser(file)) for file in files]
        yield Question(row["question"], [*parts, *open_parts(own, limits)], row.get("id"))
