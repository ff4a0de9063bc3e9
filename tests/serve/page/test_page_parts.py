"""The parts of the page that need no browser: requests, settings, what the browser keeps, saved files."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from types import SimpleNamespace

import pytest
from PIL import Image
from serving import ROOT

from longview.requests import Limits, MediaOptions, SamplingParams
from longview.serve.chat import Completion
from longview.serve.errors import APIError
from longview.serve.files import FileStore
from longview.serve.page import saved, shown
from longview.serve.page.asking import Asking, fix_seed
from longview.serve.page.chat import messages_of, turn_of
from longview.serve.page.components import declared
from longview.serve.page.controls import drawing, setting_of, settings_given, shown_value
from longview.serve.page.conversation import Answer, Conversation, Shown, Turn, request_of
from longview.serve.page.evidence import MOST_KEPT, EvidencePages
from longview.serve.page.store import MAX_BYTES, Store
from longview.serve.settings import ServerOptions
from longview.settings import settings_of

CLIP = Shown(file="file-1", name="clip.mp4", kind="video")
PICTURE = Shown(file="file-2", name="shapes.jpg", kind="image")


def conversation(*turns: Turn, **more) -> Conversation:
    return Conversation(id="1", models=["a"], turns=list(turns), **more)


def answered(text: str, *media: Shown, said: str = "yes", **settings) -> Turn:
    return Turn(text=text, shown=list(media), settings=settings, answers={"a": Answer(text=said, ended="stop")})


# ── requests ──


def test_a_turn_becomes_the_request_that_a_client_would_send():
    chosen = CLIP.model_copy(update={"chosen": {"a": [1, 5], "b": [2]}})
    asked = request_of(
        conversation(
            answered("What?", PICTURE),
            Turn(text="And?", shown=[chosen], settings={"temperature": 0.5, "frames": 4, "ocr": True, "regex": "a+"}),
            system="Be brief.",
        ),
        1,
        "a",
    )
    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "user"]
    picture, text = asked.messages[1].content
    assert (picture.file.file_id, picture.longview, text.text) == ("file-2", None, "\nWhat?")
    assert asked.messages[3].content[0].longview.indices == (1, 5)
    assert (asked.temperature, asked.longview.frames, asked.longview.ocr) == (0.5, 4, True)
    assert asked.structured_outputs.regex == "a+"


def test_what_failed_is_not_told_again_and_its_media_are_not_counted():
    failed = Turn(text="What?", shown=[CLIP], answers={"a": Answer(ended="failed", error="broken")})
    talk = conversation(failed, answered("And?", PICTURE, said="no"), Turn(text="Why?"))
    assert [message.role for message in request_of(talk, 2, "a").messages] == ["user", "assistant", "user"]
    assert talk.media(2, "a") == [PICTURE]
    assert talk.media(1, "b") == [PICTURE]  # another model is told what this one said


def test_a_sampler_by_content_is_left_on_without_a_video():
    talk = conversation(Turn(text="What?", shown=[PICTURE], settings={"select": "mdp3", "candidates": 9, "frames": 4}))
    assert request_of(talk, 0, "a").longview.select is None


def test_settings_that_contradict_each_other_are_refused_as_in_any_request():
    with pytest.raises(APIError) as caught:
        request_of(conversation(Turn(text="What?", settings={"temperature": "hot"})), 0, "a")
    assert caught.value.param == "temperature"


def test_an_answer_at_random_has_a_seed_so_that_it_can_be_replayed():
    plain, random, fixed = {}, {"temperature": 1.0}, {"temperature": 1.0, "seed": 3}
    for settings in (plain, random, fixed):
        fix_seed(settings)
    assert plain == {}
    assert random["seed"] >= 0
    assert fixed["seed"] == 3


# ── settings ──


def test_every_setting_is_on_the_page_but_for_two():
    every = {*settings_of(MediaOptions), *settings_of(SamplingParams)}
    assert every - set(declared()) == {"logprobs", "indices"}


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("frames", " 4 ", 4),
        ("frames", "", None),
        ("frames", "many", "many"),
        ("fps", "0.5", 0.5),
        ("temperature", 0, None),
        ("temperature", 1, 1.0),
        ("select", "", None),
        ("select", "mdp3", "mdp3"),
        ("stop", "a\nb\n", ["a", "b"]),
        ("stop", "", None),
        ("seed", "7", 7),
        ("ocr", True, True),
    ],
)
def test_what_is_typed_becomes_a_setting_and_is_shown_again(name, typed, value):
    settings = declared()
    assert setting_of(settings[name], typed) == value
    given = settings_given(settings, {name: typed})
    assert given == ({} if value is None else {name: value})
    assert setting_of(settings[name], shown_value(settings[name], given)) == value


# ── what is shown ──


def test_names_and_answers_cannot_become_html():
    name = '"><script>alert(1)</script>'
    medium = {
        "name": name,
        "kind": "video",
        "duration": 1.0,
        "relevance": {"indices": [0, 1], "seconds": [0.0, 0.5], "values": [1.0, 2.0]},
        "frames": [{"index": 0, "seconds": 0.0, "jpeg": "AAAA"}],
    }
    talk = conversation(answered("What?", CLIP.model_copy(update={"name": name})))
    drawn = shown.html(talk, 0, {'a"b': [medium]})
    assert "<script" not in drawn
    assert 'data-model="a&quot;b"' in drawn
    media, text = messages_of(talk, "a")[0]["content"]
    assert "<script" not in media.value
    assert text == "What?"
    assert turn_of([3, 1]) == turn_of(2) == 1


def test_what_the_browser_says_of_frames_is_checked():
    good = {"model": "a", "medium": 0, "frames": [3, 1], "pinned": [1]}
    wrong = [None, 3, {}, {**good, "frames": [-1]}, {**good, "frames": "1"}, {**good, "medium": "0"}]
    assert list(shown.kept([good, *wrong])) == [("a", 0, [1, 3], [1])]
    assert list(shown.kept({"model": "a"})) == []


def test_the_browser_keeps_the_newest_conversations():
    store = Store({"open": "1", "chats": [conversation(answered("What?")).model_dump(), {"id": 3}, None]})
    assert store.current.title == "What?"
    store.put(Conversation(id="2", models=["a"], turns=[answered("x" * (MAX_BYTES // 2))]))
    store.put(Conversation(id="3", models=["a"], turns=[answered("y" * (MAX_BYTES // 2))]))
    assert [chat["id"] for chat in store.as_json()["chats"]] == ["3"]
    assert len(store.choices[0][0]) == 60
    store.drop("3")
    assert store.current is None
    for nonsense in (None, [], "x", {"chats": 5}, {"chats": [5]}):
        assert Store(nonsense).chats == []


# ── saved files ──


@pytest.fixture
def server(tmp_path):
    options = ServerOptions(max_file_bytes=1 << 20)
    files = FileStore(tmp_path / "files", Limits(), options.max_file_bytes, 4 << 20, 3600)
    return SimpleNamespace(files=files, options=options, models=SimpleNamespace(facts={}))


def test_a_saved_conversation_comes_back_with_its_media(server, tmp_path):
    place = tmp_path / "chat.zip"

    async def run() -> Conversation:
        stored = await server.files.add(ROOT / "examples" / "clip.mp4", "clip.mp4", "somebody")
        clip = CLIP.model_copy(update={"file": stored.id, "pinned": [3]})
        talk = conversation(answered("What?", clip, seed=3), answered("And?", clip))
        await saved.write(server, talk, "somebody", place)
        again = await saved.read(server, place, "another")
        (id,) = {shown.file for turn in again.turns for shown in turn.shown}
        assert server.files.find(id, "another").digest == stored.digest
        with pytest.raises(APIError):
            await saved.write(server, talk, "another", tmp_path / "other.zip")
        for turn in again.turns:
            turn.shown[0].file = stored.id
        assert again == talk
        return again

    asyncio.run(run())


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"conversation.json": b"{"},
        {"conversation.json": b'{"form": 2}'},
        {"conversation.json": b'{"form": 1, "conversation": {"id": 5}}'},
        {"conversation.json": b"[" * 100_000},
        {"conversation.json": b" " * (9 << 20)},
    ],
)
def test_what_is_no_saved_conversation_is_refused(server, tmp_path, members):
    place = tmp_path / "wrong.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(APIError, match="no saved conversation"):
        asyncio.run(saved.read(server, place, ""))


@pytest.mark.parametrize(
    ("file", "data", "complaint"),
    [
        ("media/1.mp4", b"\0" * (2 << 20), "larger than"),  # a zip bomb, in small
        ("media/1.mp4", b"no film", "is text"),
        ("../../etc/hostname", None, "lacks"),
        ("/etc/hostname", None, "lacks"),
    ],
)
def test_media_of_a_saved_conversation_are_bounded_and_checked(server, tmp_path, file, data, complaint):
    place = tmp_path / "wrong.zip"
    talk = conversation(answered("What?", CLIP.model_copy(update={"file": file})))
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversation.json", json.dumps({"form": 1, "conversation": talk.model_dump()}))
        if data is not None:
            archive.writestr(file, data)
    with pytest.raises(APIError, match=complaint):
        asyncio.run(saved.read(server, place, ""))
    assert list((tmp_path / "files" / "blobs").iterdir()) == []


def test_no_file_is_no_saved_conversation(server, tmp_path):
    place = tmp_path / "notes.zip"
    place.write_text("notes")
    with pytest.raises(APIError, match="no saved conversation"):
        asyncio.run(saved.read(server, place, ""))


# ── drawing ──


def answering(server, *made) -> Conversation:
    """A conversation whose last question was answered by a stand-in that describes, and perhaps paints, a picture."""
    talk = Conversation(id="1", models=["a"], turns=[Turn(text="Draw a cat", settings={"gen": True})])

    async def events(model, job):
        if job.do == "render":
            yield {"event": "rendered", "media": []}
            return
        yield {"event": "accepted"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        receipt = {"usage": usage, "timings": {"first_token": 0, "decode": 0}, "warnings": [], "frames": []}
        yield {"event": "piece", "choice": 0, "text": "<h>a cat</h>", "finish_reason": "stop", "receipt": receipt}
        for each in made:
            yield {"event": "piece", "choice": 0, "text": "", "made": each}

    server.completion = lambda request: Completion("a", {"paints": True})
    server.jobs = SimpleNamespace(chat=lambda *_: SimpleNamespace(do="answer", thumbnails=False))
    server.events = events

    async def run() -> None:
        async for _ in Asking(server, talk, 0, "somebody").run():
            pass

    asyncio.run(run())
    return talk


def test_a_picture_that_was_painted_is_shown_and_saved_with_its_answer(server, tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    talk = answering(server, {"drawing": {"description": "a cat", "png": base64.b64encode(png.getvalue()).decode()}})
    answer = talk.turns[0].answers["a"]
    (drawn,) = answer.drawn
    assert (answer.ended, answer.painting) == ("stop", False)
    assert server.files.path(server.files.find(drawn.file, "somebody")).read_bytes() == png.getvalue()
    text, picture = messages_of(talk, "a")[1]["content"]
    assert text == "“a cat”"
    assert f"/page/media/{drawn.file}" in picture.value
    place = tmp_path / "chat.zip"

    async def replayed() -> Conversation:
        await saved.write(server, talk, "somebody", place)
        return await saved.read(server, place, "another")

    (again,) = asyncio.run(replayed()).turns[0].answers["a"].drawn
    assert server.files.path(server.files.find(again.file, "another")).read_bytes() == png.getvalue()


def test_an_answer_that_describes_no_picture_says_so(server):
    talk = answering(server, {"drawing": None})
    assert talk.turns[0].answers["a"].drawn == []
    assert "nothing is painted" in messages_of(talk, "a")[1]["content"]


def test_the_control_for_drawing_is_there_where_a_model_draws():
    assert not drawing([{}, {"draws": False, "paints": False}])["visible"]
    described = drawing([{"draws": True, "paints": False}])
    assert described["visible"]
    assert "paints none (--gen-model)" in described["info"]
    assert "that is painted" in drawing([{"draws": False}, {"draws": True, "paints": True}])["info"]


def test_pages_of_evidence_belong_to_who_asked_and_the_oldest_go(tmp_path):
    pages = EvidencePages(tmp_path / "evidence")
    tokens = [pages.keep(f"page {number}", "ann") for number in range(MOST_KEPT + 2)]
    assert pages.find(tokens[-1], "ann").read_text() == f"page {MOST_KEPT + 1}"
    assert len(list((tmp_path / "evidence").iterdir())) == MOST_KEPT
    for token, tenant in ((tokens[1], "ann"), (tokens[-1], "bob"), ("none", "ann"), ("none", "")):
        with pytest.raises(APIError) as caught:
            pages.find(token, tenant)
        assert caught.value.status == 404
