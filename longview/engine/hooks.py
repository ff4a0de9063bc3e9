"""Hooks: code that may change the messages before the model, or make something of its answer.

    messages, media ── before_model ── the model ── answer ── after_answer ── what was made

`longview.load(hooks=[…])` is for every request of an engine, `Engine.stream(hooks=[…])` for one. The extras in
`longview.plugins` come in here, and have no other way in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from longview.errors import RequestError
from longview.media import Medium
from longview.messages import Answer, Message, Progress, Receipt

if TYPE_CHECKING:
    from longview.engine.engine import Engine

RESERVED = {field.name for kind in (Answer, Receipt) for field in fields(kind)}


@runtime_checkable
class Hook(Protocol):
    """Subclass it and override what is needed, or write a class with the same members.

    Requests are prepared in several threads at once, so the methods of one hook may run concurrently. A LongviewError
    that they raise ends the request.
    """

    reads_frames: bool = False
    """Whether `before_model` reads `frame.image`; otherwise the frames of video files are left undecoded."""

    def check(self, engine: Engine) -> None:
        """Called when a request is made, before anything is opened.

        Raises:
            RequestError: the engine's model cannot do what this hook needs.
        """

    def before_model(
        self, messages: Sequence[Message], media: Sequence[Medium], progress: Progress | None
    ) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """The messages for the model, and notes for the receipt, by name.

        Args:
            messages: Not to be changed in place. What is returned shows the same media in the same order.
            media: What the messages show, opened, in order.
        """
        return messages, {}

    def after_answer(self, answer: Answer, progress: Progress | None) -> Mapping[str, Any]:
        """What is made of a whole answer, by name: `Answer.made`, in a stream a piece behind the last one's receipt."""
        return {}


def parse_hooks(hooks: Any) -> tuple[Hook, ...]:
    """
    Raises:
        RequestError: no list of hooks.
    """
    given = hooks if isinstance(hooks, (list, tuple)) else [hooks]
    wrong = [hook for hook in given if not isinstance(hook, Hook) or isinstance(hook, type)]
    if wrong or given is not hooks:
        raise RequestError(f"hooks is {hooks!r:.60}; give a list of instances of subclasses of longview.Hook")
    return tuple(hooks)


def run_before_model(
    hooks: Iterable[Hook], messages: Sequence[Message], media: Sequence[Medium], progress: Progress | None
) -> tuple[Sequence[Message], dict[str, Any]]:
    """The messages after every hook in turn, and all notes."""
    notes: dict[str, Any] = {}
    for hook in hooks:
        messages, found = hook.before_model(messages, media, progress)
        _add(notes, found, hook)
    return messages, notes


def run_after_answer(hooks: Iterable[Hook], answer: Answer, progress: Progress | None) -> dict[str, Any]:
    """What all hooks make of an answer."""
    made: dict[str, Any] = {}
    for hook in hooks:
        _add(made, hook.after_answer(answer, progress), hook)
    return made


def _add(names: dict[str, Any], found: Mapping[str, Any], hook: Hook) -> None:
    taken = sorted(found.keys() & (names.keys() | RESERVED))
    if taken:
        raise RequestError(f"{type(hook).__name__} says {taken[0]!r}, a name that is taken; choose another")
    names.update(found)
