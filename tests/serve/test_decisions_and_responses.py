"""`/v1/decisions`, `/v1/responses` and the preflight, by OpenAI's client."""

from __future__ import annotations

import json
import urllib.request

import openai
import pytest
from serving import ROOT, data_uri, shapes

PICTURE = {"type": "input_image", "image_url": data_uri("shapes.jpg")}
INPUT = [{"role": "user", "content": [PICTURE]}]


def decide(client: openai.OpenAI, *questions: dict, given=INPUT):
    return client.decisions.create(model="demo", input=given, questions=list(questions))


def test_each_type_of_question_has_its_form_of_answer(client):
    reply = decide(
        client,
        {"type": "predicate", "name": "star", "instructions": "Is there a blue star?"},
        {
            "type": "choice",
            "name": "colour",
            "instructions": "What colour is the star?",
            "choices": [{"value": value} for value in ("red", "blue", "green")],
        },
        {
            "type": "score",
            "instructions": "How many shapes are there?",
            "levels": [{"label": label} for label in ("1", "2", "3", "4")],
        },
    )
    predicate, choice, score = reply.answers
    assert (predicate.type, predicate.name) == ("predicate", "star")
    assert 0.5 < predicate.probability <= 1
    assert (choice.name, choice.choice) == ("colour", "blue")
    assert sum(each.probability for each in choice.probabilities) == pytest.approx(1)
    assert choice.confidence == max(each.probability for each in choice.probabilities)
    assert [each.value for each in score.probabilities] == [0, 1, 2, 3]
    assert score.score == pytest.approx(sum(each.value * each.probability for each in score.probabilities))
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def test_the_other_answer_has_the_other_probability(client):
    is_blue, is_red = (
        decide(client, {"type": "predicate", "instructions": f"Is there a {colour} star?"}).answers[0].probability
        for colour in ("blue", "red")
    )
    assert is_blue > 0.5 > is_red


def test_a_question_alone_and_among_others_is_answered_the_same(client):
    questions = [
        {
            "type": "choice",
            "instructions": f"What colour is the {shape}?",
            "choices": [{"value": "red"}, {"value": "blue"}],
        }
        for shape in ("star", "square", "circle")
    ]
    together = decide(client, *questions).answers
    for question, answer in zip(questions, together, strict=True):
        (alone,) = decide(client, question).answers
        assert alone.probabilities[0].probability == pytest.approx(answer.probabilities[0].probability, abs=1e-4)


@pytest.mark.parametrize(
    ("question", "param"),
    [
        ({"type": "choice", "instructions": "?", "choices": [{"value": "a"}]}, "questions[0].choices"),
        ({"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "a"}]}, "questions[0].choices"),
        ({"type": "smell", "instructions": "?"}, "questions[0]"),
        ({"type": "predicate"}, "questions[0].instructions"),
    ],
)
def test_a_question_that_is_none_is_named(client, question, param):
    with pytest.raises(openai.BadRequestError) as caught:
        decide(client, question)
    assert caught.value.param == param


def test_a_choice_may_be_true_or_false(client):
    choices = [{"value": True, "description": "there is one"}, {"value": False}]
    (answer,) = decide(client, {"type": "choice", "instructions": "A star?", "choices": choices}).answers
    assert {each.value for each in answer.probabilities} == {True, False}


def test_a_response_says_what_a_chat_says(client):
    text = {"type": "input_text", "text": "What colour is the star?"}
    given = [{"role": "user", "content": [PICTURE, text]}]
    response = client.responses.create(model="demo", input=given)
    assert (response.output_text, response.status) == ("blue", "completed")
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    chat = client.chat.completions.create(model="demo", messages=shapes())
    assert response.usage.input_tokens == chat.usage.prompt_tokens


def test_a_response_streams_its_events_in_order(client):
    text = {"type": "input_text", "text": "What colour is the star?"}
    given = [{"role": "user", "content": [PICTURE, text]}]
    events = list(client.responses.create(model="demo", input=given, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "blue"
    assert events[-1].response.output_text == "blue"


def test_a_response_that_is_cut_is_incomplete(client):
    response = client.responses.create(model="demo", input="Hello", instructions="Be brief.", max_output_tokens=1)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_file_may_be_named_in_a_response(client):
    stored = client.files.create(file=ROOT / "examples" / "shapes.jpg", purpose="vision")
    parts = [{"type": "input_image", "file_id": stored.id}, {"type": "input_text", "text": "What colour is the star?"}]
    assert client.responses.create(model="demo", input=[{"role": "user", "content": parts}]).output_text == "blue"


@pytest.mark.parametrize(
    "more", [{"previous_response_id": "resp_1"}, {"store": True}, {"tools": [{"type": "web_search"}]}]
)
def test_what_needs_a_memory_or_tools_is_refused(client, more):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="demo", input="Hello", **more)
    assert caught.value.param in more


def test_a_preflight_says_what_an_answer_would_take(server, client):
    body = json.dumps({"model": "demo", "messages": shapes()}).encode()
    address = f"{server.address}/v1/chat/completions/render"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    found = json.loads(urllib.request.urlopen(request, timeout=60).read())
    usage = client.chat.completions.create(model="demo", messages=shapes()).usage
    assert found["usage"]["prompt_tokens"] == usage.prompt_tokens
    assert found["usage"]["image_tokens"] == usage.prompt_tokens_details.image_tokens
    assert found["longview"]["frames"][0]["width"] > 0
    assert 0 < found["max_completion_tokens"] <= found["context_length"]
