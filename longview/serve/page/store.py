"""What the browser keeps: the conversations of one person, newest first, and which of them is open.

{"open": "3f2a…", "chats": [Conversation, …]}
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from longview.serve.page.conversation import Conversation, read

KEY = "longview-chats"
MAX_CHATS = 50
MAX_BYTES = 2 << 20
"""Of all of them; a browser keeps some 5 MB for a site."""


class Store:
    """The conversations as the browser sent them; what is not well formed is left out."""

    def __init__(self, given: Any) -> None:
        chats = given.get("chats") if isinstance(given, dict) else None
        found = [read(chat) for chat in chats] if isinstance(chats, list) else []
        self.chats = [chat for chat in found if chat is not None][:MAX_CHATS]
        self.open = str(given.get("open", "")) if isinstance(given, dict) else ""

    @property
    def current(self) -> Conversation | None:
        """The conversation that is open; None for a new one."""
        return next((chat for chat in self.chats if chat.id == self.open), None)

    def put(self, conversation: Conversation) -> None:
        """Keep a conversation as the newest, and open it."""
        conversation.changed = time.time()
        self.chats = [conversation, *(chat for chat in self.chats if chat.id != conversation.id)]
        self.open = conversation.id

    def drop(self, id: str) -> None:
        self.chats = [chat for chat in self.chats if chat.id != id]
        if self.open == id:
            self.open = ""

    def as_json(self) -> dict[str, Any]:
        """For the browser; the oldest are left out when they are too many."""
        kept: list[dict[str, Any]] = []
        left = MAX_BYTES
        for chat in self.chats[:MAX_CHATS]:
            plain = chat.model_dump()
            left -= len(json.dumps(plain))
            if left < 0 and kept:
                break
            kept.append(plain)
        return {"open": self.open, "chats": kept}

    @property
    def choices(self) -> list[tuple[str, str]]:
        """Titles and ids."""
        return [(chat.title, chat.id) for chat in self.chats]


def new_id() -> str:
    return secrets.token_hex(8)
