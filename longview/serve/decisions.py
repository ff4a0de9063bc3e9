"""`/v1/decisions`: many typed questions about one conversation, answered by probabilities instead of text.

    predicate   is it so?                   the probability of yes, against no
    choice      which of these?             the probability of each
    score       which of these levels?      the same, and the expected level, counted from 0

A probability is that of the model writing just this answer, against the others of its question (`engine/score.py`).
Media are opened and encoded once, however many questions are asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from longview.serve.errors import invalid
from longview.serve.items import InputFile, InputImage, InputJSON, InputMessage, InputText, message_of, messages_of
from longview.serve.schema import ChatMessage, OwnSettings, Strict

MAX_QUESTIONS, MAX_CHOICES = 400, 255
YES_NO = ("yes", "no")

Instructions = str | list[Annotated[InputText | InputImage | InputFile | InputJSON, Field(discriminator="type")]]


class Predicate(Strict):
    type: Literal["predicate"]
    instructions: Instructions
    name: str | None = None


class ChoiceValue(Strict):
    value: str | bool
    description: str | None = None


class Choice(Strict):
    type: Literal["choice"]
    instructions: Instructions
    choices: list[ChoiceValue] = Field(min_length=2, max_length=MAX_CHOICES)
    name: str | None = None


class Level(Strict):
    label: str
    description: str | None = None


class Score(Strict):
    type: Literal["score"]
    instructions: Instructions
    levels: list[Level] = Field(min_length=2, max_length=MAX_CHOICES)
    name: str | None = None


Question = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class DecisionRequest(Strict):
    """What `POST /v1/decisions` takes."""

    model: str
    input: str | list[InputMessage]
    questions: list[Question] = Field(min_length=1, max_length=MAX_QUESTIONS)
    longview: OwnSettings | None = None
    prompt_cache_options: dict[str, Any] | None = Field(default=None, description="Prefixes are kept without it.")


def conversation_of(request: DecisionRequest) -> list[ChatMessage]:
    """The messages that every question is about; the last is the user's."""
    messages = messages_of(request.input)
    return messages if messages[-1].role == "user" else [*messages, ChatMessage(role="user", content=[])]


def question_of(question: Any, number: int) -> tuple[ChatMessage, list[str]]:
    """A question as a message, and its answers.

    Raises:
        APIError: two of its answers are the same.
    """
    answers = answers_of(question)
    if len(set(answers)) < len(answers) or "" in answers:
        field = "choices" if isinstance(question, Choice) else "levels"
        raise invalid("the answers to a question differ, and none is empty", f"questions[{number}].{field}")
    message = message_of("user", question.instructions)
    described = _descriptions(question, answers)
    if described:
        text = {"type": "text", "text": "\n" + described}
        parts = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content
        message = ChatMessage.model_validate({"role": "user", "content": [*parts, text]})
    return message, answers


def answers_of(question: Any) -> list[str]:
    """The texts whose probabilities decide."""
    if isinstance(question, Predicate):
        return list(YES_NO)
    if isinstance(question, Score):
        return [level.label for level in question.levels]
    return [value if isinstance(value := choice.value, str) else str(value).lower() for choice in question.choices]


def _descriptions(question: Any, answers: Sequence[str]) -> str:
    """The answers that are described, a line each, as the model has to know them before it answers."""
    described = getattr(question, "choices", None) or getattr(question, "levels", None) or []
    if not any(each.description for each in described):
        return ""
    lines = zip(answers, described, strict=True)
    return "\n".join(f"{answer}: {each.description}" if each.description else answer for answer, each in lines)


def body(request: DecisionRequest, scored: Mapping[str, Any]) -> dict[str, Any]:
    """The reply, of what the model's process has scored."""
    pairs = zip(request.questions, scored["logprobs"], strict=True)
    read, written = scored["input_tokens"], scored["output_tokens"]
    return {
        "object": "decision",
        "model": request.model,
        "answers": [answer(question, probabilities_of(logprobs)) for question, logprobs in pairs],
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": scored["cached_tokens"], "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        },
        "longview": {name: scored["receipt"][name] for name in ("frames", "timings", "warnings")},
    }


def probabilities_of(logprobs: Sequence[float]) -> list[float]:
    """Probabilities of answers against each other, which add up to 1."""
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    return [weight / sum(weights) for weight in weights]


def answer(question: Any, probabilities: Sequence[float]) -> dict[str, Any]:
    """A question's answer, in its type's form."""
    if isinstance(question, Predicate):
        return {"type": "predicate", "name": question.name, "probability": probabilities[0]}
    best = max(range(len(probabilities)), key=lambda number: probabilities[number])
    head = {"type": question.type, "name": question.name, "confidence": probabilities[best]}
    if isinstance(question, Choice):
        values = [choice.value for choice in question.choices]
        found = zip(values, probabilities, strict=True)
        shown = [{"value": value, "probability": probability} for value, probability in found]
        return {**head, "choice": values[best], "probabilities": shown}
    levels = [
        {"label": level.label, "value": value, "probability": probabilities[value]}
        for value, level in enumerate(question.levels)
    ]
    return {**head, "score": sum(each["value"] * each["probability"] for each in levels), "probabilities": levels}
