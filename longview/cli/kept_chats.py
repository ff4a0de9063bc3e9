"""Conversations held on a terminal, kept for `longview chat --continue`: a file each, in the user's state folder."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from longview.chat import save_messages
from longview.errors import RequestError
from longview.messages import Message

MAX_KEPT = 50
"""Conversations, the newest."""


def chats_folder() -> Path:
    """Where they are: `longview/chats` in $XDG_STATE_HOME, which is ~/.local/state by default."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "longview" / "chats"


def new_chat() -> Path:
    """The file of a new conversation; it is written when a question has been answered."""
    return chats_folder() / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{uuid.uuid4().hex[:8]}.json"


def latest_chat() -> Path:
    """The file of the conversation that was held last.

    Raises:
        RequestError: there is none.
    """
    kept = _kept()
    if not kept:
        raise RequestError("there is no conversation to continue; begin one with longview chat, on a terminal")
    return kept[-1]


def keep(messages: Sequence[Message], path: Path) -> None:
    """Write a conversation to its file, and delete the oldest ones.

    Raises:
        RequestError: it cannot be written.
    """
    with contextlib.suppress(OSError):  # `save_messages` says why
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    save_messages(messages, path)
    for old in _kept()[:-MAX_KEPT]:
        with contextlib.suppress(OSError):
            old.unlink()


def _kept() -> list[Path]:
    """The files, from the oldest to the newest; those of other terminals may go meanwhile."""
    aged = []
    for path in chats_folder().glob("*.json"):
        with contextlib.suppress(OSError):
            aged.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(aged)]
