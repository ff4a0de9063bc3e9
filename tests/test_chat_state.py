"""A conversation without a terminal: what is asked next, and how it is kept."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

import longview
from longview.chat import Chat, load_messages, save_messages
from longview.errors import RequestError
from longview.messages import Message


def test_a_question_shows_what_was_added_since_the_last_answer():
    chat = Chat("Be brief.")
    chat.add([longview.image("a.jpg")])
    asked = chat.ask("What is this?")
    assert [message.role for message in asked] == ["system", "user"]
    assert [part.source for part in asked[-1].media] == ["a.jpg"]
    assert chat.ask("What is this?") == asked, "nothing has been answered"
    chat.commit(asked, "a cat")
    following = chat.ask("And this?")
    assert [message.role for message in following] == ["system", "user", "assistant", "user"]
    assert not following[-1].media
    assert [part.source for part in chat.media] == ["a.jpg"]
    chat.reset()
    assert chat.messages == [Message.of("system", "Be brief.")]


def test_a_question_after_a_failure_is_asked_when_it_is_sent_again():
    chat = Chat()
    chat.failed = "b.jpg was not added"
    with pytest.raises(RequestError, match=r"b\.jpg was not added, so the question was not asked"):
        chat.ask("What is this?")
    assert chat.ask("What is this?")[-1].text == "What is this?"


def test_what_is_added_after_a_failure_makes_up_for_it():
    chat = Chat()
    chat.failed = "b.jpg was not added"
    chat.add([longview.image("c.jpg")])
    assert len(chat.ask("What is this?")[-1].media) == 1


def test_messages_are_the_same_after_saving_and_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (2, 2)).save(name)
    messages = [
        Message.of("system", "Sei kurz — bitte."),
        longview.ask("What?", longview.image("a.jpg"), longview.image(b"\x00\xff"), longview.video(["a.jpg", "b.jpg"])),
        Message.of("assistant", "a cat"),
    ]
    save_messages(messages, tmp_path / "talk.json")
    monkeypatch.chdir("/")  # paths are absolute
    loaded = load_messages(tmp_path / "talk.json")
    assert [message.text for message in loaded] == [message.text for message in messages]
    first, second, third = (part.source for part in loaded[1].media)
    assert first == str(tmp_path / "a.jpg")
    assert second == "data:image/*;base64,AP8="
    assert third == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    save_messages(loaded, tmp_path / "again.json")
    assert load_messages(tmp_path / "again.json") == loaded


def test_addresses_stay_as_they_are(tmp_path):
    url = "https://example.com/a.jpg?size=large"
    save_messages([longview.ask("What?", longview.image(url)), Message.of("assistant", "a cat")], tmp_path / "t.json")
    assert load_messages(tmp_path / "t.json")[0].media[0].source == url


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "no list of messages"),
        ("[1]", "no list of messages"),
        ("[]", "does not end with an answer"),
        ('[{"role": "user", "content": "What?"}]', "does not end with an answer"),
        ('[{"role": "cat", "content": "What?"}]', "unknown role 'cat'"),
        ('[{"role": "assistant", "content": [{"type": "image", "path": "/no/such.jpg"}]}]', "shows /no/such.jpg"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(tmp_path, text, complaint):
    path = tmp_path / "talk.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=complaint):
        load_messages(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "talk.json"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RequestError, match="No space left on device"):
        save_messages([Message.of("assistant", "a cat")], path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["talk.json"]


def test_a_decoded_picture_cannot_be_saved(tmp_path):
    with pytest.raises(RequestError, match="Image cannot be saved"):
        save_messages([longview.ask("What?", longview.image(Image.new("RGB", (2, 2))))], tmp_path / "talk.json")
    assert not list(tmp_path.iterdir())


def test_a_saved_file_is_json_for_people(tmp_path):
    save_messages([Message.of("assistant", "für")], tmp_path / "talk.json")
    assert "für" in (tmp_path / "talk.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))[0]["role"] == "assistant"
