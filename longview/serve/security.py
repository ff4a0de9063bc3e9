"""Who may talk to the server: a guard around the whole app, so that no route, the page's included, is outside it.

Host            localhost, an IP address, this machine's name, or one that `allowed_hosts` names: a web page that has
                its own name lead to 127.0.0.1 (DNS rebinding) is refused, as its browser sends that name
Origin          what a browser sends for a page of another site is refused, unless `cors_origins` names it
Authorization   a key, where there are any: `Bearer KEY`, or as the password of Basic, which browsers ask for
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from longview.serve.errors import APIError

OPEN_ROUTES = ("/health",)
MAX_HEADER_BYTES = 16 << 10
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """ASGI middleware: answers 401, 403 or 421 in the app's place.

    Args:
        keys: Any of them opens the server; none: it is open.
        allowed_hosts: Names under which the server is reached, besides its own.
        cors_origins: Sites whose pages may use it.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str] = (),
        allowed_hosts: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
    ) -> None:
        self.app = app
        self._keys = [_digest(key) for key in keys]
        self._hosts = {"localhost", socket.gethostname().lower(), *(host.lower() for host in allowed_hosts)}
        self._origins = {origin.lower().rstrip("/") for origin in cors_origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        error = self._error(scope, headers)
        if error is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _error(self, scope: Scope, headers: dict[str, str]) -> APIError | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return APIError(431, f"the headers are longer than {MAX_HEADER_BYTES:,} bytes", code="headers_too_large")
        host = headers.get("host", "")
        if not self._is_ours(host):
            return APIError(
                421,
                f"this server is not known as {host!r:.80}; name that with --allowed-hosts",
                code="host_not_allowed",
            )
        if scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and not self._is_same_site(origin, host):
                return APIError(
                    403,
                    f"pages of {origin!r:.80} may not use this server; name that with --cors-origins",
                    code="origin",
                )
        if self._keys and scope["path"] not in OPEN_ROUTES:
            # a browser asks the server which requests it admits, without a key, before it sends one
            preflight = scope.get("method") == "OPTIONS" and "access-control-request-method" in headers
            if not preflight and not self._admits(headers.get("authorization", "")):
                return APIError(401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        return None

    def _admits(self, authorization: str) -> bool:
        digest = tenant_of(authorization)
        return sum(hmac.compare_digest(digest, key) for key in self._keys) > 0  # all of them, in constant time

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        return name in self._hosts or _is_address(name)

    def _is_same_site(self, origin: str, host: str) -> bool:
        if origin.lower() in self._origins:
            return True
        return urlsplit(origin).netloc.lower() == host.lower()


def tenant_of(authorization: str) -> str:
    """A digest of the key in a header, which also tells whose files are whose; "" where there is none."""
    scheme, _, given = authorization.strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    elif scheme.lower() != "bearer":
        return ""
    return _digest(given.strip())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _name_of(host: str) -> str:
    """A Host header without its port, in lower case; "" where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        return name.rstrip(".") if parts.port is None or parts.port >= 0 else ""
    except ValueError:  # of the port, too
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
