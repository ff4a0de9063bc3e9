"""http(s) downloads, guarded against SSRF and endless bodies. The only place that opens a socket for media.

    parse once → resolve → check every address → connect to a checked address → read under cap and deadline
    a redirect starts again from the first step

The name is resolved once and the socket connects to the address that was checked, so DNS rebinding gains nothing.
The URL sent is rebuilt from the parts that were checked, so two parsers cannot disagree about it. No proxy, no cookie,
no credentials, no compression.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from longview.errors import MediaError
from longview.media.errors import over_limit
from longview.media.text import printable
from longview.requests import Limits

REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16

_NUMERIC = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True)
class Target:
    """A URL in checked parts: everything that is sent comes from here."""

    secure: bool
    host: str  # ASCII, lower case; an IPv6 address without brackets
    port: int
    path: str  # with the query, percent-encoded

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"

    @property
    def name(self) -> str:
        """The URL without its query, which may hold a secret."""
        return printable(self.url.partition("?")[0])


def parse(url: str) -> Target:
    """Take an http(s) URL apart.

    Raises:
        MediaError: anything two parsers could read differently, or that hides where the request goes.
    """
    if any(ord(c) <= 32 or ord(c) == 127 or c == "\\" for c in url):
        raise MediaError("a URL holds a space, a control character or a backslash; percent-encode it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise MediaError("a URL has a malformed host or port; expected https://host/path") from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise MediaError(f"{printable(scheme, 20) or 'an empty scheme'} is not fetched; expected an http or https URL")
    if "@" in parts.netloc:
        raise MediaError("a URL holds a user name or password before its host; leave it out")
    if not host or "%" in host or port == 0:
        raise MediaError("a URL has no usable host or port; expected https://host/path")
    if ":" not in host:
        host = _ascii(host)
        if _NUMERIC.fullmatch(host.rstrip(".").rpartition(".")[2]):
            _check_plain_address(host)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?[]") if parts.query else ""
    secure = scheme == "https"
    return Target(secure, host.lower(), port or (443 if secure else 80), path + query)


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, also where an IPv6 address embeds an IPv4 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        embedded = [ip.sixtofour, *(ip.teredo or ())]
        if ip.is_site_local or ip in _LOCAL_NAT64 or any(i is not None and not is_public(str(i)) for i in embedded):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def download(url: str, limits: Limits, max_bytes: str, first: int | None = None) -> tuple[bytes, str, str | None]:
    """Return the body of a URL, its name and its media type; at most the `first` bytes when that is given.

    `max_bytes` names the field of `limits` that caps the body.

    Raises:
        MediaError: it may not be fetched, the server refuses it, or it is over a limit.
    """
    if not limits.allow_urls:
        raise MediaError("URLs are not fetched here; send the file's bytes or a data URI")
    deadline = time.monotonic() + limits.fetch_seconds
    start = target = parse(url)
    for _ in range(limits.max_redirects + 1):
        _check_host(target, limits)
        try:
            reply = _request(target, limits, max_bytes, first, deadline)
        except TimeoutError:
            raise over_limit(target.name, "is not there in time", limits, _expired(deadline)) from None
        except ssl.SSLCertVerificationError:
            raise MediaError(f"{target.name} has a certificate that cannot be trusted; download it yourself") from None
        except (OSError, http.client.HTTPException, ValueError):
            raise MediaError(f"{target.name} cannot be fetched: the connection failed; check the URL") from None
        if isinstance(reply, tuple):
            return reply[0], start.name, reply[1]
        target = parse(urljoin(target.url, reply))
    raise over_limit(start.name, "redirects again and again", limits, "max_redirects")


def _expired(deadline: float) -> str:
    return "fetch_seconds" if time.monotonic() >= deadline else "connect_seconds"


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise MediaError("a URL has a malformed host name; write it in ASCII (xn--…)") from None


def _check_plain_address(host: str) -> None:
    """Refuse spellings of an IPv4 address that only some parsers accept: octal, hexadecimal, a single number."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise MediaError("a URL spells an IP address in an unusual form; write four decimal numbers") from None


