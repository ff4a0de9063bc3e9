"""Streams that are open and wait cost no threads, in the server or in the process of its model."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

import httpx
from serving import Server, eventually, running

FEW, MANY = 40, 300
"""Open streams: as many as fill every pool of threads, and many more."""
SPARE = 8
"""Threads that may come meanwhile for other reasons."""


def threads_of(pid: int) -> int:
    """Threads of a process and of its children; there is one child, the model's process."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    children = [int(child) for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]
    return len(tasks) + sum(map(threads_of, children))


def wanted(server: Server) -> int:
    """Requests that run or wait."""
    lines = httpx.get(f"{server.address}/metrics", timeout=60).text.splitlines()
    names = ("longview:num_requests_running{", "longview:num_requests_waiting{")
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(names))


def open_stream(server: Server, streams: contextlib.ExitStack) -> None:
    """Begin an answer that takes very long, and read nothing of it."""
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "demo", "messages": messages, "stream": True, "max_tokens": 3000, "min_tokens": 3000}
    text = json.dumps(body).encode()
    connection = streams.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + text)


def test_streams_that_wait_cost_no_threads():
    with running("--max-queue", str(2 * MANY)) as server, contextlib.ExitStack() as streams:
        for _ in range(FEW):
            open_stream(server, streams)
        assert eventually(lambda: wanted(server) == FEW, 120)
        before = threads_of(server.process.pid)
        for _ in range(MANY - FEW):
            open_stream(server, streams)
        assert eventually(lambda: wanted(server) == MANY, 120)
        assert threads_of(server.process.pid) <= before + SPARE
        streams.close()
        assert eventually(lambda: wanted(server) == 0, 60), "it computes on for nobody"
