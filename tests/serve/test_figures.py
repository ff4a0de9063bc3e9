"""Figures that the server promises: what a second question costs, and what many at once; when it stops; what it keeps.

Each is a ratio within one run, or a size, so that a busy machine does not move it. `pytest -m slow -s` prints them.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest
from PIL import Image
from serving import ROOT, Server, clip, eventually, running, shapes

from longview.bench.films import write_numbered_video
from longview.bench.serving import resident

pytestmark = pytest.mark.slow
CLIP = ROOT / "examples" / "clip.mp4"


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A server that no other test has asked, as its memory and its counters are read."""
    with running() as started:
        yield started


def metric(server: Server, name: str) -> float:
    """The sum of all samples of a metric."""
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == f"longview:{name}")


def newest(server: Server, name: str) -> float:
    """The same, when the model's process has sent its newest."""
    time.sleep(0.6)
    return metric(server, name)


def test_300_mb_are_uploaded_in_64_mb_of_memory(own, tmp_path):
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.write(CLIP.read_bytes())
        file.truncate(300_000_000)
    client = own.client()
    client.files.create(file=CLIP, purpose="vision")  # what is imported once
    before, most = resident(own.process.pid), 0

    def watch() -> Iterator[bytes]:
        nonlocal most
        with large.open("rb") as file:
            while chunk := file.read(1 << 20):
                most = max(most, resident(own.process.pid))
                yield chunk

    edge = "edge"
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--{edge}\r\n'
        'Content-Disposition: form-data; name="file"; filename="large.mp4"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{edge}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        yield from watch()
        yield tail

    connection = http.client.HTTPConnection("127.0.0.1", own.port, timeout=300)
    length = len(head) + large.stat().st_size + len(tail)
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}", "Content-Length": str(length)}
    connection.request("POST", "/v1/files", body(), headers)
    assert connection.getresponse().status == 200
    print(f"\nupload of 300 MB: {(most - before) / 2**20:.0f} MiB more in all processes of the server")
    assert most - before < 64 << 20


def test_a_second_question_costs_a_twentieth_of_the_first(own, tmp_path):
    film = write_numbered_video(tmp_path / "film.mp4", 9000, seed=1, width=640, height=352)  # five minutes
    client = own.client()
    stored = client.files.create(file=film, purpose="user_data")
    seconds = []
    for question in ("What happens?", "Which way does it move?"):
        parts = [{"type": "file", "file": {"file_id": stored.id}}, {"type": "text", "text": question}]
        began = time.perf_counter()
        reply = client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": parts}],
            max_tokens=1,
            extra_body={"longview": {"frames": 256, "select": "uniform"}},
        )
        seconds.append(time.perf_counter() - began)
        assert len(reply.model_extra["longview"]["frames"]) == 256
    print(
        f"\nsecond question about 256 frames of a film: {seconds[1]:.2f} s, {seconds[1] / seconds[0]:.1%} of the first"
    )
    assert seconds[1] < 0.05 * seconds[0]


