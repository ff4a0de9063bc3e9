"""Models that join a running server (`--to`), and leave it: when they are removed, end, are killed, or say nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
from serving import ROOT, Server, eventually, running, shapes
from starlette.requests import Request

from longview.cli.serve import ServedModels, serve
from longview.errors import CheckpointError, RequestError
from longview.serve import wire
from longview.serve.joined import CONTENT_TYPE, _is_local
from longview.serve.settings import ServerLimits, ServerOptions

LONG = {"max_tokens": 400, "extra_body": {"min_tokens": 400}, "stream": True}
READY = {
    "event": "ready",
    "facts": {
        "family": "x",
        "release": "",
        "context_length": 9,
        "picture_positions": 0,
        "max_requests": 1,
    },
}


def names(server: Server) -> list[str]:
    return [model.id for model in server.client().models.list().data]


def ask(server: Server, model: str, **more):
    return server.client().chat.completions.create(model=model, messages=shapes(), **{"max_tokens": 8, **more})


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_a_model_joins_is_asked_and_is_removed(server):
    began = time.monotonic()
    with running("--model", "ovis=demo-ovis2", "--to", f"{server.address}/v1") as guest:
        assert guest.said == f"longview serves ovis at {server.address}\n"
        assert names(server) == ["demo", "ovis"]
        assert time.monotonic() - began < 60
        assert ask(server, "ovis").choices[0].message.content == "blue"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(server, "ovis", stream=True)) == "blue"
        film = server.client().files.create(file=ROOT / "examples" / "clip.mp4", purpose="user_data")
        parts = [{"type": "file", "file": {"file_id": film.id}}, {"type": "text", "text": "What happens?"}]
        reply = server.client().chat.completions.create(model="ovis", messages=[{"role": "user", "content": parts}])
        assert len(reply.model_extra["longview"]["frames"]) > 1
        card = server.client().models.retrieve("ovis")
        assert (card.model_extra["family"], card.model_extra["loaded"]) == ("ovis2", True)
        assert eventually(lambda: 'num_requests_running{model_name="ovis"}' in get(server, "/metrics"), 10)

        assert server.client().models.delete("ovis").deleted
        assert names(server) == ["demo"]
        assert guest.process.wait(20) == 0
    assert eventually(lambda: 'num_requests_running{model_name="ovis"}' not in get(server, "/metrics"), 10)
    with pytest.raises(openai.NotFoundError, match="has left this server; it comes back by longview serve"):
        ask(server, "ovis")
    with pytest.raises(openai.NotFoundError):
        server.client().models.delete("ovis")
    with pytest.raises(openai.PermissionDeniedError, match="was started with the server"):
        server.client().models.delete("demo")


def get(server: Server, path: str) -> str:
    with urllib.request.urlopen(f"{server.address}{path}", timeout=30) as reply:
        return reply.read().decode()


def test_what_is_killed_takes_its_own_requests_and_nobody_else_s(server):
    with running("--model", "twin=demo", "--to", server.address) as guest:
        (worker,) = children(guest.process.pid)
        hit = iter(ask(server, "twin", **LONG))
        next(hit)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="ask once more"):
            list(hit)
        assert "twin" in names(server)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, "twin")
        assert caught.value.status_code == 503
        assert eventually(lambda: answers(server, "twin"), 120)  # its command has started it again

        (worker,) = children(guest.process.pid)
        hit, spared = iter(ask(server, "twin", **LONG)), iter(ask(server, "demo", **LONG))
        next(hit), next(spared)
        guest.process.kill()
        with pytest.raises(openai.APIError, match="has left the server"):
            list(hit)
        assert list(spared)[-1].choices[0].finish_reason == "length"
        assert eventually(lambda: names(server) == ["demo"], 10)
        with pytest.raises(openai.NotFoundError, match="has left"):
            ask(server, "twin")
        assert eventually(lambda: not os.path.exists(f"/proc/{worker}"), 10), "its worker lives on for nobody"
        guest.process.wait()


def answers(server: Server, model: str) -> bool:
    try:
        return ask(server, model).choices[0].message.content == "blue"
    except openai.InternalServerError:
        return False


@pytest.mark.slow
def test_a_model_waits_for_a_server_that_is_started_again_and_ends_with_its_requests():
    with (
        running("--api-key", "secret") as first,
        running("--model", "twin=demo", "--to", first.address, "--api-key", "secret") as guest,
    ):
        for key in ("", "wrong"):
            with pytest.raises(RequestError, match="401: a key is needed"):
                join("x=demo", to=first.address, api_key=(key,) if key else ())
        began = time.monotonic()
        assert first.stop()[0] == 0
        assert time.monotonic() - began < 15  # it waits for no model that has joined
        with running("--port", str(first.port), "--api-key", "secret") as again:
            client = again.client("secret")
            assert eventually(lambda: len(client.models.list().data) == 2, 20)
            stream = iter(client.chat.completions.create(model="twin", messages=shapes(), **LONG))
            next(stream)
            guest.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: len(client.models.list().data) == 1, 10)
            assert list(stream)[-1].choices[0].finish_reason == "length"
            assert guest.process.wait(20) == 0


def join(*models: str, **options) -> None:
    """`longview serve --to …` in this process."""
    serve(ServedModels(model=list(models)), ServerOptions(**options), ServerLimits())


@pytest.mark.parametrize(
    ("model", "error", "expected"),
    [
        ("demo", RequestError, "409: a model is called 'demo' already; give yours another name"),
        ("x=no-such-folder/nor-this/one", CheckpointError, "no-such-folder/nor-this/one"),
    ],
)
def test_what_cannot_join_is_told(server, model, error, expected):
    with pytest.raises(error, match=expected):
        join(model, to=server.address)
    assert names(server) == ["demo"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"to": "http://127.0.0.1:9"}, "no server answers at http://127.0.0.1:9"),
        ({"to": "here"}, "'here' is no address of a server"),
        ({"to": "http://127.0.0.1:9", "port": 9000}, "--port is a setting of the server"),
    ],
)
def test_an_address_that_is_none_is_told(options, expected):
    with pytest.raises(RequestError, match=expected):
        join("x=demo", **options)


def test_a_limit_is_the_server_s():
    with pytest.raises(RequestError, match="--max-pictures is a setting of the server"):
        serve(ServedModels(), ServerOptions(to="http://127.0.0.1:9"), ServerLimits(max_pictures=3))


# ── who does not keep to the form ──


class Imposter:
    """A connection that joins by hand."""

    def __init__(self, server: Server, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.connection.putrequest("POST", "/v1/models", skip_host=True)
        sent = {"Host": "localhost", "Content-Type": CONTENT_TYPE, "Transfer-Encoding": "chunked", **headers}
        for name, value in sent.items():
            self.connection.putheader(name.replace("_", "-"), value)
        self.connection.endheaders()

    def send(self, data: bytes) -> None:
        self.connection.send(b"%x\r\n%s\r\n" % (len(data), data))

    def tell(self, **header) -> None:
        self.send(b"".join(wire.encode(header)))

    def refusal(self) -> tuple[int, dict]:
        reply = self.connection.getresponse()
        return reply.status, json.loads(reply.read())["error"]

    def joins(self, name: str) -> http.client.HTTPResponse:
        self.tell(join={"name": name, "adapters": []})
        self.tell(events=[READY])
        return self.connection.getresponse()


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "application/json"}, b"{}", 415),
        ({"X-Forwarded-For": "203.0.113.7"}, b"", 403),
        ({"Origin": "https://evil.example"}, b"", 403),
        ({"Host": "evil.example"}, b"", 421),
        ({}, struct.pack(">I", 2) + b"{}", 400),
        ({}, struct.pack(">I", 0xFFFFFFFF), 400),
        ({}, b"".join(wire.encode({"join": {"name": "demo", "adapters": []}})), 409),
        ({}, b"".join(wire.encode({"join": {"name": "a\nb", "adapters": []}})), 400),
        ({}, b"".join(wire.encode({"join": {"name": "a", "adapters": ["a"]}})), 409),
        ({}, b"".join(wire.encode({"join": {"name": 7}})), 400),
    ],
)
def test_what_is_no_model_is_refused(server, headers, body, status):
    imposter = Imposter(server, **headers)
    if body:
        imposter.send(body)
    found, error = imposter.refusal()
    assert (found, set(error)) == (status, {"message", "type", "param", "code"})
    assert names(server) == ["demo"]


@pytest.mark.parametrize(
    "message",
    [
        {"nothing": 1},
        {"events": [1]},
        {"events": [{"event": "stats", "stats": {"": {"num_requests_running": "many"}}}]},
        {"events": [{"event": "piece"}]},
        {"events": 5, "blobs": -1},
    ],
)
def test_a_model_that_sends_what_is_no_message_is_dropped(server, message):
    imposter = Imposter(server)
    imposter.joins("odd")
    assert eventually(lambda: "odd" in names(server), 10)
    imposter.tell(**message)
    assert eventually(lambda: "odd" not in names(server), 5)
    assert ask(server, "demo").choices[0].message.content == "blue"


def test_an_answer_that_is_none_fails_alone(server):
    imposter = Imposter(server)
    reply = imposter.joins("odd")
    failures = []

    def asking() -> None:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(server, "odd")
        failures.append(caught.value.status_code)

    thread = threading.Thread(target=asking)
    assert eventually(lambda: "odd" in names(server), 10)
    thread.start()
    job = {}
    while job.get("do") != "answer":
        job = json.loads(reply.read(struct.unpack(">I", reply.read(4))[0]))
        for length in job["blobs"]:
            reply.read(length)
    imposter.tell(events=[{"event": "piece", "request": job["request"], "tokens": "x"}])
    imposter.tell(events=[{"event": "ended", "request": job["request"], "error": {"kind": "?", "text": "?"}}])
    thread.join(30)
    assert failures == [500]
    assert "odd" in names(server)
    imposter.connection.close()
    assert eventually(lambda: "odd" not in names(server), 10)


@pytest.mark.slow  # ten seconds of silence
def test_a_model_that_says_nothing_is_taken_for_dead(server):
    imposter = Imposter(server)
    imposter.joins("mute")
    assert eventually(lambda: "mute" in names(server), 10)
    assert eventually(lambda: "mute" not in names(server), 15)
    assert imposter.connection


def test_messages_are_read_from_any_pieces():
    sent = [({"a": 1}, [b"x", b"", b"yz"]), ({"b": "é"}, [])]
    text = b"".join(part for header, blobs in sent for part in wire.encode(header, blobs))
    for size in (1, 3, len(text)):
        decoder = wire.Decoder(100)
        pieces = [text[begin : begin + size] for begin in range(0, len(text), size)]
        assert [message for piece in pieces for message in decoder.feed(piece)] == sent
    with pytest.raises(ValueError, match="a message of"):
        list(wire.Decoder(2).feed(text))


@pytest.mark.parametrize(
    ("client", "headers", "local"),
    [
        ("127.0.0.1", [], True),
        ("::1", [], True),
        ("10.0.0.7", [], False),
        ("127.0.0.1", [(b"x-forwarded-for", b"1.2.3.4")], False),
        ("127.0.0.1", [(b"forwarded", b"for=1.2.3.4")], False),
    ],
)
def test_without_keys_only_this_machine_joins(client, headers, local):
    assert _is_local(Request({"type": "http", "client": (client, 1), "headers": headers})) is local


def test_a_port_that_is_no_server_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def close() -> None:
            connection, _ = listening.accept()
            connection.recv(1000)
            connection.close()

        threading.Thread(target=close, daemon=True).start()
        with pytest.raises(RequestError, match="has ended the connection"):
            join("x=demo", to=f"http://127.0.0.1:{port}")


def test_a_server_of_another_kind_is_told(server):
    with pytest.raises(RequestError, match=r"404|415|no longview"):
        join("x=demo", to=f"{server.address}/elsewhere")
