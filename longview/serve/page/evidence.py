"""What the last answer rests on, in a tab beside the chat: computed when asked for, and shown as a page of its own.

button ── rests_on ── the request once more, with evidence ── its model: answer, check, pictures ── evidence/page.py
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from longview.evidence import page
from longview.evidence.view import View
from longview.files import write_file
from longview.serve.app import Server
from longview.serve.errors import APIError
from longview.serve.page.conversation import Conversation, request_of

ROUTE = "/page/evidence"
EMPTY = (
    '<p class="lv-hint">Which pictures the last answer rests on, where the model looked, and what the answer loses '
    "without each of them. It is computed when you ask for it, as it takes several passes.</p>"
)
COMPUTING = '<p class="lv-hint" role="status">Asking once more, and leaving pictures out…</p>'
POLICY = f"sandbox allow-scripts; {page.POLICY}; frame-ancestors 'self'"
MOST_KEPT = 32
ENDED = ("stop", "length")


class EvidencePages:
    """The pages that were made last, as files that belong to who asked.

    Args:
        folder: Where they are kept while the server runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pages: OrderedDict[str, tuple[str, Path]] = OrderedDict()

    def keep(self, text: str, tenant: str) -> str:
        """The token that a page is fetched by; the oldest page goes where there are too many."""
        token = secrets.token_hex(16)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(self.folder / f"{token}.html", text.encode())
        self._pages[token] = tenant, self.folder / f"{token}.html"
        while len(self._pages) > MOST_KEPT:
            _, (_, path) = self._pages.popitem(last=False)
            path.unlink(missing_ok=True)
        return token

    def find(self, token: str, tenant: str) -> Path:
        """
        Raises:
            APIError: there is none, or it is another tenant's.
        """
        owner, path = self._pages.get(token, ("", Path()))
        if token not in self._pages or owner != tenant:
            raise APIError(404, "there is no such page; ask for it again")
        return path


async def views_of(server: Server, conversation: Conversation, tenant: str) -> tuple[list[View], list[str]]:
    """What the last answer of each model rests on, and what there is to say of it.

    Raises:
        APIError: no answer has ended, or one cannot be given again.
    """
    number = len(conversation.turns) - 1
    turn = conversation.turns[number]
    models = [model for model in conversation.models if turn.answers.get(model) and turn.answers[model].ended in ENDED]
    if not models:
        raise APIError(400, "no answer to the last question has ended by itself; ask again")
    found = await asyncio.gather(*(evidence_of(server, conversation, number, model, tenant) for model in models))
    notes = [
        f"Asked once more, {model} answered otherwise: this is about the other answer."
        for model, view in zip(models, found, strict=True)
        if view.data["text"] != turn.answers[model].text
    ]
    return list(found), notes


async def evidence_of(server: Server, conversation: Conversation, number: int, model: str, tenant: str) -> View:
    """
    Raises:
        APIError: as the question itself; it shows no picture.
    """
    job = server.jobs.chat(request_of(conversation, number, model), tenant)
    job.do = "evidence"
    async with contextlib.aclosing(server.events(model, job)) as events:
        event: Mapping[str, Any] = await anext(events)
    return View(event["report"], {int(number): base64.b64decode(jpeg) for number, jpeg in event["jpegs"].items()})


def made(views: Sequence[View]) -> str:
    """The page."""
    return page.html(views)


def shown(token: str, notes: Sequence[str]) -> str:
    """A page in the tab, and the link to it alone."""
    said = "".join(f'<p class="lv-hint">{escape(note)}</p>' for note in notes)
    source = f"{ROUTE}/{token}"
    return (
        f'{said}<p class="lv-hint"><a href="{source}" target="_blank" rel="noopener">Open in a tab of its own</a></p>'
        f'<iframe class="lv-evidence" src="{source}" title="What the answer rests on" sandbox="allow-scripts"></iframe>'
    )