def test_a_hundred_decisions_about_a_clip_take_one_vision_pass_and_one_prefix(own, tmp_path):
    import random

    from longview.world import write_clip
    from longview.world.scenes import draw_clip

    client = own.client()
    clips = [write_clip(draw_clip(random.Random(seed)), tmp_path / f"{seed}.mp4", seed) for seed in (1, 2, 3)]
    urls = [f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}" for clip in clips]
    names = ("mm_cache_queries_total", "mm_cache_hits_total", "prefix_cache_queries_total", "prefix_cache_hits_total")
    questions = [f"Is there a red shape? {number}" for number in range(100)]
    warmed = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": urls[2]}}]}]
    client.chat.completions.create(model="demo", messages=warmed)  # a decoder has started, as it has for the chats
    before = [newest(own, name) for name in names]
    began = time.perf_counter()
    given = [{"role": "user", "content": [{"type": "input_video", "input_video": {"url": urls[0]}}]}]
    asked = [{"type": "predicate", "instructions": question} for question in questions]
    reply = client.decisions.create(model="demo", input=given, questions=asked)
    decided = time.perf_counter() - began
    after = [newest(own, name) for name in names]
    looked, found, begun, copied = (now - then for now, then in zip(after, before, strict=True))
    assert len(reply.answers) == 100
    began = time.perf_counter()
    for question in questions:
        parts = [{"type": "video_url", "video_url": {"url": urls[1]}}, {"type": "text", "text": question}]
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": parts}])
    chatted = time.perf_counter() - began
    print(
        f"\n100 decisions {decided:.2f} s, 100 chats {chatted:.2f} s: {chatted / decided:.1f}×; "
        f"{(looked - found) / 2:.0f} frames encoded, {begun - copied:.0f} prompts without a prefix"
    )
    assert looked - found <= 2 * 8  # a frame is looked for when its request comes, and before it is encoded
    assert begun - copied <= 1
    assert chatted > 4 * decided  # the chats, too, find the frames' features and the prefix in their caches


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_computed_for_no_longer_than_a_second(own, stream):
    body = {"model": "demo", "messages": shapes(), "max_tokens": 2000, "min_tokens": 2000, "stream": stream}
    text = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", own.port), timeout=60) as connection:
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}".encode() + text)
        assert eventually(lambda: metric(own, "num_requests_running") == 1, 30)
    left = time.perf_counter()
    assert eventually(lambda: metric(own, "num_requests_running") == 0, 10)
    print(f"\nstopped {time.perf_counter() - left:.2f} s after its client, {'streaming' if stream else 'whole'}")
    assert time.perf_counter() - left < 1.0


def bad_requests() -> Iterator[bytes]:
    """What nobody should be able to leave memory behind with."""
    broad = io.BytesIO()
    Image.new("L", (65_000, 300)).save(broad, "PNG")
    truncated = base64.b64encode(CLIP.read_bytes()[:4000]).decode()
    huge = "A" * (100 << 20)
    sources = [
        ("image_url", f"data:image/png;base64,{base64.b64encode(broad.getvalue()).decode()}"),
        ("image_url", "data:image/png;base64,iVBORw0KGgo="),
        ("video_url", f"data:video/mp4;base64,{truncated}"),
        ("image_url", f"data:image/png;base64,{huge}"),
        ("video_url", f"data:video/mp4;base64,{huge[: 40 << 20]}"),
        ("image_url", "http://127.0.0.1:1/a.png"),
    ]
    for kind, url in sources:
        part = {"type": kind, kind: {"url": url}}
        yield json.dumps({"model": "demo", "messages": [{"role": "user", "content": [part]}]}).encode()
    yield b"[" * 100_000
    yield b'{"model": "demo", "messages": ' + b'[{"role": "user", "content": "x"}, ' * 10_000
    yield json.dumps({"model": "demo", "messages": [{"role": "user", "content": "x"}] * 10_000}).encode()


def test_bad_requests_leave_no_memory_behind(own):
    def go_through() -> None:
        for body in bad_requests():
            connection = http.client.HTTPConnection("127.0.0.1", own.port, timeout=120)
            try:
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
                assert 400 <= connection.getresponse().status < 500, body[:200]
            except (BrokenPipeError, ConnectionResetError):  # it has read enough
                pass
            finally:
                connection.close()

    for messages in (shapes(), clip()):  # what is loaded once, and the process that decodes
        own.client().chat.completions.create(model="demo", messages=messages)
    time.sleep(1)
    before = resident(own.process.pid)
    for _ in range(5):
        go_through()
    time.sleep(1)
    after = resident(own.process.pid)
    print(f"\nmemory after five rounds of bad requests: {before / 2**20:.0f} → {after / 2**20:.0f} MiB")
    assert after < before + (64 << 20)
    assert own.client().chat.completions.create(model="demo", messages=shapes()).choices[0].message.content == "blue"
