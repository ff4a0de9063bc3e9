"""What programs send, as their sources build it: each is answered with 200."""

from __future__ import annotations

import json
import urllib.request

import pytest
from serving import ROOT, data_uri, running

PICTURE = data_uri("shapes.jpg")
QUESTION = {"type": "text", "text": "What colour is the star?"}


def image(**more) -> dict:
    return {"type": "image_url", "image_url": {"url": PICTURE, **more}}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


PAYLOADS = {
    "lmms-eval": {"messages": [user(image(), QUESTION)], "model": "demo", "max_tokens": 1024, "temperature": 0},
    "lmms-eval, for newer models": {
        "messages": [user(image(), QUESTION)],
        "model": "demo",
        "response_format": {"type": "text"},
        "max_completion_tokens": 5000,
    },
    "lmms-eval, with a video": {
        "messages": [user({"type": "video_url", "video_url": {"url": "FILM"}}, QUESTION)],
        "model": "demo",
        "max_tokens": 64,
        "temperature": 0,
        "media_io_kwargs": {"video": {"num_frames": 8}},
    },
    "a client of Qwen-VL": {
        "messages": [user({"type": "video_url", "video_url": {"url": data_uri("clip.mp4", "video/mp4")}}, QUESTION)],
        "model": "demo",
        "media_io_kwargs": {"video": {"fps": 1}},
        "mm_processor_kwargs": {"do_sample_frames": False},
    },
    "evalscope": {
        "model": "demo",
        "messages": [{"role": "system", "content": "Answer briefly."}, user(image(detail="auto"), QUESTION)],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 2048,
        "temperature": 0.0,
        "top_p": 1.0,
        "n": 1,
        "seed": 42,
    },
    "VLMEvalKit": {
        "model": "demo",
        "messages": [user(image(detail="low"), QUESTION)],
        "n": 1,
        "temperature": 0,
        "max_tokens": 2048,
    },
    "LibreChat": {
        "model": "demo",
        "user": "64b7c0d5",
        "stream": True,
        "temperature": 1,
        "top_p": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "messages": [user(QUESTION, image(detail="auto"))],
    },
    "Open WebUI": {
        "stream": True,
        "model": "demo",
        "messages": [user(QUESTION, image()), {"role": "assistant", "content": "blue"}, user(QUESTION)],
        "stream_options": {"include_usage": True},
    },
}


@pytest.fixture(scope="module")
def open_server():
    with running("--media-root", str(ROOT / "examples")) as started:
        yield started


@pytest.mark.parametrize("name", PAYLOADS)
def test_what_a_program_sends_is_answered(open_server, name):
    text = json.dumps(PAYLOADS[name]).replace('"FILM"', json.dumps((ROOT / "examples" / "clip.mp4").as_uri()))
    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-anything"}
    request = urllib.request.Request(f"{open_server.address}/v1/chat/completions", text.encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as reply:
        assert reply.status == 200
        body = reply.read().decode()
    if PAYLOADS[name].get("stream"):
        assert body.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(body)["choices"][0]["message"]["content"]
