"""A line of a batch's file → a request in OpenAI's form."""

from __future__ import annotations

import json

import pytest
from serving import ROOT

from longview.requests import MediaOptions, SamplingParams
from longview.serve.batches.rows import CHAT, Rows, body_of_settings
from longview.serve.errors import APIError
from longview.serve.schema import ChatRequest

EXAMPLES = ROOT / "examples"
SHAPES, PAIR, CLIP = (f"file://{EXAMPLES / name}" for name in ("shapes.jpg", "pair.webp", "clip.mp4"))


def picture(url: str = SHAPES) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url) -> dict:
    return {"type": "video_url", "video_url": {"url": url}}


def text(text: str) -> dict:
    return {"type": "text", "text": text}


def rows_of(tmp_path, *rows, **more) -> Rows:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Rows(path, EXAMPLES, **more)


def user(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ('"What is it?"', [{"role": "user", "content": "What is it?"}]),
        ({"question": "What is it?", "system": "Be brief."}, [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]),
        ({"question": "What is it?", "image": "shapes.jpg"}, user(picture(), text("\nWhat is it?"))),
        ({"query": "Which?", "images": ["shapes.jpg", "pair.webp"]}, user(
            text("Image 1: "), picture(), text("\n"), text("Image 2: "), picture(PAIR), text("\n"), text("Which?"))),
        ({"question": "What?", "files": ["clip.mp4"]}, user(video(CLIP), text("\nWhat?"))),
        ({"question": "What?", "video": [["shapes.jpg", "shapes.jpg"]]}, user(video([SHAPES] * 2), text("\nWhat?"))),
        ({"question": "See <image> here", "image": "shapes.jpg"}, user(text("See "), picture(), text(" here"))),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "left out"}]},
         [{"role": "user", "content": "Hi"}]),
        ({"messages": user({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, text("What?"))},
         user(picture("https://example.org/a.png"), text("What?"))),
        ({"instruction": "What?", "output": "an answer, left out", "image": "shapes.jpg"},
         user(picture(), text("\nWhat?"))),
    ],
)  # fmt: skip
def test_the_simple_form_becomes_messages(tmp_path, row, messages):
    found = rows_of(tmp_path, row).row(0)
    assert (found.url, found.id, found.own_files) == (CHAT, "row-1", True)
    assert found.body == {"messages": messages}
    ChatRequest.model_validate({"model": "m", **found.body})


def test_fields_of_a_request_stand_beside_a_question(tmp_path):
    rows = rows_of(
        tmp_path,
        {"id": 7, "question": "?", "max_tokens": 5, "model": "own", "longview": {"frames": 4}, "category": "x"},
        ignore=["category"],
        settings=body_of_settings(SamplingParams(max_tokens=9, temperature=0.5), MediaOptions(frames=2, fps=None)),
    )
    assert rows.models == {"own"}
    rows.default_model = "theirs"
    assert (rows.ids, rows.row(0).body) == (
        ["7"],
        {
            "messages": [{"role": "user", "content": "?"}],
            "model": "own",
            "max_tokens": 5,
            "temperature": 0.5,
            "longview": {"frames": 4},
        },
    )


def test_openai_s_lines_are_taken_as_they_are_but_for_settings_that_they_leave_open(tmp_path):
    body = {"model": "gpt", "messages": user(text("?")), "max_completion_tokens": 4}
    rows = rows_of(
        tmp_path,
        {"custom_id": "a", "method": "POST", "url": CHAT, "body": body},
        {"custom_id": "b", "url": "/v1/responses", "body": {"model": "gpt", "input": "?"}},
        settings=body_of_settings(SamplingParams(max_tokens=9, stop=("x",)), MediaOptions()),
    )
    assert rows.row(0).body == {**body, "stop": ["x"]}
    assert not rows.row(0).own_files
    with pytest.raises(APIError, match="options of the command line"):
        rows.row(1)


def test_the_settings_of_the_command_line_are_fields_of_a_request():
    params = SamplingParams(top_k=3, logprobs=2, json_schema='{"type": "object"}', seed=1)
    body = body_of_settings(params, MediaOptions(select="uniform", frames=3), ocr=True)
    assert body == {
        "top_k": 3,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}},
        "longview": {"frames": 3, "select": "uniform", "ocr": True},
    }
    assert body_of_settings(SamplingParams(regex="[ab]"), MediaOptions()) == {"structured_outputs": {"regex": "[ab]"}}
    ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "?"}], **body})


@pytest.mark.parametrize(
    ("row", "param", "message"),
    [
        ("{", None, "not JSON"),
        ("[1]", None, "an object"),
        ({"question": "?", "colour": "red"}, None, "unknown column 'colour'"),
        ({"question": "?", "image": 3}, None, "no path"),
        ({"question": "?", "files": ["none.jpg"]}, None, "there is no file"),
        ({"question": "?", "files": "a.jpg"}, "files", "a list of names"),
        ({"question": "?", "audio": "a.wav"}, "audio", "no model here can read"),
        ({"caption": "a cat", "image": "shapes.jpg"}, None, "no question"),
        ({"messages": []}, None, "neither messages nor"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, None, "asks nothing"),
        ({"body": {}}, "custom_id", "custom_id is missing"),
        ({"custom_id": "a", "body": {}, "priority": 1}, "priority", "not known beside a body"),
        ({"custom_id": "a", "body": {}, "url": "/v1/embeddings"}, "url", "there are /v1/chat/completions"),
        ({"custom_id": "a", "body": {}, "method": "GET"}, "method", "a batch posts"),
        ({"custom_id": "a", "body": []}, "body", "an object"),
        ({"custom_id": "a", "body": {"stream": True}}, "body.stream", "does not stream"),
    ],
)
def test_what_is_no_request_is_told(tmp_path, row, param, message):
    rows = rows_of(tmp_path, row)
    with pytest.raises(APIError, match=message) as caught:
        rows.row(0)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_second_row_of_an_id_is_told_which_was_the_first(tmp_path):
    rows = rows_of(tmp_path, {"id": "a", "question": "?"}, {"question": "?"}, {"custom_id": "a", "body": {}})
    assert rows.ids == ["a", "row-2", "a"]
    rows.row(0)
    with pytest.raises(APIError, match="line 1 has the same id") as caught:
        rows.row(2)
    assert caught.value.code == "duplicate_custom_id"