def _check_host(target: Target, limits: Limits) -> None:
    hosts = limits.url_hosts
    if hosts is not None and not any(target.host == host or target.host.endswith(f".{host}") for host in hosts):
        raise MediaError(f"{target.name} is not on a host that is fetched from here ({', '.join(hosts) or 'none is'})")


def _request(
    target: Target, limits: Limits, max_bytes: str, first: int | None, deadline: float
) -> tuple[bytes, str | None] | str:
    """Send one GET; return (body, media type), or where it redirects to."""
    with _connect(target, limits, deadline) as connected:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.sock = _DeadlineSocket(connected, deadline)
        connection.putrequest("GET", target.path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", target.authority)
        connection.putheader("User-Agent", "longview")
        connection.putheader("Accept", "image/*, video/*, application/octet-stream")
        connection.putheader("Accept-Encoding", "identity")
        connection.putheader("Connection", "close")
        connection.endheaders()
        response = connection.getresponse()
        location = response.getheader("Location")
        if response.status in REDIRECTS and location:
            return location
        if response.status != HTTPStatus.OK:
            raise MediaError(f"{target.name} cannot be fetched: the server answered {response.status}; check the URL")
        if (response.getheader("Content-Encoding") or "identity").strip().lower() != "identity":
            raise MediaError(f"{target.name} came compressed although that was not asked for; download it yourself")
        mime = (response.getheader("Content-Type") or "").partition(";")[0].strip().lower() or None
        return _body(response, target.name, limits, max_bytes, first), mime


def _body(response: http.client.HTTPResponse, name: str, limits: Limits, max_bytes: str, first: int | None) -> bytes:
    cap = int(getattr(limits, max_bytes))
    if first is None and (response.length or 0) > cap:
        raise over_limit(name, f"has {response.length:,} bytes", limits, max_bytes)
    body = bytearray()
    while first is None or len(body) < first:
        chunk = response.read1(CHUNK)
        if not chunk:
            break
        body += chunk
        if len(body) > cap:
            raise over_limit(name, "goes on", limits, max_bytes)
    if first is None and response.length:
        raise MediaError(f"{name} broke off with {response.length:,} bytes missing; try again")
    return bytes(body if first is None else body[:first])


def _connect(target: Target, limits: Limits, deadline: float) -> socket.socket:
    """Open a socket to an address of the host that has been checked, with TLS for https."""
    addresses = _resolve(target, min(deadline, time.monotonic() + limits.connect_seconds))
    if not limits.allow_private_addresses and not all(is_public(address) for address in addresses):
        raise MediaError(
            f"{target.name} leads to a private address, which is not fetched; "
            "allow it with --allow-private-addresses or Limits(allow_private_addresses=True)"
        )
    until = min(deadline, time.monotonic() + limits.connect_seconds)
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            connected = _connect_to(address, target.port, _remaining(until))
        except OSError as error:
            failure = error
            continue
        if not target.secure:
            return connected
        try:
            return ssl.create_default_context().wrap_socket(connected, server_hostname=target.host)
        except BaseException:
            connected.close()
            raise
    raise failure


def _connect_to(address: str, port: int, timeout: float) -> socket.socket:
    """Connect to an IP address, with no resolver in between."""
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def _resolve(target: Target, until: float) -> list[str]:
    """Return every address of the host. The system's resolver has no timeout, so it runs in a thread."""
    results: queue.Queue[list[str] | None] = queue.Queue()

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            results.put(None)
        else:
            results.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))

    threading.Thread(target=resolve, daemon=True, name="longview-resolve").start()
    try:
        addresses = results.get(timeout=_remaining(until))
    except queue.Empty:
        raise TimeoutError from None
    if not addresses:
        raise MediaError(f"{target.name} cannot be fetched: its host is not known; check the URL and the network")
    return addresses


def _remaining(until: float) -> float:
    remaining = until - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


class _DeadlineSocket:
    """A socket whose every operation ends by a deadline, however slowly the server sends."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._socket.settimeout(_remaining(self._deadline))
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_DeadlineReader(self._socket, self._deadline), CHUNK)

    def close(self) -> None:
        """The caller closes the socket."""


class _DeadlineReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(_remaining(self._deadline))
        return self._socket.recv_into(buffer)
