"""Samples of the prompt of `longview ask --knowledge`: numbered pieces before a question; one tells the answer.

    Knowledge 2: ▣ It is called music.     Knowledge 3: ▣▣▣▣ (tea.mp4 0:06–0:09)     …
    ▣ What is it called?                   music, based on knowledge 2.

The numbers have gaps, as they do where a piece is left out to see what an answer rests on. Where no piece tells, or
there is none, the answer says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longview.curriculum.pool import Pool
from longview.curriculum.settings import MAX_PICTURES
from longview.index.answer import CLAIM, MOMENT_FRAMES, prompt
from longview.index.sheet import clock
from longview.media.medium import Medium
from longview.messages import Message, Part
from longview.world.knowledge import UNKNOWN, Named, ask_name, draw_names, passage_text
from longview.world.questions import Question
from longview.world.scenes import WORDS

MOST_PIECES, MOST_TOLD = 4, 6
"""Pieces of a sample; without pictures."""
NUMBERS = range(1, MAX_PICTURES + 1)
NO_PIECES, TELLS = 0.08, 0.85
"""Shares of samples without a piece, and, of the questions of the others, of those that a piece tells the answer to."""
SHOWN = 0.7
"""Share of passages, and of questions about a name, with a picture."""
MOMENTS = 0.3
"""Share of pieces of scenes that are moments of a film."""


@dataclass(frozen=True)
class Piece:
    """A numbered piece: its parts, and the pictures of the pool that they show."""

    number: int
    parts: tuple[Part, ...]
    media: tuple[Medium, ...]
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """A question, the number of the piece that tells its answer (0: none does), and pictures of its own."""

    question: Question
    number: int
    indices: tuple[int, ...] = ()


def draw_names_told(rng: random.Random, turns: int) -> tuple[list[Piece], list[Asked]]:
    """Passages about the names of things, without pictures, and questions about these: what is asked for is to be
    found in the text, and copied."""
    named = draw_names(rng, rng.randint(1, MOST_TOLD))
    numbers = _numbers(rng, len(named))
    pieces = [_told(rng, each, number) for each, number in zip(named, numbers, strict=True)]
    places = [rng.randrange(len(named)) for _ in range(turns)]
    return pieces, [Asked(ask_name(rng, named[place], False), numbers[place]) for place in places]


def draw_names_known(rng: random.Random, pool: Pool, turns: int) -> tuple[list[Piece], list[Asked]]:
    """Passages about the names of things, and questions about these or others."""
    kinds = list(pool.alone)
    count = 0 if rng.random() < NO_PIECES else rng.randint(1, min(MOST_PIECES, len(kinds) - 1))
    named = draw_names(rng, min(count + 1, len(kinds)), kinds)
    told, untold = named[:count], named[count:]
    pieces = [_passage(rng, pool, each, number) for each, number in zip(told, _numbers(rng, count), strict=True)]
    asked = []
    for _ in range(turns):
        tells = bool(told) and rng.random() < TELLS
        place = rng.randrange(count) if tells else 0
        subject = told[place] if tells else untold[0]
        shown = rng.random() < SHOWN
        question = ask_name(rng, subject, shown)
        own = (rng.choice(pool.alone[subject.kind]),) if shown else ()
        asked.append(Asked(question, pieces[place].number if tells else 0, own))
    return pieces, asked


def _told(rng: random.Random, named: Named, number: int) -> Piece:
    """A passage without a picture."""
    return Piece(number, (Part("text", text=passage_text(rng, named, False)),), (), ())


def _passage(rng: random.Random, pool: Pool, named: Named, number: int) -> Piece:
    if rng.random() >= SHOWN:
        return _told(rng, named, number)
    text = passage_text(rng, named, True)
    index = rng.choice(pool.alone[named.kind])
    return Piece(number, (Part("image"), Part("text", text=f" {text}")), (pool.medium(index),), (index,))


def scenes_known(
    rng: random.Random, pool: Pool, indices: Sequence[int], questions: Sequence[Question]
) -> tuple[list[Piece], list[Asked]]:
    """Pictures and moments of films, and questions about what one of them alone shows.

    Args:
        indices: Of the pictures, in the pool.
        questions: Each about one of them.
    """
    numbers = _numbers(rng, len(indices))
    pieces = [_scene(rng, pool, index, number) for index, number in zip(indices, numbers, strict=True)]
    asked = [Asked(question, numbers[question.about - 1]) for question in questions]
    if len(pieces) > 1 and rng.random() > TELLS:  # without the one that tells
        left_out = numbers[questions[0].about - 1]
        pieces = [piece for piece in pieces if piece.number != left_out]
        asked = [replace(each, number=0) if each.number == left_out else each for each in asked]
    return pieces, asked


def _scene(rng: random.Random, pool: Pool, index: int, number: int) -> Piece:
    if rng.random() >= MOMENTS:
        return Piece(number, (Part("image"),), (pool.medium(index),), (index,))
    begin = rng.randrange(600)
    label = f" ({rng.choice(WORDS)}.mp4 {clock(begin)}–{clock(begin + rng.randint(1, 9))})"
    frames = (index,) * MOMENT_FRAMES
    return Piece(number, (Part("video"), Part("text", text=label)), (pool.medium(*frames),), frames)


def _numbers(rng: random.Random, count: int) -> list[int]:
    return sorted(rng.sample(NUMBERS, count)) if rng.random() < 0.5 else list(range(1, count + 1))


def conversation(
    pool: Pool, pieces: Sequence[Piece], asked: Sequence[Asked]
) -> tuple[list[Message], list[Medium], list[int], list[Question]]:
    """Messages, media, pictures of the pool, and the questions with the pictures that tell their answers."""
    messages: list[Message] = []
    media = [medium for piece in pieces for medium in piece.media]
    indices = [index for piece in pieces for index in piece.indices]
    questions = []
    first = {piece.number: sum(len(other.indices) for other in pieces[:at]) for at, piece in enumerate(pieces)}
    shown = {piece.number for piece in pieces if piece.indices}
    for each in asked:
        own = [Part("image") for _ in each.indices]
        if messages:
            ending = CLAIM if pieces else ""
            user = Message("user", (*own, Part("text", text="\n" * len(own) + each.question.text + ending)))
        else:
            user = prompt({piece.number: piece.parts for piece in pieces}, each.question.text, own)
        answer = f"{each.question.answer}, based on knowledge {each.number}." if each.number else UNKNOWN
        messages += [user, Message.of("assistant", answer)]
        place = first[each.number] if each.number in shown else None
        found_in = (place,) if place is not None and place < MAX_PICTURES else None
        questions.append(replace(each.question, about=0 if place is None else place + 1, found_in=found_in))
        media += [pool.medium(index) for index in each.indices]
        indices += each.indices
    return messages, media, indices, questions
