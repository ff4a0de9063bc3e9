"""A server's life: what it says of itself, clients that leave, processes that are killed, and its end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import openai
import pytest
from serving import Server, eventually, shapes

LONG = {"max_tokens": 400, "extra_body": {"min_tokens": 400}}
"""Settings of an answer that takes some seconds."""


def get(server: Server, path: str) -> str:
    with urllib.request.urlopen(f"{server.address}{path}", timeout=30) as reply:
        return reply.read().decode()


def metric(server: Server, name: str) -> float:
    """The sum of all samples of a metric."""
    lines = get(server, "/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == f"longview:{name}")


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def test_it_says_that_it_is_well_and_ready_and_which_version(server):
    assert json.loads(get(server, "/health")) == {"status": "ok"}
    assert json.loads(get(server, "/ready")) == {"status": "ready"}
    assert set(json.loads(get(server, "/version"))) == {"version"}


def test_its_first_line_is_one_address(server):
    assert server.said == f"longview serves demo at {server.address}\n"
    assert server.address.startswith("http://127.0.0.1:")


def test_replies_are_not_delayed_by_nagle_s_algorithm(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        connection.request("GET", "/version")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.03  # a delayed reply takes 40 ms at the least


def aborts(server: Server) -> float:
    """Requests that were given up, whoever asked."""
    lines = [line for line in get(server, "/metrics").splitlines() if 'finished_reason="abort"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "request_success_total" in line)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_answered_no_further(server, stream):
    body = {"model": "demo", "messages": shapes(), "max_tokens": 400, "min_tokens": 400, "stream": stream}
    text = json.dumps(body).encode()
    aborted = aborts(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + text)
        assert eventually(lambda: metric(server, "num_requests_running") == 1, 30)
    assert eventually(lambda: metric(server, "num_requests_running") == 0, 3), "it computes on for nobody"
    assert aborts(server) == aborted + 1


def test_metrics_count_what_was_asked_and_answered(server, client):
    names = ("prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count")
    before = [metric(server, name) for name in names]
    usage = client.chat.completions.create(model="demo", messages=shapes()).usage
    after = [metric(server, name) for name in names]
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert grown == [usage.prompt_tokens, usage.completion_tokens, 1]


def test_a_killed_process_ends_its_requests_with_a_hint_and_comes_back():
    server = Server()
    try:
        client = server.client()
        stream = client.chat.completions.create(model="demo", messages=shapes(), stream=True, **LONG)
        next(iter(stream))
        (worker,) = children(server.process.pid)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="ask once more"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="demo", messages=shapes())
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) <= 120
        assert eventually(lambda: answers(client), 120)
        assert children(server.process.pid) != [worker]
    finally:
        server.stop()


def answers(client: openai.OpenAI) -> bool:
    try:
        return client.chat.completions.create(model="demo", messages=shapes()).choices[0].message.content == "blue"
    except openai.InternalServerError:
        return False


def test_sigterm_lets_what_runs_end_and_takes_nothing_new():
    server = Server()
    chunks = []

    def ask() -> None:
        chunks.extend(server.client().chat.completions.create(model="demo", messages=shapes(), stream=True, **LONG))

    asking = threading.Thread(target=ask)
    asking.start()
    assert eventually(lambda: len(chunks) > 2, 60)
    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: not listens(server), 10)
    asking.join(60)
    assert chunks[-1].choices[0].finish_reason == "length"
    _, errors = server.process.communicate(timeout=60)
    assert (server.process.returncode, errors) == (0, "")


def listens(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_second_signal_ends_at_once_and_leaves_no_process():
    server = Server()
    stream = server.client().chat.completions.create(model="demo", messages=shapes(), stream=True, **LONG)
    next(iter(stream))
    workers = children(server.process.pid)
    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: not listens(server), 10)
    assert server.stop() == (0, "")
    assert eventually(lambda: not any(os.path.exists(f"/proc/{worker}") for worker in workers), 10)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "no-such-folder/nor-this/one"], "no-such-folder/nor-this/one"),
        (["--model", "demo", "--model", "demo"], "two models are called 'demo'"),
        (["--port", "99999"], "port is 99999"),
        (["--host", "203.0.113.7"], "203.0.113.7:0 cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(options, expected):
    with pytest.raises(RuntimeError, match=expected) as caught:
        Server(*options)
    assert str(caught.value).startswith("longview: ")
    assert str(caught.value).count("\n") == 1
