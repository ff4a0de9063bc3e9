"""Files of a server that its model does not see, or that somebody has deleted."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import asdict

import httpx
import pytest
from serving import ROOT, running

from longview.requests import Limits
from longview.serve import backend, engines
from longview.serve.backend import Backend, Job
from longview.serve.errors import APIError
from longview.serve.files import FileStore
from longview.serve.models import with_files

CLIP = ROOT / "examples" / "clip.mp4"
PICTURE = ROOT / "examples" / "shapes.jpg"


def about(kind: str, source, question: str, name: str = "it") -> Job:
    parts = [{"type": kind, "source": source, "name": name}, {"type": "text", "text": f"\n{question}"}]
    return Job([{"role": "user", "parts": parts}], {"params": {"max_tokens": 8}, "media": {}, "n": 1})


class Elsewhere(Backend):
    """The engines of the demo, on a machine that has none of these files."""

    def __init__(self) -> None:
        super().__init__("demo")
        limits = {**asdict(Limits()), "file_roots": [], "isolate": True}
        budget = {"share": 0.2}
        self.engines = engines.Engines({"load": {"name": "demo", "budget": budget}, "limits": limits, "adapters": {}})
        self.asked = []

    async def events(self, job, adapter=""):
        self.asked.append(job)
        events = []
        await self.engines.answer(job.header(adapter, 1), job.blobs, events.append)
        for event in events:
            yield event


@pytest.fixture(scope="module")
def elsewhere():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "is_seen", lambda source: not source.startswith("/"))
        yield Elsewhere()


def answer(model, job: Job) -> str:
    async def read() -> str:
        events = [event async for event in with_files(model, job, "")]
        assert events[-1] == {"request": 1, "event": "ended", "error": None}
        return "".join(event["text"] for event in events if event["event"] == "piece")

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("kind", "source", "question", "expected"),
    [
        ("video", str(CLIP), "Which way does the triangle move?", "right"),
        ("image", str(PICTURE), "What colour is the star?", "blue"),
        ("video", [str(PICTURE), str(PICTURE)], "What colour is the star?", "blue"),
    ],
)
def test_a_model_that_does_not_see_a_file_is_sent_it(elsewhere, kind, source, question, expected):
    elsewhere.asked.clear()
    assert answer(elsewhere, about(kind, source, question)) == expected
    first, second = elsewhere.asked
    assert first.blobs == ()
    assert len(second.blobs) == (len(source) if isinstance(source, list) else 1)


def test_a_model_that_sees_the_files_is_asked_once(elsewhere):
    elsewhere.asked.clear()
    job = Job(
        [{"role": "user", "parts": [{"type": "text", "text": "Hello"}]}],
        {"params": {"max_tokens": 2}, "media": {}, "n": 1},
    )
    answer(elsewhere, job)
    assert elsewhere.asked == [job]


def test_what_is_too_large_to_be_sent_is_refused(monkeypatch):
    monkeypatch.setattr(backend, "MAX_SENT", 100)
    with pytest.raises(APIError, match=r"shapes\.jpg is too large: .* put the folder where it sees it") as caught:
        about("image", str(PICTURE), "What?", "shapes.jpg").with_bytes()
    assert caught.value.status == 413


def test_what_is_gone_is_told():
    with pytest.raises(APIError, match=r"cat\.jpg is gone .*; upload it again") as caught:
        about("image", "/nowhere/cat", "What?", "cat.jpg").with_bytes()
    assert caught.value.status == 404


def test_a_folder_of_files_that_is_deleted_is_made_again(tmp_path):
    files = FileStore(tmp_path / "files", Limits(), 1 << 20, 1 << 22, 3600)
    before = asyncio.run(files.add(PICTURE, "shapes.jpg", ""))
    shutil.rmtree(files.folder)
    with pytest.raises(APIError, match="may have expired: upload it again"):
        files.find(before.id, "")
    with files.temporary() as place:
        place.write(b"a")
    after = asyncio.run(files.add(PICTURE, "shapes.jpg", ""))
    shutil.rmtree(files.folder)
    again = asyncio.run(files.add(PICTURE, "shapes.jpg", ""))
    assert again.id == after.id
    assert files.path(files.find(again.id, "")).read_bytes() == PICTURE.read_bytes()


def test_a_folder_that_cannot_be_made_again_is_told(tmp_path):
    files = FileStore(tmp_path / "files", Limits(), 1 << 20, 1 << 22, 3600)
    shutil.rmtree(files.folder)
    files.folder.write_text("in the way")
    for work in (lambda: asyncio.run(files.add(PICTURE, "shapes.jpg", "")), files.temporary):
        with pytest.raises(APIError, match="see that the server can write in its --files folder"):
            work()


def test_a_page_whose_folder_was_deleted_goes_on(tmp_path):
    with running("--files", str(tmp_path / "files"), page=True) as server:
        uploaded = server.client().files.create(file=PICTURE, purpose="user_data")
        assert httpx.get(f"{server.address}/page/media/{uploaded.id}").status_code == 200
        shutil.rmtree(tmp_path / "files")
        gone = httpx.get(f"{server.address}/page/media/{uploaded.id}")
        assert gone.status_code == 404
        assert "upload it again" in gone.json()["error"]["message"]
        form = {"files": ("shapes.jpg", PICTURE.read_bytes())}
        assert httpx.post(f"{server.address}/gradio_api/upload", files=form, timeout=60).status_code == 200
        assert server.client().files.create(file=PICTURE, purpose="user_data").id != uploaded.id
