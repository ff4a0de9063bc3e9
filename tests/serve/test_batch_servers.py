"""A batch over servers: spread, tried again as they ask, ended where nobody answers. The servers are scripted."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from longview.errors import RequestError
from longview.http_client import Client, ConnectionFailedError
from longview.serve.batches import servers as batch_servers
from longview.serve.batches.rows import CHAT, Row
from longview.serve.batches.servers import Outcome, Servers

Answer = Callable[[dict, int], tuple]
OK = (200, {}, {"id": "x", "object": "chat.completion"})


class Scripted(ThreadingHTTPServer):
    """Answers each request as a function of its body and of how often it came; None cuts the connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.seen, self.uploads, self.keys, self.lock = answer, [], [], set(), threading.Lock()
        self.most = self.running = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_) -> None:
        """Say nothing of connections that are cut: another test may be reading stderr by then."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(*self.server.answer({}, 0) if self.server.answer is refused else (200, {}, {"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        if self.path == "/v1/files":
            server.uploads.append(data)
            self.reply(200, {}, {"id": f"file-{len(server.uploads)}"})
            return
        body = json.loads(data)
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            times = server.seen.count(body["user"])
            server.seen.append(body["user"])
            server.running += 1
            server.most = max(server.most, server.running)
        found = server.answer(body, times)
        with server.lock:
            server.running -= 1
        if found is None:
            self.close_connection = True
            self.connection.close()
            return
        self.reply(*found)

    def reply(self, status: int, headers: dict, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


def refused(body: dict, times: int) -> tuple:
    return 401, {}, {"error": {"message": "no key"}}


@pytest.fixture
def start() -> Iterator[Callable[[Answer], Scripted]]:
    started: list[Scripted] = []

    def begin(answer: Answer) -> Scripted:
        started.append(Scripted(answer))
        return started[-1]

    yield begin
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(batch_servers, "FIRST_WAIT", 0.02)


def row(number: int) -> Row:
    return Row(number, f"id {number}", CHAT, {"user": f"id {number}", "messages": []})


def ask(addresses: list[str], count: int, concurrency: int = 4, patience: float = 5.0, **more) -> list[Outcome]:
    """The outcomes of rows that are all asked at once."""

    async def run() -> list[Outcome]:
        clients = [Client(address, **{"seconds": 10.0, **more}) for address in addresses]
        servers = Servers(clients, concurrency, patience)
        await servers.models()
        try:
            return await asyncio.gather(*(servers.answer(row(number)) for number in range(count)))
        finally:
            for client in clients:
                client.close()

    return asyncio.run(run())


def slowly(body: dict, times: int) -> tuple:
    time.sleep(0.02)
    return OK


def test_rows_are_spread_over_servers_and_each_is_asked_once(start):
    first, second = start(slowly), start(slowly)
    outcomes = ask([first.address, second.address], 40, key="secret")
    assert all(outcome == Outcome(200, OK[2]) for outcome in outcomes)
    assert sorted([*first.seen, *second.seen]) == sorted(f"id {number}" for number in range(40))
    assert min(len(first.seen), len(second.seen)) >= 10
    assert first.most <= 4
    assert first.keys == {"Bearer secret"}


@pytest.mark.parametrize(
    ("passing", "least"),
    [
        ((429, {"Retry-After": "1"}, {}), 1.0),
        ((503, {"Retry-After": "1"}, {}), 1.0),
        ((500, {}, {}), 0.0),
        ((409, {}, {}), 0.0),
        ((418, {"x-should-retry": "true"}, {}), 0.0),
        (None, 0.0),
    ],
)
def test_what_may_pass_is_tried_again_when_the_server_says(start, passing, least):
    server = start(lambda body, times: OK if times else passing)
    began = time.monotonic()
    assert [outcome.status for outcome in ask([server.address], 3)] == [200] * 3
    assert sorted(server.seen) == sorted([f"id {number}" for number in range(3)] * 2)
    assert least <= time.monotonic() - began < least + 4


@pytest.mark.parametrize("reply", [(400, {}, {"error": {"message": "no"}}), (500, {"x-should-retry": "false"}, {})])
def test_what_would_fail_again_is_asked_once(start, reply):
    server = start(lambda body, times: reply)
    assert [outcome.status for outcome in ask([server.address], 2)] == [reply[0]] * 2
    assert sorted(server.seen) == ["id 0", "id 1"]


def test_a_row_that_always_fails_is_given_up_and_others_are_not(start):
    server = start(lambda body, times: None if body["user"] == "id 1" else OK)
    outcomes = ask([server.address], 4)
    assert [outcome.answered for outcome in outcomes] == [True, False, True, True]
    assert "the connection was closed" in outcomes[1].body
    assert server.seen.count("id 1") == batch_servers.TRIES


def test_a_full_queue_is_waited_for_however_long(start):
    server = start(lambda body, times: OK if times >= 8 else (429, {"Retry-After": "0"}, {}))
    assert ask([server.address], 1)[0].answered


def test_a_server_that_is_gone_leaves_the_rows_to_the_other(start):
    gone, other = start(slowly), start(slowly)
    gone.shutdown()
    gone.server_close()
    assert all(outcome.answered for outcome in ask([gone.address, other.address], 20))
    assert len(other.seen) == 20


def test_where_nobody_answers_the_batch_ends(start):
    gone = start(slowly)
    gone.shutdown()
    gone.server_close()
    with pytest.raises(RequestError, match=r"no server answers: http://127.0.0.1:\d+ \(.*refused\); see that"):
        ask([gone.address], 1)


def test_servers_that_leave_later_end_the_batch_after_a_while(start):
    def leave(body: dict, times: int) -> None:
        threading.Thread(target=server.server_close).start()

    server = start(leave)
    began = time.monotonic()
    with pytest.raises(RequestError, match="no server answers"):
        ask([server.address], 10, patience=0.5)
    assert time.monotonic() - began < 5


def test_a_wrong_key_ends_the_batch(start):
    with pytest.raises(RequestError, match=r"refuses this key \(401\)"):
        ask([start(refused).address], 1)


def test_a_reply_that_takes_too_long_is_a_failed_connection(start):
    server = start(lambda body, times: time.sleep(1) or OK)

    async def post() -> None:
        await Client(server.address, seconds=0.2).post(CHAT, {"user": "x"})

    with pytest.raises(ConnectionFailedError, match=r"no reply in 0.2 s"):
        asyncio.run(post())


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "http://", "http://u:p@x/", "http://x:99999", ""])
def test_what_is_no_server_is_told(address):
    with pytest.raises(RequestError, match="is no server"):
        Client(address)


def test_small_files_travel_with_the_request_and_large_ones_are_uploaded_once(start, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_servers, "INLINE", 100)
    small, large = tmp_path / "a.png", tmp_path / 'ü "b".mp4'
    small.write_bytes(b"small")
    large.write_bytes(b"large" * 100)
    bodies = []
    server = start(lambda body, times: bodies.append(body) or OK)
    parts = [
        {"type": "image_url", "image_url": {"url": small.as_uri(), "detail": "low"}},
        {"type": "video_url", "video_url": {"url": large.as_uri()}},
        {"type": "video_url", "video_url": {"url": [small.as_uri()]}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "text", "text": "?"},
    ]
    asked = [Row(n, "", CHAT, {"user": "x", "messages": [{"role": "user", "content": parts}]}, True) for n in range(5)]

    async def run() -> None:
        servers = Servers([Client(server.address)], 5)
        assert all(outcome.answered for outcome in await asyncio.gather(*map(servers.answer, asked)))

    asyncio.run(run())
    uri = "data:image/png;base64,c21hbGw="
    assert bodies[0]["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": uri, "detail": "low"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "video_url", "video_url": {"url": [uri]}},
        *parts[3:],
    ]
    (upload,) = server.uploads
    assert b'name="purpose"\r\n\r\nuser_data\r\n' in upload
    assert 'filename="ü %22b%22.mp4"'.encode() in upload
    assert b"\r\n\r\n" + b"large" * 100 + b"\r\n--" in upload


def test_a_file_that_is_not_there_fails_its_row(start, tmp_path):
    server = start(lambda body, times: OK)
    part = {"type": "image_url", "image_url": {"url": (tmp_path / "none.png").as_uri()}}

    async def run() -> Outcome:
        messages = [{"role": "user", "content": [part]}]
        return await Servers([Client(server.address)], 5).answer(Row(0, "", CHAT, {"messages": messages}, True))

    outcome = asyncio.run(run())
    assert (outcome.status, outcome.body["error"]["code"]) == (400, "invalid_media")
    assert server.seen == []
