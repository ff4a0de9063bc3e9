"""`/v1/files`: a film is uploaded once and asked often."""

from __future__ import annotations

import io
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from PIL import Image
from serving import ROOT, running

from longview.requests import Limits
from longview.serve.errors import APIError
from longview.serve.files import FileStore

CLIP = ROOT / "examples" / "clip.mp4"


FIELD_ALONE = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n'


def ask(file_id: str, question: str = "What happens?") -> list[dict]:
    parts = [{"type": "file", "file": {"file_id": file_id}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


def test_a_film_is_uploaded_once_and_asked_by_its_id(client):
    stored = client.files.create(file=CLIP, purpose="user_data")
    assert (stored.filename, stored.bytes, stored.object) == ("clip.mp4", CLIP.stat().st_size, "file")
    first, second = (client.chat.completions.create(model="demo", messages=ask(stored.id)) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content == "a large red triangle moves right"
    assert {frame["name"] for frame in second.model_extra["longview"]["frames"]} == {"clip.mp4"}
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
    assert client.files.content(stored.id).read() == CLIP.read_bytes()
    client.files.delete(stored.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(stored.id)
    with pytest.raises(openai.NotFoundError, match="it may have expired") as caught:
        client.chat.completions.create(model="demo", messages=ask(stored.id))
    assert caught.value.param == "messages[0].content[0].file.file_id"


def test_the_second_question_encodes_nothing(client):
    stored = client.files.create(file=CLIP, purpose="user_data")
    timings = []
    for question in ("What happens?", "Which shape moves?"):
        reply = client.chat.completions.create(model="demo", messages=ask(stored.id, question))
        timings.append(reply.model_extra["longview"]["timings"])
    assert timings[1]["encode"] < max(0.05, timings[0]["encode"])


def test_the_same_content_is_stored_once(tmp_path):
    with running("--files", str(tmp_path)) as server:
        client = server.client()
        one, two = (
            client.files.create(file=(name, CLIP.read_bytes()), purpose="vision") for name in ("a.mp4", "b.mp4")
        )
        assert [each.filename for each in client.files.list().data] == [
            "b.mp4",
            "a.mp4",
        ] or one.created_at == two.created_at
        assert len(list((tmp_path / "blobs").iterdir())) == 1
        client.files.delete(one.id)
        assert len(list((tmp_path / "blobs").iterdir())) == 1
        client.files.delete(two.id)
        assert list((tmp_path / "blobs").iterdir()) == []
        kept = client.files.create(file=CLIP, purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600})
        assert kept.expires_at == kept.created_at + 3600
    with running("--files", str(tmp_path)) as server:  # it outlives the server
        assert server.client().files.retrieve(kept.id) == kept


@pytest.mark.parametrize(
    ("content", "purpose", "expected"),
    [
        (b"hello", "vision", "of an unknown format|text"),
        (b"", "vision", "an empty file"),
        (b"%PDF-1.4 x", "user_data", "a PDF"),
        (CLIP.read_bytes(), "smell", "purpose is 'smell'"),
    ],
)
def test_what_is_no_picture_and_no_video_is_refused(client, content, purpose, expected):
    with pytest.raises(openai.BadRequestError, match=expected):
        client.files.create(file=("x.bin", content), purpose=purpose)


def test_a_form_that_is_none_is_refused(server):
    for kind, body, status in (
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"x", 415),
        ("multipart/form-data; boundary=b", b"no form", 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n',
            400,
        ),
    ):
        request = urllib.request.Request(f"{server.address}/v1/files", body, {"Content-Type": kind})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        assert caught.value.code == status


def small_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def test_bounds_of_files_hold(tmp_path):
    size = CLIP.stat().st_size
    with running("--max-file-bytes", str(size), "--files-quota", str(size + 10)) as server:
        client = server.client()
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("x.mp4", CLIP.read_bytes() + b"x"), purpose="vision")
        assert (caught.value.status_code, caught.value.param) == (413, "file")
        stored = client.files.create(file=CLIP, purpose="vision")
        with pytest.raises(openai.APIStatusError, match="delete some"):
            client.files.create(file=("small.png", small_picture()), purpose="vision")
        client.files.delete(stored.id)
        client.files.create(file=CLIP, purpose="vision")


def test_an_expired_file_is_gone(tmp_path):
    store = FileStore(tmp_path, Limits(), 1 << 30, 1 << 30, 60)
    (tmp_path / "blobs" / "d").write_bytes(b"x")
    record = {"id": "file-1", "digest": "d", "bytes": 1, "created_at": 0, "expires_at": int(time.time()) - 1}
    record |= {"filename": "x", "purpose": "vision", "kind": "image"}
    (tmp_path / "files" / "file-1.json").write_text(json.dumps(record))
    store = FileStore(tmp_path, Limits(), 1 << 30, 1 << 30, 60)
    with pytest.raises(APIError, match="it may have expired"):
        store.find("file-1", "")
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_large_file_is_streamed_to_disk(tmp_path):
    """300 MB raise the server's memory by no more than 64 MB."""
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.write(CLIP.read_bytes())
        file.truncate(300_000_000)
    with running() as server:
        before = peak(server.process.pid)
        server.client().files.create(file=large, purpose="vision")
        assert peak(server.process.pid) - before < 64 << 20


def peak(pid: int) -> int:
    """Bytes of memory that a process has had at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_temporary_files_go_with_the_server(tmp_path):
    with running(environment={"TMPDIR": str(tmp_path)}) as server:
        server.client().files.create(file=CLIP, purpose="vision")
        assert len(list(tmp_path.glob("longview-files-*/blobs/*"))) == 1
    assert list(tmp_path.iterdir()) == []
