"""A row of users' data in each of its spellings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image

from longview.errors import RecipeError
from longview.messages import Message, image, video
from longview.train.data.rows import Example, as_caption, read_row

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
        ({"caption": "A cat."}, "a caption and no picture"),
        ({"caption": "<image>", "image": "a.jpg"}, "a caption is text"),
        ({"caption": "A cat.", "image": "a.jpg", "query": "What?"}, "caption and a column 'query' as well"),
        ({"caption": "A cat.", "image": "a.jpg", "rejected": "x"}, "caption and a column 'rejected_response'"),
        (PAIR | {"image": "a.jpg", "max_partition": 0}, "max_partition is 0"),
        (PAIR | {"image": {"bytes": None, "path": None}}, "image None is no path"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_add_up_is_refused(row, message):
    with pytest.raises(RecipeError, match=message):
        read(row)


def test_a_column_can_be_ignored_by_name():
    assert read(PAIR | {"source": "web", "rejected_response": "x"}, ignore=["source", "rejected_response"]) == read(
        PAIR
    )


def test_the_rows_of_trl_hold_prompts_and_blocks_that_name_no_picture():
    asked = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "\nWhat?"}]}]
    told = [{"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
    worse = [{"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}]
    assert read({"images": ["a.jpg"], "messages": asked + told}).messages == (ASKED, TOLD)
    assert read({"images": ["a.jpg"], "prompt": asked, "completion": told}).messages == (ASKED, TOLD)
    pair = read({"images": ["a.jpg"], "prompt": asked, "chosen": told, "rejected": worse})
    assert (pair.messages, pair.rejected) == ((ASKED, TOLD), Message.of("assistant", "A dog."))
    whole = read({"images": ["a.jpg"], "chosen": asked + told, "rejected": asked + worse})
    assert whole == pair
    flat = read({"image": "a.jpg", "question": "<image>\nWhat?", "chosen": "A cat.", "rejected": "A dog."})
    assert flat == pair


def test_pictures_are_taken_out_of_tables():
    inside = {"query": "What?", "response": "x", "image": {"bytes": b"png", "path": "a.png"}}
    assert read(inside).media == [image(b"png")]
    assert read(inside | {"image": {"bytes": None, "path": "a.png"}}).media == [image("/data/a.png")]
    picture = Image.new("RGB", (2, 2))
    assert read(inside | {"image": picture}).media == [image(picture)]
    assert read(inside | {"image": None, "videos": [{"bytes": b"mp4", "path": None}]}).media == [video(b"mp4")]


def test_a_caption_stands_right_behind_its_picture():
    row = {"caption": " A <image> cat. ", "image_path": "a.jpg", "max_partition": 9.0}
    example = read(row)
    assert example.plain
    assert example.max_partition == 9
    assert example.messages == (Message.of("user", image("/data/a.jpg")), Message.of("assistant", "A  cat."))
    around = read(row | {"max_partition": float("nan")}, caption_template="See <image>: ")
    assert around.messages[0] == Message.of("user", "See ", image("/data/a.jpg"), ": ")
    assert around.max_partition is None


def test_a_question_is_left_out_where_only_the_answer_is_learned():
    assert as_caption(read({"image": "a.jpg", "query": "What?", "response": "A cat."})) == Example(
        (Message.of("user", image("/data/a.jpg")), TOLD), plain=True
    )
    for row in (PAIR, PAIR | {"image": "a.jpg", "history": [["a", "b"]]}, PAIR | {"image": "a.jpg", "system": "x"}):
        with pytest.raises(RecipeError, match="template plain learns one answer about pictures"):
            as_caption(read(row))


def test_what_a_sample_shows_decides_its_kind_and_its_words_its_length():
    shows = [{}, {"image": "a.jpg"}, {"images": ["a.jpg", "b.jpg"]}, {"video": "a.mp4", "image": "a.jpg"}]
    examples = [read(PAIR | media) for media in shows]
    assert [example.kind for example in examples] == [None, "single", "several", "video"]
    rich = [dataclasses.replace(example, text_rich=True).kind for example in examples]
    assert rich == [None, "text", "text", "video"]
    assert [example.words for example in examples] == [3, 4, 5, 5]


def test_the_scale_of_a_loss_is_all_or_nothing():
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "loss_scale": 0.0}] * 2
    turns[-1] = turns[-1] | {"loss_scale": 1}
    assert read({"messages": turns}).unlearned == {0}
    with pytest.raises(RecipeError, match=r"loss_scale is 0\.5"):
        read({"messages": [turns[0], turns[1] | {"loss_scale": 0.5}]})


def test_pictures_are_found_where_the_collections_keep_them_today(tmp_path):
    for name in ("ocr_vqa/1.png", "vg/images/2.jpg", "vg/VG_100K/3.jpg", "ocr_vqa/4.jpg", "ocr_vqa/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = ["ocr_vqa/1.jpg", "vg/VG_100K_2/2.jpg", "vg/VG_100K/3.jpg", "ocr_vqa/4.jpg", "ocr_vqa/5.jpg"]
    found = ["ocr_vqa/1.png", "vg/images/2.jpg", "vg/VG_100K/3.jpg", "ocr_vqa/4.jpg", "ocr_vqa/5.jpg"]
    example = read_row(PAIR | {"images": given}, tmp_path)
    assert example.media == [image(str(tmp_path / name)) for name in found]
