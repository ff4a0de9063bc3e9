"""Clients that mean harm, or break: they are refused, what they leave open is closed, and memory comes back."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving import ROOT, Server, shapes
from test_bad_requests import TABLE, chat, post

from longview.errors import CheckpointError
from longview.requests import Limits
from longview.serve import app as routes
from longview.serve import process, sse
from longview.serve import server as serving
from longview.serve.backend import Backend, Job
from longview.serve.errors import APIError
from longview.serve.files import FileStore
from longview.serve.models import Models
from longview.serve.process import ModelProcess
from longview.serve.security import MAX_HEADER_BYTES
from longview.serve.settings import ServedModel, ServerOptions

PICTURE = (ROOT / "examples" / "shapes.jpg").read_bytes()


# ── bodies ──


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ('"temperature": NaN', "temperature"),
        ('"temperature": Infinity', "temperature"),
        ('"top_p": -Infinity', "top_p"),
        ('"temperature": 1e999', "temperature"),
        ('"seed": ' + "9" * 400, "seed"),
        ('"seed": ' + "9" * 5000, None),
        ('"stop": ["\\udfff"]', None),
        ('"user": "\\ud800"', None),
        ('"longview": ' + '{"a":' * 3000 + "1" + "}" * 3000, None),
        ('"messages": []', "messages"),  # of two keys, the last counts
        ('"structured_outputs": {"regex": "' + "(" * 5000 + ")" * 5000 + '"}', "structured_outputs"),
        ('"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a/"}}}',
         "response_format"),
    ],
)  # fmt: skip
def test_numbers_and_strings_that_are_none_are_refused(server, changes, param):
    body = f'{{"model": "demo", "messages": [{{"role": "user", "content": "Hi"}}], {changes}}}'
    status, found, _ = post(server, "/v1/chat/completions", body.encode())
    assert (status, found["error"]["param"]) == (400, param), found


def test_half_a_character_is_refused_and_a_whole_one_is_not(server):
    for text, status in (("\\ud800", 400), ("\\ud83d\\ude00", 200), ("\\\\ud800", 200)):
        body = f'{{"model": "demo", "max_tokens": 4, "messages": [{{"role": "user", "content": "{text}"}}]}}'
        assert post(server, "/v1/chat/completions", body.encode())[0] == status, text


def test_ten_thousand_parts_are_refused(server):
    text, image = {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    commas = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + "," * 1_000_000}}
    for parts, expected in (([text] * 10_000, 400), ([image] * 10_000, 413), ([commas], 413)):
        assert chat(server, messages=[{"role": "user", "content": parts}])[0] == expected


# ── forms ──


def field(name: str, value: bytes, filename: str | None = None) -> bytes:
    more = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode("latin-1") + value + b"\r\n"


def upload(server: Server, body: bytes, boundary: str = "b") -> tuple[int, dict]:
    status, found, _ = post(server, "/v1/files", body, Content_Type=f"multipart/form-data; boundary={boundary}")
    return status, found


PURPOSE = field("purpose", b"vision")


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (PURPOSE + field("file", PICTURE, "x.jpg"), "b"),  # without its end: a client that was cut
        (PURPOSE + field("file", PICTURE, "x.jpg") + field("file", PICTURE, "y.jpg") + b"--b--\r\n", "b"),
        (field("a", b"1") * 10_000 + b"--b--\r\n", "b"),
        (b"--b\r\n" + b"X: y\r\n" * 10_000 + b"\r\n1\r\n--b--\r\n", "b"),
        (b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n1\r\n--b--\r\n", "b"),
        (b"\0" * 1000, "b"),
        (b"x", "b" * 12_000),
        (b"x", '""'),
    ],
)
def test_a_form_that_is_malformed_is_refused(server, body, boundary):
    try:
        status, found = upload(server, body, boundary)
    except (ConnectionError, urllib.error.URLError):  # the reply came before the body was sent, and was not read
        return
    assert status in (400, 415)
    assert found["error"]["param"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("../../../etc/passwd", "passwd"), ("a\\..\\b.jpg", "b.jpg"), ("..", ".."), ("a\x1b[31m.jpg", "a\ufffd[31m.jpg")],
)
def test_a_file_s_name_is_a_name_and_no_path(server, given, kept):
    status, stored = upload(server, PURPOSE + field("file", PICTURE, given) + b"--b--\r\n")
    assert (status, stored["filename"]) == (200, kept)
    with urllib.request.urlopen(f"{server.address}/v1/files/{stored['id']}/content", timeout=30) as reply:
        assert reply.headers["Content-Disposition"].startswith("attachment")
        assert "/" not in reply.headers["Content-Disposition"].replace("utf-8''", "")
        assert reply.headers["Content-Type"] == "application/octet-stream"


# ── heads ──


async def call(app: Any, *headers: tuple[str, str], method: str = "GET", path: str = "/version") -> tuple[int, dict]:
    """Status and headers of an app's reply, without a server."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "query_string": b"", "root_path": ""}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 1)}
    sent = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}


