"""Pictures and videos in every form in which clients send them; options of frames; details."""

from __future__ import annotations

import base64
import io

import openai
import pytest
from PIL import Image
from serving import ROOT, clip, data_uri, running, shapes

import longview
from longview.messages import Part
from longview.serve.jobs import form_of, sampling_of
from longview.serve.schema import ChatRequest, neutral

PICTURE, VIDEO = data_uri("shapes.jpg"), data_uri("clip.mp4", "video/mp4")
ANSWER = "a large red triangle moves right"


def frames(count: int) -> list[str]:
    """The first frames of examples/clip.mp4, each as a picture."""
    medium = longview.media.open_medium(longview.video(str(ROOT / "examples" / "clip.mp4")))
    found = []
    for frame in list(medium.read())[:count]:
        file = io.BytesIO()
        frame.image.save(file, "JPEG", quality=95)
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def ask(client: openai.OpenAI, *parts: dict, question: str = "What happens?", **more):
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return client.chat.completions.create(model="demo", messages=messages, **more)


def used(reply) -> list[dict]:
    return reply.model_extra["longview"]["frames"]


PICTURES = {
    "url": {"type": "image_url", "image_url": {"url": PICTURE}},
    "short": {"type": "image_url", "image_url": PICTURE},
    "no type": {"image_url": PICTURE},
    "file": {"type": "file", "file": {"file_data": PICTURE, "filename": "shapes.jpg"}},
    "file in base64": {"type": "file", "file": {"file_data": PICTURE.partition(",")[2]}},
}
VIDEOS = {
    "url": {"type": "video_url", "video_url": {"url": VIDEO}},
    "short": {"type": "video_url", "video_url": VIDEO},
    "no type": {"video_url": VIDEO},
    "input_video": {"type": "input_video", "input_video": {"data": VIDEO.partition(",")[2], "format": "mp4"}},
    "input_video by url": {"type": "input_video", "input_video": {"url": VIDEO}},
    "file": {"type": "file", "file": {"file_data": VIDEO, "filename": "clip.mp4"}},
}


@pytest.mark.parametrize("form", PICTURES)
def test_a_picture_is_found_in_every_form(client, form):
    assert ask(client, PICTURES[form], question="What colour is the star?").choices[0].message.content == "blue"


@pytest.mark.parametrize("form", VIDEOS)
def test_a_video_is_found_in_every_form(client, form):
    assert ask(client, VIDEOS[form]).choices[0].message.content == ANSWER


def test_a_list_of_frames_is_a_video(client):
    pictures = frames(4)
    urls = [f"data:image/jpeg;base64,{picture}" for picture in pictures]
    forms = [
        {"type": "video", "video": urls},
        {"type": "video_url", "video_url": {"url": urls}},
        {"type": "video_url", "video_url": f"data:video/jpeg;base64,{','.join(pictures)}"},
    ]
    replies = [ask(client, form) for form in forms]
    assert [len(used(reply)) for reply in replies] == [4, 4, 4]
    assert len({reply.choices[0].message.content for reply in replies}) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"longview": {"frames": 3}},
        {"media_io_kwargs": {"video": {"num_frames": 3}}},
        {"mm_processor_kwargs": {"num_frames": 3}},
        {"longview": {"frames": 3}, "media_io_kwargs": {"video": {"num_frames": 3}}},
    ],
)
def test_frames_are_counted_in_every_client_s_words(client, options):
    assert len(used(ask(client, VIDEOS["url"], extra_body=options))) == 3


def test_a_video_may_have_options_of_its_own(client):
    two = [{"type": "video_url", "video_url": {"url": VIDEO, "max_frames": count}} for count in (2, 5)]
    reply = ask(client, *two)
    assert [sum(frame["medium"] == medium for frame in used(reply)) for medium in (0, 1)] == [2, 5]
    by_rate = ask(client, {"type": "video_url", "video_url": {"url": VIDEO, "fps": 2}})
    seconds = [frame["seconds"] for frame in used(by_rate)]
    assert seconds[1] - seconds[0] == pytest.approx(0.5, abs=0.05)


def test_frames_may_be_chosen_by_the_question_or_cut_to_a_clip(client):
    reply = ask(client, VIDEOS["url"], extra_body={"longview": {"select": "mdp3", "frames": 2}})
    assert len(used(reply)) == 2
    cut = ask(client, VIDEOS["url"], extra_body={"longview": {"start": 1.0, "end": 1.5}})
    assert all(0.9 <= frame["seconds"] < 1.5 for frame in used(cut))


