"""Constrained decoding: answers match their grammar, whatever the weights."""

from __future__ import annotations

import json
import re
import sys

import pytest
from samples import noise

import longview
from longview.engine import Engine
from longview.errors import MissingExtraError, RequestError

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(*tiny)


def test_an_answer_matches_its_regular_expression_and_ends_where_it_is_complete(engine):
    answer = engine.answer("Which?", regex="(yes|no), [0-9]{3}", temperature=1.0, seed=1, max_tokens=40)
    assert re.fullmatch("(yes|no), [0-9]{3}", answer.text)
    assert answer.finish_reason == "stop"


def test_an_answer_is_json_of_its_schema_beside_unconstrained_ones(engine):
    question = [longview.ask("What?", longview.image(noise(1)))]
    free = engine.answer(question, max_tokens=10)
    streams = [engine.stream(question, json_schema=SCHEMA, temperature=1.0, seed=2, max_tokens=200)]
    streams.append(engine.stream(question, max_tokens=10))
    found = ["", ""]
    while streams[0] or streams[1]:
        for number, stream in enumerate(streams):
            piece = next(stream, None) if stream else None
            if piece is None:
                streams[number] = None
            else:
                found[number] += piece.text
    parsed = json.loads(found[0])
    assert parsed["colour"] in ("red", "blue")
    assert 0 <= parsed["count"] <= 99
    assert found[1] == free.text


def test_the_log_probabilities_of_a_forced_token_are_the_models(engine):
    answer = engine.answer("Which?", regex="z", logprobs=1, max_tokens=4)
    first = answer.logprobs[0]
    assert answer.text == "z"
    assert first.logprob <= first.top_logprobs[0].logprob


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"regex": "(unclosed"}, "regex '(unclosed' cannot be followed"),
        ({"json_schema": "{"}, "json_schema '{' is no JSON"),
        ({"json_schema": {"type": "no such type"}}, "cannot be followed"),
    ],
)
def test_a_malformed_grammar_is_refused(engine, settings, complaint):
    with pytest.raises(RequestError, match=re.escape(complaint)):
        engine.answer("Which?", **settings)


def test_a_missing_library_says_what_to_install(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"llguidance, which is not installed: pip install '?llguidance"):
        engine.answer("Which?", regex="a")
