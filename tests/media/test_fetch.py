"""Fetching under limits: not one byte reaches an address that is not public."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.server
import ipaddress
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from media_samples import encoded, gradient, one_clear_line

from longview.errors import LongviewError, MediaError
from longview.media import open_medium, sniff, web
from longview.media.fetch import fetch
from longview.messages import Part
from longview.requests import Limits

PICTURE = encoded(gradient())
HERE = Limits(allow_private_addresses=True)  # 127.0.0.1 servers of these tests


class Server:
    """A server on 127.0.0.1 that remembers what it was asked."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        seen = self.seen

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, dict(self.headers)))
                with contextlib.suppress(OSError):
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()


def reply(body: bytes = PICTURE, status: int = 200, **headers: str) -> Callable[..., None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def refusal(source: object, limits: Limits | None = None) -> str:
    with pytest.raises(LongviewError) as caught:
        fetch(source, limits)  # type: ignore[arg-type]
    return one_clear_line(caught.value)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A private listener that must never be spoken to."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.05)
        yield listening


def touched(listener: socket.socket) -> bool:
    with contextlib.suppress(TimeoutError):
        listener.accept()[0].close()
        return True
    return False


PRIVATE_HOSTS = [
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "2130706433", "0x7f000001", "0x7f.0.0.1", "0X7F.1",
    "017700000001", "0177.0.0.1", "0177.0.0.01", "127.0.0.01", "127.0x0.0.1", "00000177.1", "127.0.0.1.", "127.1.",
    "0", "0.0.0.0", "0x0", "00", "localhost", "LOCALHOST", "localhost.", "10.0.0.1", "10.255.255.255", "172.16.0.1",
    "172.31.255.255", "192.168.0.1", "192.168.1.254", "169.254.169.254", "169.254.0.1", "2852039166", "0xa9fea9fe",
    "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[::127.0.0.1]",
    "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]",
    "[2001:0:7f00:1::1]", "[fe80::1]", "[fe80::1%25lo]", "[fe80::1%lo]", "[fc00::1]", "[fd12:3456::1]", "[fec0::1]",
    "[ff02::1]", "[2001:db8::1]", "[100::1]", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "127。0。0。1", "ⓛocalhost",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_no_spelling_of_a_private_address_is_connected_to(host, listener):
    port = listener.getsockname()[1]
    for scheme in ("http", "https"):
        message = refusal(f"{scheme}://{host}:{port}/a.png")
        assert "connection failed" not in message, "it was tried"
    assert not touched(listener)


TRICKS = [
    "http://user@127.0.0.1:{port}/", "http://user:secret@127.0.0.1:{port}/", "http://8.8.8.8@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@8.8.8.8/", "http://8.8.8.8\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@8.8.8.8/",
    "http://127.0.0.1:{port}\\.8.8.8.8/", "http:\\\\127.0.0.1:{port}\\", "http:/127.0.0.1:{port}/", "http:127.1:{port}",
    "http:///127.0.0.1:{port}/", "http://:{port}/", "http://", "http://?", "https:///", "http://[::1/", "http://::1]:{port}/",
    "http://127.0.0.1:{port}/a b", "http://127.0.0.1:{port}/\r\nHost: x", "http://127.0.0.1:{port}/\tx",
    "http://127.0.0.1\0:{port}/", "http://127.0.0.1:{port}\n/", " http://127.0.0.1:{port}/", "http://127.0.0.1:{port}/\x7f",
    "http://%31%32%37.0.0.1:{port}/", "http://127.0.0.1%2f:{port}/", "http://127.0.0.1:99999/", "http://127.0.0.1:0/",
    "http://127.0.0.1:-1/", "http://127.0.0.1:0x50/", "http://127.0.0.1:{port}#@8.8.8.8/", "http://127.0.0.1:{port}?@8.8.8.8/",
    "HTTP://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/_x", "dict://127.0.0.1:{port}/d",
    "file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file:etc/passwd", "jar:http://127.0.0.1:{port}!/",
    "rtsp://127.0.0.1:{port}/", "concat://127.0.0.1:{port}/", "unix://127.0.0.1:{port}", "http://" + "a" * 99 + ".com/",
    "http://a..b/", "http://xn--0.com\u0000/", "http://-.127.0.0.1:{port}/",
]  # fmt: skip


@pytest.mark.parametrize("url", TRICKS)
def test_no_trick_in_a_url_reaches_a_private_listener(url, listener, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", only_numbers(socket.getaddrinfo))
    message = refusal(url.replace("{port}", str(listener.getsockname()[1])))
    assert "secret" not in message
    assert not touched(listener)


def only_numbers(resolve: Callable[..., list]) -> Callable[..., list]:
    """The system's resolver, without asking the network."""

    def answer(host: str, port: int, **how: object) -> list:
        return resolve(host, port, flags=socket.AI_NUMERICHOST, **how)

    return answer


def resolving(*answers: list[str]) -> Callable[..., list]:
    """A resolver that gives these addresses, one list a call; the last one again and again."""
    remaining = list(answers)

    def answer(host: str, port: int, **_: object) -> list:
        addresses = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return answer


def test_one_private_address_among_public_ones_is_enough_to_refuse(listener, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving(["8.8.8.8", "127.0.0.1"]))
    assert "private address" in refusal(f"http://two-faced.example:{listener.getsockname()[1]}/a.png")
    assert not touched(listener)


def test_dns_rebinding_gains_nothing(listener, monkeypatch):
    """The name is asked once; the connection goes to the address that was checked."""
    asked = resolving(["8.8.8.8"], ["127.0.0.1"])
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    dialled = []

    def dial(_: socket.socket, address: tuple[str, int]) -> None:
        dialled.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", dial)
    port = listener.getsockname()[1]
    assert "connection failed" in refusal(f"http://rebinding.example:{port}/a.png")
    assert dialled == [("8.8.8.8", port)]
    assert not touched(listener)


def test_public_addresses_are_public():
    for address in ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "2002:808:808::1", "64:ff9b::808:808"):
        assert web.is_public(address)


def test_no_private_network_is_public():
    for network in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"):
        for address in (ipaddress.ip_network(network)[1], ipaddress.ip_network(network)[-2]):
            assert not web.is_public(str(address))
            assert not web.is_public(f"::ffff:{address}")


def test_ambiguous_urls_are_refused_even_where_private_addresses_are_allowed(listener):
    port = listener.getsockname()[1]
    urls = [
        "http://user@{}/",
        "http://user:secret@{}/",
        "http://{}\\/",
        "http://{}/\\x",
        "http://{}/a b",
        "http://{}/\n",
    ]
    for url in [
        *(url.format(f"127.0.0.1:{port}") for url in urls),
        f"http://127.1:{port}/",
        f"http://2130706433:{port}/",
    ]:
        assert "secret" not in refusal(url, HERE)
    assert not touched(listener)


# Downloads


def test_a_picture_is_fetched_with_its_name_and_without_its_query():
    with serving(reply(Content_Type="image/png; charset=x")) as server:
        fetched = fetch(f"{server.url}/fotos/k%C3%A4se.png?token=secret#part", HERE)
        assert fetched.data == PICTURE
        assert fetched.mime == "image/png"
        assert fetched.name == f"{server.url}/fotos/k%C3%A4se.png"
        path, headers = server.seen[0]
    assert path == "/fotos/k%C3%A4se.png?token=secret"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert {"Cookie", "Authorization", "Referer"}.isdisjoint(headers)


def test_a_name_keeps_its_host_header_while_the_checked_address_is_dialled(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving(["127.0.0.1"]))
    with serving(reply()) as server:
        assert fetch(f"http://Pictures.Example:{server.port}/a.png", HERE).data == PICTURE
        assert server.seen[0][1]["Host"] == f"pictures.example:{server.port}"


def test_characters_outside_ascii_are_encoded():
    with serving(reply()) as server:
        fetch(f"{server.url}/bild/käse 1.png".replace(" ", "%20") + "?größe=1", HERE)
        assert server.seen[0][0] == f"/bild/{quote('käse')}%201.png?{quote('größe')}=1"


def test_proxies_of_the_environment_are_not_asked(listener, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
    with serving(reply()) as server:
        assert fetch(f"{server.url}/a.png", HERE).data == PICTURE
    assert not touched(listener)


def redirecting(*locations: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    """Answer /0 with a redirect to the first location, /1 with one to the second, …; then with the picture."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        step = int(handler.path.strip("/") or 0)
        if step < len(locations):
            reply(b"", 302, Location=locations[step], Set_Cookie="a=b")(handler)
        else:
            reply()(handler)

    return answer


def test_three_redirects_are_followed_and_a_fourth_is_not():
    with serving(redirecting("/1", "2", "//127.0.0.1:{port}/3".replace("{port}", "0"))) as server:
        assert "no usable host or port" in refusal(f"{server.url}/0", HERE)
    with serving(redirecting("/1", "2", "/3")) as server:
        fetched = fetch(f"{server.url}/0", HERE)
        assert fetched.data == PICTURE
        assert fetched.name == f"{server.url}/0"
        assert all("Cookie" not in headers for _, headers in server.seen)
    with serving(redirecting("/1", "2", "/3", "/4")) as server:
        assert "--max-redirects" in refusal(f"{server.url}/0", HERE)
        assert len(server.seen) == 4


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://x/", "data:image/png;base64,AAAA", "http://user:secret@8.8.8.8/", "\\\\127.0.0.1\\a",
     "javascript:1", "http://:80/", "gopher://127.0.0.1/", "http://8.8.8.8 /", "http://0x7f.1/"],
)  # fmt: skip
def test_a_redirect_to_anything_but_a_plain_url_is_refused(location):
    with serving(redirecting(location)) as server:
        message = refusal(f"{server.url}/0", HERE)
    assert "secret" not in message
    assert len(server.seen) == 1


def test_a_redirect_into_a_private_network_is_refused(listener, monkeypatch):
    """The first server passes as public; where it points to does not."""
    private = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    judge = web.is_public
    with serving(redirecting(private)) as server:
        seen = []
        monkeypatch.setattr(
            web, "is_public", lambda address: (not seen and (seen.append(address) or True)) or judge(address)
        )
        assert "private address" in refusal(f"{server.url}/0")
        assert len(server.seen) == 1
    assert not touched(listener)


def test_the_size_cap_holds_with_and_without_an_announced_length():
    limit = Limits(allow_private_addresses=True, max_video_bytes=len(PICTURE))
    tight = Limits(allow_private_addresses=True, max_video_bytes=len(PICTURE) - 1)

    def unannounced(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(PICTURE)

    for answer in (reply(), unannounced):
        with serving(answer) as server:
            assert fetch(server.url, limit).data == PICTURE
            assert "--max-video-bytes" in refusal(server.url, tight)


def test_an_endless_body_stops_at_the_cap():
    sent = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))
            sent.append(1 << 16)

    with serving(answer) as server:
        limits = Limits(allow_private_addresses=True, max_video_bytes=1 << 20)
        assert "--max-video-bytes" in refusal(server.url, limits)
    time.sleep(0.05)
    assert sum(sent) < 32 << 20  # the cap, and what the system's buffers swallowed


def test_an_endless_chunked_body_stops_at_the_cap():
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")

    with serving(answer) as server:
        limits = Limits(allow_private_addresses=True, max_video_bytes=1 << 20)
        assert "--max-video-bytes" in refusal(server.url, limits)


def drip_body(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def drip_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def drip_chunk_size(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"0")
        time.sleep(0.02)


def silence(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(3)


@pytest.mark.parametrize("answer", [drip_body, drip_headers, drip_chunk_size, silence])
def test_a_slow_server_is_given_up_at_the_deadline(answer):
    with serving(answer) as server:
        started = time.monotonic()
        message = refusal(server.url, Limits(allow_private_addresses=True, fetch_seconds=0.4))
        assert "--fetch-seconds" in message
        assert 0.3 < time.monotonic() - started < 1.5


def test_redirects_share_one_deadline():
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        reply(b"", 302, Location="/again")(handler)

    with serving(answer) as server:
        started = time.monotonic()
        limits = Limits(allow_private_addresses=True, fetch_seconds=0.5, max_redirects=50)
        assert "--fetch-seconds" in refusal(server.url, limits)
        assert time.monotonic() - started < 1.5


def test_a_resolver_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    started = time.monotonic()
    message = refusal("http://slow.example/", Limits(connect_seconds=0.2))
    assert "--connect-seconds" in message
    assert time.monotonic() - started < 1


def test_compressed_answers_are_not_accepted():
    with serving(reply(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip")) as server:
        assert "compressed" in refusal(server.url, HERE)


@pytest.mark.parametrize("status", [204, 206, 304, 401, 403, 404, 410, 418, 429, 500, 503])
def test_every_other_status_is_named(status):
    with serving(reply(b"<secret/>", status)) as server:
        message = refusal(f"{server.url}/a.png?key=secret", HERE)
    assert str(status) in message
    assert "secret" not in message


def test_a_body_that_breaks_off_is_refused():
    with serving(reply(PICTURE, Content_Length=str(len(PICTURE) + 10))) as server:
        assert "10 bytes missing" in refusal(server.url, HERE)


JUNK = [
    b"",
    b"SSH-2.0-OpenSSH\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
    b"\0" * 99,
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"b" * 99_999,
]


@pytest.mark.parametrize("junk", JUNK)
def test_a_server_that_does_not_speak_http_is_refused(junk):
    with serving(lambda handler: handler.wfile.write(junk)) as server:
        assert "cannot be fetched" in refusal(server.url, HERE)


def test_a_closed_port_is_refused():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "connection failed" in refusal(f"http://127.0.0.1:{closed.getsockname()[1]}/", HERE)


def test_urls_can_be_switched_off_or_held_to_some_hosts(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving(["127.0.0.1"]))
    with serving(reply()) as server:
        assert "not fetched here" in refusal(server.url, Limits(allow_urls=False, allow_private_addresses=True))
        assert server.seen == []
        some = Limits(allow_private_addresses=True, url_hosts=("example.org",))
        for host, allowed in {
            "example.org": True,
            "cdn.example.org": True,
            "badexample.org": False,
            "a.com": False,
        }.items():
            url = f"http://{host}:{server.port}/a.png"
            if allowed:
                assert fetch(url, some).data == PICTURE
            else:
                assert "example.org" in refusal(url, some)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for pictures.example that only these tests trust."""
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, chain = folder / "key.pem", folder / "chain.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    extra = ["-addext", "subjectAltName=DNS:pictures.example", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command.split(), *extra], check=True, capture_output=True)
    return chain, key


@contextlib.contextmanager
def serving_tls(certificate: tuple[Path, Path], names: list[str | None]) -> Iterator[Server]:
    with serving(reply()) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        context.sni_callback = lambda _socket, name, _context: names.append(name)
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        server.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        yield server


def test_a_pinned_address_still_proves_its_name(certificate, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", resolving(["127.0.0.1"]))
    names: list[str | None] = []
    with serving_tls(certificate, names) as server:
        url = f"https://pictures.example:{server.port}/a.png"
        assert "certificate" in refusal(url, HERE)
        trusting = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting(cafile=str(certificate[0])))
        assert fetch(url, HERE).data == PICTURE
        assert names[-1] == "pictures.example"
        assert "certificate" in refusal(f"https://other.example:{server.port}/a.png", HERE)


def test_a_fetched_picture_opens_and_a_fetched_page_is_called_a_page():
    with serving(reply()) as server:
        medium = open_medium(Part("image", source=f"{server.url}/a.png"), limits=HERE)
        assert (medium.width, medium.height) == (48, 32)
        assert sniff(f"{server.url}/a.png", HERE) == "image"
    with serving(reply(b"<html>please log in</html>")) as server, pytest.raises(MediaError, match="web page"):
        open_medium(Part("image", source=f"{server.url}/a.png"), limits=HERE)


# Data URIs


def test_data_uris_are_read_in_every_spelling():
    text = base64.b64encode(PICTURE).decode()
    spellings = [
        f"data:image/png;base64,{text}",
        f"DATA:image/png;BASE64,{text}",
        f"data:;base64,{text}",
        f"data:image/*;base64,{text}",
        f"data:image/png;name=a.png;base64,{text.rstrip('=')}",
        "data:image/png;base64," + "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        f"data:image/png;base64,{quote(text, safe='')}",
        f"data:image/png,{quote(PICTURE, safe='')}",
    ]
    for spelling in spellings:
        assert fetch(spelling).data == PICTURE
    assert fetch(spellings[0]).mime == "image/png"
    assert text[:20] not in fetch(spellings[0]).name


@pytest.mark.parametrize(
    "uri", ["data:", "data:image/png;base64", "data:image/png;base64,!!!!", "data:;base64,A", "data:;base64,é"]
)
def test_broken_data_uris_are_refused(uri):
    assert "data" in refusal(uri)


def test_a_data_uri_is_measured_before_it_is_decoded():
    text = base64.b64encode(PICTURE).decode()
    for uri in (f"data:image/png;base64,{text}", f"data:image/png,{quote(PICTURE, safe='')}"):
        assert fetch(uri, Limits(max_video_bytes=len(PICTURE))).data == PICTURE
        assert "--max-video-bytes" in refusal(uri, Limits(max_video_bytes=len(PICTURE) - 1))


# Local files


def test_local_files_can_be_held_to_some_folders(tmp_path):
    inside, outside = tmp_path / "open", tmp_path / "open-not"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").write_bytes(PICTURE)
    (inside / "link.png").symlink_to(outside / "a.png")
    (inside / "fine.png").symlink_to(inside / "a.png")
    some = Limits(file_roots=(inside,))
    assert fetch(inside / "a.png", some).data == inside / "a.png"
    assert fetch(inside / "fine.png", some).data == inside / "a.png"
    for path in (outside / "a.png", inside / "link.png", inside / ".." / "open-not" / "a.png", Path("/etc/passwd")):
        message = refusal(path, some)
        assert "outside" in message
        assert str(tmp_path) not in message
    assert "outside" in refusal(inside / ".." / "gone.png", some), "what exists outside is not told"
    assert "not opened here" in refusal(inside / "a.png", Limits(file_roots=()))


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(PICTURE)
    assert fetch("~/a.png").data == tmp_path / "a.png"
    assert "cannot be opened" in refusal("~nobody-has-this-name/a.png")


def test_a_colon_in_a_file_name_is_no_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scene:1.png").write_bytes(PICTURE)
    assert fetch("scene:1.png").name == "scene:1.png"


def test_only_one_module_opens_sockets():
    import longview

    root = Path(longview.__path__[0]) / "media"
    users = {p.name for p in root.rglob("*.py") if "import socket" in p.read_text() or "http.client" in p.read_text()}
    assert users == {"web.py"}
    others = [
        p for p in root.rglob("*.py") if any(word in p.read_text() for word in ("urllib.request", "requests", "httpx"))
    ]
    assert [p.name for p in others if "import requests" in p.read_text() or "urllib.request" in p.read_text()] == []


def test_the_package_imports_no_torch_and_no_av():
    code = "import sys, longview.media; print([m for m in ('torch', 'av', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
