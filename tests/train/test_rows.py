"""A row of users' data in each of its spellings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longview.errors import RecipeError
from longview.messages import Message, image, video
from longview.train.rows import read_row

SWIFT = [
    '{"messages": [{"role": "user", "content": "浙江的省会在哪?"}, '
    '{"role": "assistant", "content": "浙江的省会在杭州。"}]}',
    '{"messages": [{"role": "user", "content": "<image><image>两张图片有什么区别"}, '
    '{"role": "assistant", "content": "前一张是小猫,后一张是小狗"}], "images": ["/xxx/x.jpg", "/xxx/x.png"]}',
    '{"messages": [{"role": "system", "content": "你是个有用无害的助手"}, '
    '{"role": "user", "content": "<image><image><image><image>视频中是什么"}, '
    '{"role": "assistant", "content": "视频中是一只小狗在草地上奔跑"}], '
    '"images": ["/xxx/xxx/1.jpg", "/xxx/xxx/2.jpg", "/xxx/xxx/3.jpg", "/xxx/xxx/4.jpg"]}',
]
"""The example lines of ms-swift's announcement for Ovis2, unchanged."""
HERE = Path("/data")
ASKED = Message.of("user", image("/data/a.jpg"), "\nWhat?")
TOLD = Message.of("assistant", "A cat.")


def read(row, **settings):
    return read_row(row, HERE, **settings)


def test_the_published_example_lines_load_unchanged():
    text, pictures, frames = (read(json.loads(line)).messages for line in SWIFT)
    assert text == (Message.of("user", "浙江的省会在哪?"), Message.of("assistant", "浙江的省会在杭州。"))
    assert pictures[0] == Message.of("user", image("/xxx/x.jpg"), image("/xxx/x.png"), "两张图片有什么区别")
    assert [message.role for message in frames] == ["system", "user", "assistant"]
    assert frames[1] == Message.of("user", *(image(f"/xxx/xxx/{n}.jpg") for n in (1, 2, 3, 4)), "视频中是什么")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}],
         "images": ["a.jpg"]},
        {"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                        {"from": "gpt", "value": "A cat."}]},
        {"image": {"bytes": None, "path": "a.jpg"}, "videos": [], "tools": None,
         "conversation": [{"human": "<image>\nWhat?", "assistant": "A cat."}]},
        {"image": "a.jpg", "query": "<image>\nWhat?", "response": "A cat.", "history": []},
        {"images": "a.jpg", "instruction": "<image>", "input": "What?", "output": "A cat."},
        {"messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}},
                                         {"type": "text", "text": "\nWhat?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]},
        {"messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "a.jpg"}},
                                         {"type": "text", "text": "\nWhat?"}]},
            {"role": "assistant", "content": "A cat."}]},
    ],
    ids=["ms-swift", "llava", "sharegpt", "query", "alpaca", "openai", "anthropic"],
)  # fmt: skip
def test_every_spelling_says_the_same(row):
    assert read(row).messages == (ASKED, TOLD)


def test_a_picture_in_bytes_stays_where_it_is():
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
    example = read({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]})
    assert example.media == [image("data:image/png;base64,AAAA")]
    assert read({"query": "What?", "response": "x", "image": "https://a.b/c.jpg"}).media == [image("https://a.b/c.jpg")]


def test_a_video_is_a_file_or_a_list_of_frames():
    row = {"query": "<video>What <video> then?", "response": "Rain.", "videos": ["film.mp4", ["1.jpg", "/2.jpg"]]}
    film, frames = video("/data/film.mp4"), video(["/data/1.jpg", "/2.jpg"])
    assert read(row).messages[0] == Message.of("user", film, "What ", frames, " then?")
    ovis = {"conversations": [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Rain."}]}
    assert read(ovis | {"video_frames": ["1.jpg", "2.jpg"]}).media == [video(["/data/1.jpg", "/data/2.jpg"])]
    assert read(ovis | {"video": "film.mp4"}).media == [film]


def test_media_without_a_tag_stand_in_front_of_the_first_question():
    row = {"query": "And now?", "response": "A dog.", "history": [["What?", "A cat."]], "images": ["a.jpg", "b.jpg"]}
    first, _, second, _ = read(row | {"system": "Be brief."}).messages[1:]
    assert first == Message.of("user", image("/data/a.jpg"), image("/data/b.jpg"), "What?")
    assert second == Message.of("user", "And now?")


def test_a_tag_in_an_answer_is_letters():
    example = read({"query": "How do I mark a picture?", "response": "Write <image>."})
    assert example.messages[-1] == Message.of("assistant", "Write <image>.")


def test_a_worse_answer_and_answers_that_are_not_learned():
    row = {"query": "What?", "response": "A cat.", "image": "a.jpg"}
    assert read(row | {"rejected_response": "A dog."}).rejected == Message.of("assistant", "A dog.")
    chosen = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
    worse = [chosen[0], {"role": "assistant", "content": "A dog."}]
    pair = read({"messages": chosen, "rejected_messages": worse, "image": "a.jpg"})
    assert pair.rejected == Message.of("assistant", "A dog.")
    turns = [chosen[0], chosen[1] | {"loss": False}, {"role": "user", "content": "And?"}, chosen[1] | {"loss": True}]
    assert read({"messages": turns, "image": "a.jpg"}).unlearned == {0}


PAIR = {"query": "What?", "response": "A cat."}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["What?"], "a row is an object"),
        ({}, "neither messages nor a query"),
        ({"query": "What?"}, "nor a response"),
        (PAIR | {"imagse": ["a.jpg"]}, "unknown column 'imagse'; the nearest known one is 'image'"),
        (PAIR | {"audios": ["a.wav"]}, "'audios' holds what cannot be learned"),
        (PAIR | {"answer": "A dog."}, "'answer' says again"),
        (PAIR | {"messages": [{"role": "user", "content": "x"}]}, "a column 'query' as well"),
        (PAIR | {"query": "<image><image>?", "images": ["a.jpg"]}, "holds 2 <image>, and the row 1 images"),
        (PAIR | {"query": "<image>?", "images": ["a.jpg", "b.jpg"]}, "holds 1 <image>, and the row 2 images"),
        (PAIR | {"query": "<image>?"}, "holds 1 <image>, and the row 0 images"),
        (PAIR | {"query": "<video>?", "images": ["a.jpg"]}, "holds 1 <video>, and the row 0 videos"),
        (PAIR | {"images": [7]}, "image 7 is no path"),
        (PAIR | {"images": [["a.jpg"]]}, "is no path"),
        (PAIR | {"rejected_response": "A cat."}, "is the chosen one"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last message is the user's"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "unknown key 'contents' in a message; .* 'content'"),
        ({"messages": [{"role": "user"}]}, "either content or value"),
        ({"messages": "hello"}, "a list of objects"),
        ({"messages": [{"role": "user", "content": "x", "loss": True}]}, "loss is True in the user's"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss": False}]},
         "no answer is to be learned"),
        ({"messages": [{"role": "assistant", "content": "x"}], "images": ["a.jpg"]}, "no message of the user's"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_add_up_is_refused(row, message):
    with pytest.raises(RecipeError, match=message):
        read(row)


def test_a_column_can_be_ignored_by_name():
    assert read(PAIR | {"source": "web", "rejected_response": "x"}, ignore=["source", "rejected_response"]) == read(
        PAIR
    )
