"""n, stop, seed, logprobs, forms of an answer: by OpenAI's client."""

from __future__ import annotations

import json

import openai
import pytest
from serving import clip, shapes

VARIED = {"temperature": 1.0, "seed": 3, "max_tokens": 12}


def test_n_answers_come_with_seeds_of_their_own(client):
    reply = client.chat.completions.create(model="demo", messages=clip(), n=3, **VARIED)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    one = client.chat.completions.create(model="demo", messages=clip(), **{**VARIED, "seed": 5})
    assert reply.choices[2].message.content == one.choices[0].message.content
    assert reply.usage.completion_tokens > one.usage.completion_tokens


def test_a_stream_of_several_answers_tells_them_apart(client):
    whole = client.chat.completions.create(model="demo", messages=clip(), n=2, **VARIED)
    texts, ends = ["", ""], []
    for chunk in client.chat.completions.create(model="demo", messages=clip(), n=2, stream=True, **VARIED):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.index)
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1]


def test_a_stop_text_ends_the_answer_before_it(client):
    reply = client.chat.completions.create(model="demo", messages=clip(), stop=["moves"])
    assert reply.choices[0].message.content == "a large red triangle "
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_answer_s_tokens(client, stream):
    options = {"logprobs": True, "top_logprobs": 2, "stream": stream}
    reply = client.chat.completions.create(model="demo", messages=shapes(), **options)
    found = [chunk.choices[0].logprobs for chunk in reply] if stream else [reply.choices[0].logprobs]
    content = [token for logprobs in found if logprobs is not None for token in logprobs.content]
    assert "".join(token.token for token in content).startswith("blue")
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.logprob  # at temperature 0 the likeliest is taken
        assert token.bytes == list(token.token.encode())


SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue", "green"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


def test_an_answer_fits_its_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "star", "strict": True, "schema": SCHEMA}}
    reply = client.chat.completions.create(model="demo", messages=shapes(), response_format=form)
    assert set(json.loads(reply.choices[0].message.content)) == {"colour", "sure"}
    assert reply.choices[0].finish_reason == "stop"


def test_json_object_gives_an_object(client):
    options = {"response_format": {"type": "json_object"}, "max_tokens": 200}
    reply = client.chat.completions.create(model="demo", messages=shapes(), **options)
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)
    assert reply.choices[0].message.content.startswith("{")


def test_a_choice_of_answers_is_held(client):
    forms = {"structured_outputs": {"choice": ["red star", "blue star"]}}
    reply = client.chat.completions.create(model="demo", messages=shapes(), extra_body=forms)
    assert reply.choices[0].message.content == "blue star"


def test_tools_are_refused_by_name(client):
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=shapes(), tools=[tool])
    assert caught.value.param == "tools"