def test_several_pictures_are_numbered_in_the_receipt(client):
    reply = ask(client, PICTURES["url"], PICTURES["file"], question="What is in both?")
    assert [frame["medium"] for frame in used(reply)] == [0, 1]
    assert used(reply)[1]["name"] == "shapes.jpg"


def test_a_receipt_may_be_left_out(client):
    reply = ask(client, PICTURES["url"], extra_body={"longview": {"receipt": False}})
    assert reply.model_extra == {}


def test_files_below_one_folder_may_be_opened(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a film.mp4").write_bytes((ROOT / "examples" / "clip.mp4").read_bytes())
    (tmp_path / "open" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "secret.mp4").write_bytes((ROOT / "examples" / "clip.mp4").read_bytes())
    with running("--media-root", str(tmp_path / "open")) as server:
        client = server.client()
        address = f"file://{tmp_path}/open/a%20film.mp4"
        assert ask(client, {"type": "video_url", "video_url": {"url": address}}).choices[0].message.content == ANSWER
        for path in (f"{tmp_path}/secret.mp4", f"{tmp_path}/open/../secret.mp4", f"{tmp_path}/open/link.mp4"):
            for address in (f"file://{path}", path):
                with pytest.raises(openai.BadRequestError):
                    ask(client, {"type": "video_url", "video_url": {"url": address}})


@pytest.mark.parametrize(("model", "low", "high"), [("demo-owl3", 1, 3), ("demo-ovis2", 1, 2)])
def test_detail_decides_into_how_many_crops_a_picture_is_cut(model, low, high):
    engine = longview.load(model)
    wide = Image.new("RGB", (900, 300), "white")
    crops = {}
    for detail in ("low", "high", "original", "auto"):
        parts = [Part("image", source=wide, detail=detail), Part("text", text="What is this?")]
        message = longview.Message("user", tuple(parts))
        crops[detail] = engine.answer([message], max_tokens=1).receipt.frames[0].crops
    assert crops["low"] == low
    assert crops["high"] == crops["original"] >= high


def test_mgm_says_that_detail_changes_nothing():
    message = longview.Message("user", (Part("image", source=Image.new("RGB", (90, 90)), detail="low"),))
    receipt = longview.load("demo-mgm").answer([message], max_tokens=1).receipt
    assert any("detail 'low' changes nothing" in warning for warning in receipt.warnings)


def parsed(**changes) -> ChatRequest:
    return ChatRequest.model_validate(neutral({"model": "demo", "messages": shapes(), **changes}))


def test_what_asks_for_nothing_is_left_out():
    nothing = {"tools": [], "tool_choice": "auto", "logit_bias": {}, "user": "me", "metadata": {"a": "b"}, "top_k": -1}
    assert sampling_of(parsed(**nothing, store=False, seed=None)) == {"top_k": 0}


def test_names_of_openai_become_those_of_the_settings():
    asked = parsed(max_completion_tokens=7, logprobs=True, top_logprobs=3, stop="x", temperature=1)
    assert sampling_of(asked) == {"max_tokens": 7, "logprobs": 3, "stop": ("x",), "temperature": 1}
    assert form_of(parsed(response_format={"type": "json_object"})) == {"json_schema": '{"type": "object"}'}
    assert form_of(parsed(structured_outputs={"choice": ["a.b", "c"]})) == {"regex": r"a\.b|c"}
    assert form_of(parsed(response_format={"type": "text"})) == {}


def test_clip_needs_no_options(client):
    assert client.chat.completions.create(model="demo", messages=clip()).choices[0].message.content == ANSWER


def test_each_video_may_have_frames_of_its_own(client):
    first = {**VIDEOS["url"], "longview": {"indices": [4, 20]}}
    second = {**VIDEOS["file"], "longview": {"select": "uniform", "frames": 1}}
    reply = ask(client, first, second, VIDEOS["short"], extra_body={"longview": {"frames": 3}})
    assert [(frame["medium"], frame["index"]) for frame in used(reply)][:3] == [(0, 4), (0, 20), (1, 16)]
    assert len(used(reply)) == 6


@pytest.mark.parametrize(
    ("part", "own", "complaint"),
    [
        (VIDEOS["url"], {"indices": [400]}, "frame 400"),
        (VIDEOS["url"], {"indices": [-1]}, "whole numbers from 0 up"),
        (VIDEOS["url"], {"indices": [1], "frames": 2}, "frames means nothing"),
        (PICTURES["file"], {"indices": [0]}, "a picture has no frames"),
    ],
)
def test_frames_of_one_video_that_cannot_be_used_are_named(client, part, own, complaint):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, {**part, "longview": own})
    assert complaint in caught.value.body["message"]
