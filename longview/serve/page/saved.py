"""A conversation as one file: a zip of `conversation.json` and the media that it names.

What comes back in such a file is somebody's upload: its JSON is checked like a request, members are read under the
server's limits, and none is written where its name says.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import ValidationError

import longview
from longview.serve.app import MAX_DEPTH, Server, depth_of
from longview.serve.errors import APIError, invalid
from longview.serve.page.conversation import Conversation, Shown

FORM = 1
"""Of the file."""
JSON_NAME = "conversation.json"
MAX_JSON = 8 << 20
CHUNK = 1 << 20


async def write(server: Server, conversation: Conversation, tenant: str, target: Path) -> None:
    """Write a conversation to a file.

    Raises:
        APIError: a medium of it has expired.
    """
    copy = Conversation.model_validate(conversation.model_dump())  # in which no two turns share a medium
    names: dict[Path, str] = {}
    for medium in (medium for turn in copy.turns for medium in turn.files):
        path = server.files.path(server.files.find(medium.file, tenant))
        names.setdefault(path, f"media/{len(names) + 1}-{Path(medium.name).name or 'medium'}")
        medium.file = names[path]
    plain = copy.model_dump()
    facts = {name: server.models.facts.get(name, {}) for name in conversation.models}
    models = {name: {key: its.get(key) for key in ("family", "release", "dtype")} for name, its in facts.items()}
    head = {"form": FORM, "longview": longview.__version__, "saved": int(time.time()), "models": models}
    text = json.dumps({**head, "conversation": plain}, ensure_ascii=False, indent=1)
    await asyncio.to_thread(_zip, target, text, names)


def _zip(target: Path, text: str, media: Mapping[Path, str]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(JSON_NAME, text, zipfile.ZIP_DEFLATED)
        for path, name in media.items():
            archive.write(path, name)


async def read(server: Server, source: Path, tenant: str) -> Conversation:
    """The conversation in a file, with its media uploaded.

    Raises:
        APIError: it is no such file, or is over a limit.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            conversation = await asyncio.to_thread(_conversation, archive)
            stored: dict[str, str] = {}
            for shown in (shown for turn in conversation.turns for shown in turn.files):
                if shown.file not in stored:
                    stored[shown.file] = await _store(server, archive, shown, tenant)
                shown.file = stored[shown.file]
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise _no_conversation() from None
    return conversation


def _conversation(archive: zipfile.ZipFile) -> Conversation:
    try:
        text = _limited(archive, JSON_NAME, MAX_JSON)
        data = json.loads(text)
    except (KeyError, ValueError, RecursionError):
        raise _no_conversation() from None
    if not isinstance(data, dict) or data.get("form") != FORM or depth_of(data) > MAX_DEPTH:
        raise _no_conversation()
    try:
        return Conversation.model_validate(data.get("conversation"))
    except ValidationError:
        raise _no_conversation() from None


async def _store(server: Server, archive: zipfile.ZipFile, shown: Shown, tenant: str) -> str:
    limit = min(server.options.max_file_bytes, server.files.room)
    with server.files.temporary() as unpacked:
        await asyncio.to_thread(_unpack, archive, shown, unpacked, limit)
        return (await server.files.add(Path(unpacked.name), shown.name, tenant)).id


def _unpack(archive: zipfile.ZipFile, shown: Shown, target: IO[bytes], limit: int) -> None:
    try:
        member = archive.open(shown.file)
    except KeyError:
        raise invalid(f"the file lacks {shown.file!r:.80}, which its conversation shows", "file") from None
    left = limit
    with member:
        while chunk := member.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise APIError(413, f"{shown.name} is larger than the {max(0, limit):,} bytes left", "file", "quota")
            target.write(chunk)
    target.flush()


def _limited(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as member:
        found = io.BytesIO(member.read(limit + 1)).getvalue()
    if len(found) > limit:
        raise ValueError("too long")
    return found


def _no_conversation() -> APIError:
    return invalid("this is no saved conversation; give a file that the page has saved", "file")