@pytest.fixture
def app(tmp_path):
    def make(**options: Any) -> Any:
        settings = ServerOptions(**options)
        files = FileStore(tmp_path, Limits(), 1, 1, 1)
        return routes.create_app(routes.Server(settings, Limits(), models(), files))

    return make


def models(make: Any = ModelProcess, max_queue: int = 1) -> Models:
    return Models({"demo": ServedModel({"name": "demo"})}, {}, max_queue, make=make)


@pytest.mark.parametrize("count", [1, 100])
def test_headers_have_a_bound(app, count):
    host = ("Host", "localhost")
    room = MAX_HEADER_BYTES - sum(map(len, host)) - count
    value = "y" * (room // count)
    padding = ("Z" * (room % count), "") if room % count else ("", "")
    headers = [host, *[("X", value)] * count, padding]
    assert asyncio.run(call(app(), *headers))[0] == 200
    assert asyncio.run(call(app(), *headers, ("X", "")))[0] == 431


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("LOCALHOST.", 200),
        ("[::1]:8000", 200),
        ("loc\u00e0lhost", 421),
        ("localhost@evil.example", 421),
        ("evil.example#localhost", 421),
        ("localhost:80:80", 421),
        ("localhost:x", 421),
        ("localhost:99999", 421),
        ("[::1", 421),
        ("127.0.0.1.evil.example", 421),
        ("0x7f.1", 421),
        ("localhost%00", 421),
        ("", 421),
    ],
)
def test_a_host_is_one_of_ours_in_one_spelling(app, host, status):
    assert asyncio.run(call(app(), ("Host", host)))[0] == status


def test_other_sites_are_let_in_only_where_they_are_named(app):
    headers = ("Host", "localhost"), ("Origin", "https://a.example")
    plain, named = app(), app(cors_origins=("https://a.example",))
    assert "access-control-allow-origin" not in asyncio.run(call(plain, *headers))[1]
    assert asyncio.run(call(named, *headers))[1]["access-control-allow-origin"] == "https://a.example"
    assert asyncio.run(call(plain, *headers, method="DELETE", path="/v1/models/demo"))[0] == 403
    assert asyncio.run(call(named, *headers, method="DELETE", path="/v1/models/demo"))[0] == 403
    other = ("Host", "localhost"), ("Origin", "https://b.example")
    assert "access-control-allow-origin" not in asyncio.run(call(named, *other))[1]


# ── who does not go on ──


def test_a_head_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.3)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def run() -> None:
        config = uvicorn.Config(
            app, port=0, http=serving.Protocol, lifespan="off", log_level="error", timeout_keep_alive=1
        )
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for sent in (b"", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await asyncio.wait_for(reader.read(), 5)  # to its end
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):  # who asks again is not cut off
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"204" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            await asyncio.sleep(0.12)
        writer.close()
        server.should_exit = True
        await running

    asyncio.run(run())


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(routes, "SILENT_SECONDS", 0.1)

    class Slow:
        """A request that sends two pieces, and no more, or one after the other for ever."""

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def stream(self) -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await asyncio.sleep(self.seconds)

    async def read(request: Any, seconds: float) -> None:
        async for _ in routes.incoming(request, seconds):
            pass

    for request, seconds in ((Slow(60), 1000.0), (Slow(0.01), 0.2)):
        with pytest.raises(APIError) as caught:
            asyncio.run(read(request, seconds))
        assert caught.value.status == 408
        assert caught.value.headers == {"x-should-retry": "false"}


