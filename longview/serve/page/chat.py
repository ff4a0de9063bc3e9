"""A conversation as the messages of Gradio's chat: two for each turn, the question and one model's answer."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from longview.serve.page.conversation import Answer, Conversation, Shown

MEDIA_ROUTE = "/page/media"
MOVING_PICTURES = (".gif", ".webp", ".png")
"""Videos that browsers show as pictures."""


def messages_of(conversation: Conversation | None, model: str) -> list[dict[str, Any]]:
    """What the chat of one model shows."""
    found: list[dict[str, Any]] = []
    for turn in [] if conversation is None else conversation.turns:
        media = [gr.HTML(_media(turn.shown), padding=False)] if turn.shown else []
        found.append({"role": "user", "content": [*media, turn.text or " "]})
        answer = turn.answers.get(model)
        drawn = [gr.HTML(_media(answer.drawn), padding=False)] if answer is not None and answer.drawn else []
        found.append({"role": "assistant", "content": [_said(answer), *drawn] if drawn else _said(answer)})
    return found


def turn_of(index: Any) -> int:
    """Which turn a message of the chat belongs to."""
    return (index[0] if isinstance(index, list | tuple) else index) // 2


def _media(shown: list[Shown]) -> str:
    return f'<div class="lv-shown">{"".join(map(_medium, shown))}</div>'


def _medium(shown: Shown) -> str:
    source, name = f"{MEDIA_ROUTE}/{escape(shown.file, quote=True)}", escape(shown.name, quote=True)
    if shown.kind == "video" and not shown.name.lower().endswith(MOVING_PICTURES):
        drawn = f'<video src="{source}" controls muted playsinline preload="metadata" aria-label="{name}"></video>'
    else:
        drawn = f'<img src="{source}" alt="{name}" loading="lazy">'
    return f"<figure>{drawn}<figcaption>{name}</figcaption></figure>"


def _readable(text: str) -> str:
    """An answer without the tags around what is to be painted, which are no HTML and would be left out with all."""
    return text.replace("<h>", "“").replace("</h>", "”")


def _said(answer: Answer | None) -> str:
    if answer is None:
        return "*This model was not asked.*"
    if answer.ended == "failed":
        return f"**Not answered:** {escape(answer.error, quote=False)}"
    if not answer.ended:
        return _readable(answer.text) or "…"
    ends = {"stopped": "*stopped*", "length": "*cut off: raise “Max tokens”*"}
    more = "*painting…*" if answer.painting else answer.note and f"*{answer.note}*"
    return "\n\n".join(filter(None, (_readable(answer.text), ends.get(answer.ended, ""), more)))
