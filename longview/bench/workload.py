"""Requests to put a server under load: text, pictures and videos, of which each carries a word that must come back.

A word is printed on a sign, or written in the text. An answer whose first known word is another one was misread by the
model, or is somebody else's: asked again alone, the request tells which.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longview.messages import Message, Part, ask
from longview.world import Picture, Sign, render, write_still
from longview.world.scenes import WORDS, draw_thing

Kind = Literal["text", "picture", "video"]
CYCLE: tuple[Kind, ...] = ("text", "picture", "text", "picture", "text", "picture", "text", "video")
"""The kinds of the requests, in turn."""
FRAMES = 64
"""Of a video."""
QUESTIONS_EACH = 4
"""That are asked about a video, one film being asked often."""
QUESTION = "What word is written?"
_WORD = re.compile("|".join(WORDS))


@dataclass(frozen=True)
class Asked:
    """A request, for a server and for an engine."""

    kind: Kind
    word: str
    body: bytes
    messages: Sequence[Message]

    def is_answered_by(self, text: str) -> bool:
        """Whether the first known word of an answer is its own."""
        found = _WORD.search(text.lower())
        return found is not None and found[0] == self.word


def make_requests(
    count: int, seed: int, model: str, tokens: int, kinds: Sequence[Kind] = CYCLE, frames: int = FRAMES
) -> list[Asked]:
    """Requests for answers of so many tokens. No two share a picture; a few share a video, or a text.

    Args:
        kinds: In turn.
    """
    rng = random.Random(seed)
    made: list[Asked] = []
    film: tuple[str, bytes] | None = None
    for number in range(count):
        kind = kinds[number % len(kinds)]
        unique = seed * 1_000_003 + number
        word = rng.choice(WORDS)
        if kind == "text":
            question = f"There is a sign that says {word}. {QUESTION}"
            made.append(_asked(kind, word, question, None, model, tokens, frames))
            continue
        if kind == "picture":
            encoded = io.BytesIO()
            render(_picture(word, rng), unique).save(encoded, "JPEG", quality=85)
            made.append(_asked(kind, word, QUESTION, encoded.getvalue(), model, tokens, frames))
            continue
        num_films = sum(each.kind == "video" for each in made)
        if film is None or num_films % QUESTIONS_EACH == 0:
            with tempfile.TemporaryDirectory(prefix="longview-bench-") as folder:
                path = write_still(_picture(word, rng), Path(folder) / "film.mp4", frames, unique)
                film = word, path.read_bytes()
        made.append(_asked(kind, film[0], QUESTION, film[1], model, tokens, frames))
    return made


def _picture(word: str, rng: random.Random) -> Picture:
    """A picture of a sign and two things beside it."""
    sign = Sign(word, rng.randrange(3))
    cells = [cell for cell in range(9) if cell not in sign.cells]
    things = sorted((draw_thing(rng, cell) for cell in rng.sample(cells, 2)), key=lambda thing: thing.cell)
    return Picture(tuple(things), sign)


def _asked(kind: Kind, word: str, question: str, data: bytes | None, model: str, tokens: int, frames: int) -> Asked:
    settings: dict[str, Any] = {"max_tokens": tokens, "min_tokens": tokens, "temperature": 0, "stream": True}
    if kind == "text" or data is None:
        body = {"model": model, "messages": [{"role": "user", "content": question}], **settings}
        return Asked(kind, word, json.dumps(body).encode(), [ask(question)])
    mime, name = ("image/jpeg", "image_url") if kind == "picture" else ("video/mp4", "video_url")
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    content = [{"type": name, name: {"url": uri}}, {"type": "text", "text": f"\n{question}"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], **settings}
    if kind == "video":
        body["media_io_kwargs"] = {"video": {"num_frames": frames}}
    part = Part("image" if kind == "picture" else "video", source=data)
    return Asked(kind, word, json.dumps(body).encode(), [ask(question, part)])
