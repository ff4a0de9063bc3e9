"""Questions about what happens in a clip."""

from __future__ import annotations

import random

from longview.world.questions.question import COUNTS, Question
from longview.world.scenes import DIRECTIONS, MAX_FLASHES, Clip


def describe_clip(clip: Clip) -> str:
    """What happens in a clip, in one phrase."""
    subject = clip.subjects[0]
    if clip.event == "move":
        return f"a {subject.name} moves {clip.direction}"
    if clip.event == "order":
        return " and then ".join(f"a {thing.name}" for thing in clip.subjects)
    return f"a {subject.name} flashes {clip.flashes} {'time' if clip.flashes == 1 else 'times'}"


def ask_about_clip(rng: random.Random, clip: Clip) -> Question:
    """A question about what happens in a clip."""
    if rng.random() < 0.2:
        phrasings = (
            "What happens?",
            "What happens in the video?",
            "Describe the video.",
            "What does the video show?",
            "What do you see?",
            "What is happening?",
        )
        return Question("what happens", rng.choice(phrasings), describe_clip(clip))
    subject = clip.subjects[0]
    name = rng.choice((subject.shape, f"{subject.colour} {subject.shape}", f"{subject.colour} thing"))
    return {"move": _ask_about_move, "order": _ask_about_order, "flash": _ask_about_flash}[clip.event](rng, clip, name)


def _ask_about_move(rng: random.Random, clip: Clip, name: str) -> Question:
    if rng.random() < 0.25:
        what = ("What moves?", "What is moving?", "Which thing moves?", "Which object is moving?")
        return Question("what moves", rng.choice(what), f"a {clip.subjects[0].name}")
    phrasings = (
        f"Which way does the {name} move?",
        f"Which way is the {name} moving?",
        f"In which direction does the {name} move?",
        f"Where does the {name} go?",
        f"In which direction is the {name} moving?",
        f"Which way does the {name} go?",
    )
    return Question("direction", rng.choice(phrasings), clip.direction, tuple(DIRECTIONS))


def _ask_about_order(rng: random.Random, clip: Clip, name: str) -> Question:
    subject, last = clip.subjects[0], clip.subjects[-1]
    if rng.random() < 0.4:
        pair = sorted((subject.shape, rng.choice(clip.subjects[1:]).shape))
        one, other = rng.sample(pair, 2)
        first = rng.choice(("comes first", "appears first", "is shown first", "do you see first"))
        text, choices = f"What {first}, the {one} or the {other}?", tuple(f"the {shape}" for shape in pair)
        return Question("order", text, f"the {subject.shape}", choices)
    when, answer = rng.choice((("first", subject), ("last", last)))
    phrasings = tuple(f"What {verb} {when}?" for verb in ("comes", "appears", "is shown", "do you see"))
    return Question("order", rng.choice(phrasings), f"a {answer.name}")


def _ask_about_flash(rng: random.Random, clip: Clip, name: str) -> Question:
    subject = clip.subjects[0]
    phrasings = (
        f"How many times does the {name} flash?",
        f"How many times does the {name} appear?",
        f"How often does the {name} flash?",
        f"How often does the {name} appear?",
        f"How many times do you see the {name}?",
        f"How many times is the {name} shown?",
    )
    lit = tuple(second for second, frame in enumerate(clip.frames) if subject in frame.things)
    return Question("flashes", rng.choice(phrasings), str(clip.flashes), COUNTS[1 : MAX_FLASHES + 1], found_in=lit)
