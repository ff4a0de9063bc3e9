"""Judged answers → pairs of a chosen and a rejected one, and a pair as a row that `objective: preference` reads."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from longview.errors import RequestError
from longview.files import write_file
from longview.messages import Message
from longview.train.data.rows import Example
from longview.train.preferences.judges import Verdict
from longview.train.preferences.settings import PreferenceSettings, Style

Outcome = Literal["pair", "no wrong answer", "no right answer", "cut", "no verdict", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""What became of a question asked in one way. Cut: no answer ended within its tokens; failed: it could not be asked."""


@dataclass(frozen=True)
class JudgedAnswer:
    text: str
    cut: bool
    """It did not end within its tokens, and is not judged."""
    verdict: Verdict = None


@dataclass(frozen=True)
class Pair:
    """Two answers to the same question."""

    style: Style
    """How the question stands in the row: as it was, or with the wish for a step-by-step solution."""
    chosen: str
    rejected: str


def pair_up(
    truth: str, answers: Mapping[Style, Sequence[JudgedAnswer]], settings: PreferenceSettings
) -> tuple[list[Pair], dict[Style, Outcome]]:
    """The pairs of one row, in the order in which their answers were sampled, and what became of each way of asking."""
    right = {style: _texts(judged, True) for style, judged in answers.items()}
    wrong = {style: _texts(judged, False) for style, judged in answers.items()}
    if wrong.get("direct") and not right["direct"]:
        if settings.across:
            right["direct"] = right["cot"]
        if settings.true_answer and not right["direct"]:
            right["direct"] = [truth]
    pairs: list[Pair] = []
    outcomes: dict[Style, Outcome] = {}
    for style, judged in answers.items():
        both = list(zip(right[style], wrong[style], strict=False))[: settings.pairs]
        pairs += [Pair(style, *each) for each in both]
        outcomes[style] = "pair" if both else _lacking(judged, bool(right[style]), bool(wrong[style]))
    return pairs, outcomes


def _texts(judged: Sequence[JudgedAnswer], verdict: bool) -> list[str]:
    """The different answers with a verdict."""
    return list(dict.fromkeys(answer.text for answer in judged if answer.verdict is verdict))


def _lacking(judged: Sequence[JudgedAnswer], right: bool, wrong: bool) -> Outcome:
    if right or wrong:
        return "no wrong answer" if right else "no right answer"
    return "cut" if all(answer.cut for answer in judged) else "no verdict"


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def asked_in(example: Example, style: Style, settings: PreferenceSettings) -> list[Message]:
    """The conversation up to its last question, which is asked in one way."""
    messages = list(example.messages[:-1])
    if style == "cot":
        question = messages.pop()
        messages.append(Message.of("user", *question.parts, f"\n{settings.cot_prompt}"))
    return messages


def pair_row(messages: Sequence[Message], rejected: str, file: Path, **columns: Any) -> dict[str, Any]:
    """A row in ms-swift's spelling: a conversation that ends with the chosen answer, and the rejected one.

    Args:
        file: Where it will be written. Media under its folder are named from there, others by their whole path;
            encoded bytes and pictures in memory become files beside it.
    """
    row: dict[str, Any] = {
        "messages": [{"role": message.role, "content": _content(message)} for message in messages],
        "rejected_response": rejected,
    }
    for kind in ("image", "video"):
        parts = [part for message in messages for part in message.media if part.type == kind]
        if parts:
            row[f"{kind}s"] = [_named(part.source, file) for part in parts]
    return row | columns


def check_askable(example: Example) -> None:
    """
    Raises:
        RequestError: it holds no question, or what a row in ms-swift's spelling cannot say.
    """
    if example.plain or [message.role for message in example.messages[-2:]] != ["user", "assistant"]:
        raise RequestError("it holds no question with an answer, which is what is asked and judged; leave it out")
    if any(message.media for message in example.messages if message.role != "user"):
        raise RequestError("only the user's messages may hold pictures or videos here; leave the row out")


def _content(message: Message) -> str:
    return "".join(part.text if part.type == "text" else f"<{part.type}>" for part in message.parts)


def _named(source: Any, file: Path) -> Any:
    """What names a medium in a row of a file."""
    if isinstance(source, Image.Image):
        encoded = io.BytesIO()
        source.save(encoded, "PNG")
        source = encoded.getvalue()
    if isinstance(source, bytes):
        folder = file.with_suffix(".media")
        folder.mkdir(exist_ok=True)
        path = folder / hashlib.sha256(source).hexdigest()[:32]
        if not path.exists():
            write_file(path, source)
        source = path
    if isinstance(source, Sequence) and not isinstance(source, str):  # a video's frames
        return [_named(frame, file) for frame in source]
    if isinstance(source, str) and source.startswith(("http:", "https:", "data:", "file:")):
        return source
    path, folder = Path(str(source)).absolute(), file.parent.absolute()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
