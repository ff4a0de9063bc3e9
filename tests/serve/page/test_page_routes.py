"""What the page's routes refuse: other hosts and sites, missing keys, addresses in the place of files, other routes."""

from __future__ import annotations

import http.server
import json
import signal
import threading
from collections.abc import Iterator

import httpx
import pytest
from serving import ROOT, Server, running

from longview.serve.errors import APIError
from longview.serve.page.shield import check

ROUTES = (
    "/",
    "/config",
    "/theme.css",
    "/manifest.json",
    "/favicon.ico",
    "/gradio_api/info",
    "/gradio_api/queue/data?session_hash=a",
    "/gradio_api/heartbeat/a",
    "/gradio_api/file=/etc/hostname",
    "/gradio_api/upload_progress?upload_id=a",
    "/page/media/file-1",
    "/page/saved/1",
)
POSTS = ("/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel")
CLOSED = (
    "/gradio_api/proxy=http://127.0.0.1:{port}/",
    "/gradio_api/proxy=https://huggingface.co/",
    "/gradio_api/file=http://127.0.0.1:{port}/",
    "/gradio_api/file=https://example.org/a.png",
    "/gradio_api/file=//127.0.0.1:{port}/",
    "/gradio_api/file=HTTP://127.0.0.1:{port}/",
    "/gradio_api/file=ftp://127.0.0.1:{port}/",
    "/gradio_api/runs",
    "/gradio_api/deep_link",
    "/gradio_api/openapi.json",
    "/gradio_api/mcp",
    "/gradio_api/vibe-code",
    "/gradio_api/stream/a/b/c/playlist.m3u8",
    "/monitoring",
    "/docs",
    "/login",
)
ADDRESSES = (
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://[::1]:{port}/",
    "http://2130706433:{port}/",
    "https://example.org/a.png",
    "HTTP://127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    " http://127.0.0.1:{port}/",
    "file:///etc/hostname",
    "data:image/png;base64,AAAA",
    "relative.png",
)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    with running("--api-key", "secret", page=True) as started:
        yield started


@pytest.fixture
def trap() -> Iterator[tuple[int, list[str]]]:
    """A server that nobody is to ask: its port, and who did."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served.server_port, asked
    served.shutdown()


def test_every_route_of_the_page_needs_the_key(guarded):
    for route in ROUTES:
        assert httpx.get(guarded.address + route).status_code == 401, route
    for route in POSTS:
        assert httpx.post(guarded.address + route, json={}).status_code == 401, route
    page = httpx.get(guarded.address, auth=("", "secret"))
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_pages_of_other_sites_and_other_names_are_refused(guarded):
    key = {"Authorization": "Bearer secret"}
    for route in ROUTES:
        found = httpx.get(guarded.address + route, headers={**key, "Host": "evil.example"})
        assert found.status_code == 421, route
    for origin in ("http://evil.example", "null", f"http://localhost:{guarded.port + 1}"):
        for route in POSTS:
            found = httpx.post(guarded.address + route, json={}, headers={**key, "Origin": origin})
            assert found.status_code == 403, route
        found = httpx.get(f"{guarded.address}/config", headers={**key, "Origin": origin})
        assert not [name for name in found.headers if name.startswith("access-control")]


def test_the_pages_routes_open_no_address(with_page, trap):
    port, asked = trap
    for route in CLOSED:
        found = httpx.get(with_page.address + route.format(port=port))
        assert found.status_code == 404, route
        assert set(found.json()) == {"error"}, route
    for address in ADDRESSES:
        for extra in ({}, {"meta": {"_type": "gradio.FileData"}}):
            file = {"path": address.format(port=port), "orig_name": "a.png", **extra}
            body = {"data": [{"text": "What?", "files": [file]}], "fn_index": 0, "session_hash": "a", "trigger_id": 1}
            found = httpx.post(f"{with_page.address}/gradio_api/queue/join", json=body)
            assert found.status_code == 400, address
            assert found.json()["error"]["code"] == "invalid_url"
    assert asked == []


def test_files_that_were_not_uploaded_are_not_shown(with_page):
    for path in ("/etc/hostname", str(ROOT / "pyproject.toml"), "/proc/self/environ"):
        assert httpx.get(f"{with_page.address}/gradio_api/file={path}").status_code in (403, 404)
    body = {"data": [{"text": "", "files": [{"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}]}]}
    joined = httpx.post(
        f"{with_page.address}/gradio_api/queue/join", json={**body, "fn_index": 0, "session_hash": "b", "trigger_id": 1}
    )
    if joined.status_code == 200:
        lines = httpx.get(f"{with_page.address}/gradio_api/queue/data?session_hash=b", timeout=30).text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
        assert [event["success"] for event in events if event["msg"] == "process_completed"] == [False]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        (json.dumps({"data": [{"path": {"path": "x"}}]}).encode(), 400),
        (b'{"data": [{"path": "//example.org/x"}]}', 400),
    ],
)
def test_what_is_sent_to_the_page_is_checked(body, status):
    with pytest.raises(APIError) as caught:
        check(body)
    assert caught.value.status == status


def test_local_paths_and_nothing_pass_the_check():
    check(b'{"data": [{"path": "/tmp/a.png"}, {"path": null}, "http://example.org", {"url": "http://example.org"}]}')


def test_the_api_is_what_it_was_beside_the_page(with_page):
    assert httpx.get(f"{with_page.address}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    wrong = httpx.get(f"{with_page.address}/v1/chat/completions")
    assert wrong.status_code == 405
    assert "error" in wrong.json()
    assert httpx.post(f"{with_page.address}/", json={}).status_code in (404, 405)
    assert httpx.post(f"{with_page.address}/gradio_api/queue/join", content=b"{}").status_code == 415
    form = httpx.post(f"{with_page.address}/gradio_api/upload", content=iter([b"a"]))
    assert form.status_code == 411
    assert "/" not in httpx.get(f"{with_page.address}/openapi.json").json()["paths"]


def test_a_medium_of_the_page_is_shown_as_what_it_is_and_to_its_owner_only(guarded):
    client = guarded.client("secret")
    with (ROOT / "examples" / "clip.mp4").open("rb") as file:
        id = client.files.create(file=file, purpose="user_data").id
    found = httpx.get(f"{guarded.address}/page/media/{id}", auth=("", "secret"), headers={"Range": "bytes=0-9"})
    assert (found.status_code, found.headers["content-type"], len(found.content)) == (206, "video/mp4", 10)
    assert found.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{guarded.address}/page/media/file-none", auth=("", "secret")).status_code == 404


def test_without_the_page_there_is_the_api_alone(server):
    assert httpx.get(server.address).status_code == 404
    assert httpx.get(f"{server.address}/v1/models").status_code == 200


def test_a_tab_that_stays_open_does_not_hold_the_server_up(guarded):  # the last one, as it ends the server
    route = f"{guarded.address}/gradio_api/heartbeat/abc"
    with httpx.stream("GET", route, auth=("", "secret")) as beating:
        next(beating.iter_raw())
        guarded.process.send_signal(signal.SIGTERM)
        assert guarded.process.wait(30) == 0  # it would wait for 60 s for a request that runs