def test_a_stream_that_has_nothing_to_say_says_so(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)

    async def events() -> AsyncGenerator[bytes]:
        await asyncio.sleep(0.18)
        yield sse.encode({"a": 1})

    async def run() -> bytes:
        bodies = []

        async def send(message: dict) -> None:
            bodies.append(message.get("body", b""))

        await sse.EventStream(events())({}, asyncio.Event().wait, send)
        return b"".join(bodies)

    text = asyncio.run(run())
    assert text.count(sse.KEEP_ALIVE) == 3
    assert text.endswith(b'data: {"a":1}\n\n')


# ── what the server does not do ──


class Silent(Backend):
    """A model that never answers."""

    is_started = True  # type: ignore[assignment]

    def __init__(self, name: str, config: Any, on_stats: Any) -> None:
        super().__init__(name, on_stats)
        self.facts = {"max_requests": 2}

    async def events(self, job: Job, adapter: str = "") -> AsyncGenerator[dict[str, Any]]:
        await asyncio.sleep(60)
        yield {}


def test_a_request_too_many_is_told_when_to_come_again():
    async def run() -> APIError:
        pool = models(Silent, max_queue=1)
        asking = [asyncio.ensure_future(anext(pool.events("demo", Job([], {})))) for _ in range(3)]
        await asyncio.sleep(0.01)
        with pytest.raises(APIError) as caught:
            await anext(pool.events("demo", Job([], {})))
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        return caught.value

    error = asyncio.run(run())
    assert (error.status, error.code) == (429, "queue_full")
    assert "x-should-retry" not in error.headers
    assert 0 < int(error.headers["Retry-After"]) <= 120


def test_a_request_that_takes_too_long_is_ended_and_not_repeated(tmp_path):
    async def run() -> APIError:
        files = FileStore(tmp_path, Limits(), 1, 1, 1)
        server = routes.Server(ServerOptions(request_seconds=0.1), Limits(), models(Silent), files)
        with pytest.raises(APIError) as caught:
            await anext(server.events("demo", Job([], {})))
        return caught.value

    error = asyncio.run(run())
    assert (error.status, error.headers) == (504, {"x-should-retry": "false"})


def test_a_process_that_dies_again_and_again_is_started_five_times_a_minute(monkeypatch):
    monkeypatch.setattr(process, "RESTART_WINDOW", 0.5)
    began: list[float] = []

    async def spawn(self: ModelProcess) -> None:
        began.append(asyncio.get_running_loop().time())
        raise CheckpointError("it dies")

    async def run() -> None:
        monkeypatch.setattr(ModelProcess, "_spawn", spawn)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ModelProcess("x", {})._restart(), 1.2)

    asyncio.run(run())
    assert len(began) == 15  # at 0, 0.5 and 1.0
    assert all(later - earlier >= 0.5 for earlier, later in zip(began, began[5:], strict=False))


def test_memory_comes_back_after_all_that_is_wrong(server, client):
    """Of the server and of its model's process: it grows no further by what is refused."""

    def refuse_all() -> int:
        for changes, _, _ in TABLE.values():
            chat(server, **changes)
        client.chat.completions.create(model="demo", messages=shapes())
        return sum(resident(pid) for pid in [server.process.pid, *children(server.process.pid)])

    refuse_all()
    before = refuse_all()
    for _ in range(3):
        after = refuse_all()
    assert after < before * 1.05, f"{before >> 20} → {after >> 20} MiB"


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_after_all_that_the_server_is_well(server, client):
    assert client.chat.completions.create(model="demo", messages=shapes()).choices[0].message.content == "blue"
    assert json.loads(urllib.request.urlopen(f"{server.address}/health", timeout=30).read()) == {"status": "ok"}
