"""`/v1/chat/completions` by OpenAI's own client."""

from __future__ import annotations

import openai
import pytest
from serving import clip, shapes

import longview


@pytest.fixture(scope="session")
def engine():
    return longview.load("demo")


def test_a_picture_is_answered_as_the_engine_answers(client, engine):
    completion = client.chat.completions.create(model="demo", messages=shapes())
    (choice,) = completion.choices
    assert choice.message.content == engine.answer(shapes()).text == "blue"
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert completion.model == "demo"
    assert completion.object == "chat.completion"


def test_a_stream_joined_is_the_whole_answer(client):
    whole = client.chat.completions.create(model="demo", messages=clip()).choices[0].message.content
    chunks = list(client.chat.completions.create(model="demo", messages=clip(), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_comes_in_a_last_chunk_where_it_is_asked_for(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(model="demo", messages=shapes(), **options)
    assert last.choices == []
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks)


def test_a_reply_carries_a_receipt_of_its_frames(client, engine):
    completion = client.chat.completions.create(model="demo", messages=clip())
    expected = engine.answer(clip()).receipt
    receipt = completion.model_extra["longview"]
    assert [frame["index"] for frame in receipt["frames"]] == [frame.index for frame in expected.frames]
    assert [frame["seconds"] for frame in receipt["frames"]] == [frame.seconds for frame in expected.frames]
    usage = completion.usage
    assert usage.prompt_tokens == usage.prompt_tokens_details.text_tokens == expected.usage.prompt_tokens
    assert usage.prompt_tokens_details.image_tokens == expected.usage.visual_tokens > 0


def test_evidence_comes_where_it_is_asked_for(client, engine):
    asked = {"extra_body": {"longview": {"return_evidence": True}}}
    completion = client.chat.completions.create(model="demo", messages=clip(), **asked)
    expected = engine.answer(clip(), evidence=True).evidence.as_dict()
    found = completion.model_extra["longview"]
    assert found["frames"]
    assert found["evidence"]["tokens"] == expected["tokens"]
    assert [each["shares"] for each in found["evidence"]["pictures"]] == [
        pytest.approx(each["shares"], abs=2e-3) for each in expected["pictures"]
    ]
    *chunks, last = client.chat.completions.create(model="demo", messages=clip(), stream=True, **asked)
    assert last.model_extra["longview"]["evidence"]["tokens"] == expected["tokens"]
    assert not any("evidence" in chunk.model_extra.get("longview", {}) for chunk in chunks)
    several = {"extra_body": {"longview": {"return_evidence": True, "receipt": False}}}
    several = client.chat.completions.create(model="demo", messages=shapes(), n=2, **several)
    assert set(several.model_extra["longview"]) == {"evidence"}
    assert len(several.model_extra["longview"]["evidence"]) == 2
    response = client.responses.create(model="demo", input="Hello?", **asked)
    assert response.model_extra["longview"]["evidence"]["pictures"] == []
    without = client.chat.completions.create(model="demo", messages=shapes())
    assert "evidence" not in without.model_extra["longview"]


def test_an_unknown_model_is_told_with_the_nearest(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="demmo", messages=shapes())
    assert caught.value.param == "model"
    assert caught.value.code == "model_not_found"
    assert "did you mean 'demo'?" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_is_none_is_refused_with_its_own_status(client, stream):
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    ]
    with pytest.raises(openai.BadRequestError, match="expected JPEG, PNG"):
        client.chat.completions.create(model="demo", messages=messages, stream=stream)


def test_an_answer_cut_at_its_limit_says_so(client):
    for names in ("max_tokens", "max_completion_tokens"):
        completion = client.chat.completions.create(model="demo", messages=clip(), **{names: 2})
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 2


def test_models_are_listed_with_what_they_take(client):
    (model,) = client.models.list().data
    assert model.id == client.models.retrieve("demo").id == "demo"
    assert model.model_extra["family"] == "owl3"
    assert model.model_extra["architecture"]["input_modalities"] == ["text", "image", "video"]
    assert model.model_extra["context_length"] > 100
