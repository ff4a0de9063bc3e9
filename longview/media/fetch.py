"""Any source → bytes, under limits: local files, data URIs, and URLs (see `web`)."""

from __future__ import annotations

import base64
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from longview.errors import MediaError
from longview.media.errors import over_limit
from longview.media.text import printable
from longview.media.web import download
from longview.requests import Limits

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


@dataclass(frozen=True)
class Fetched:
    """The raw bytes of a medium, or the local file that holds them."""

    data: bytes | Path
    name: str  # safe to print: a file's name, a URL without its query
    mime: str | None = None


def fetch(
    source: str | Path | bytes,
    limits: Limits | None = None,
    max_bytes: str = "max_video_bytes",
    first: int | None = None,
) -> Fetched:
    """Get the bytes of a source: encoded bytes, a local file, a data URI or an http(s) URL.

    `max_bytes` names the field of `limits` that bounds what is held in memory; a local file stays where it is.
    Of a URL only the `first` bytes are read when that is given.

    Raises:
        MediaError: it cannot be fetched, may not be, or is over a limit.
    """
    limits = limits or Limits()
    if isinstance(source, bytes):
        _check_bytes(len(source), "the data", limits, max_bytes)
        return Fetched(source, "data")
    if isinstance(source, str):
        scheme = _SCHEME.match(source)
        kind = scheme.group(1).lower() if scheme else ""
        if kind == "data":
            return _from_data_uri(source, limits, max_bytes)
        if kind in ("http", "https"):
            return Fetched(*download(source, limits, max_bytes, first))
        if kind == "file" or (kind and source[len(kind) : len(kind) + 3] == "://"):
            raise MediaError(f"{kind}: addresses are not opened; give a path, an http(s) URL or a data URI")
    path = local_path(source, limits)
    return Fetched(path, printable(path.name))


def local_path(source: str | Path, limits: Limits | None = None) -> Path:
    """Return the regular file a path names, `~` expanded, links resolved when only some folders are open.

    Raises:
        MediaError: missing, not a file, not readable, or outside the folders that are open.
    """
    roots = limits.file_roots if limits else None
    given = printable(str(source))
    if roots == ():
        raise MediaError("local files are not opened here; send the file's bytes, a data URI or an http(s) URL")
    try:
        path = Path(source).expanduser()
        if roots is not None:
            path = path.resolve()
            if not any(path.is_relative_to(root.resolve()) for root in roots):
                raise MediaError(
                    "that file is outside the folders that are open here; move it there, or send its bytes"
                )
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise MediaError(f"there is no file {given}; check the path") from None
    except (OSError, ValueError, RuntimeError):  # a name too long, a null byte, no home to expand, no permission
        raise MediaError(f"the path {given} cannot be opened; check it and its permissions") from None
    if stat.S_ISDIR(mode):
        raise MediaError(f"{given} is a folder; give a picture or video file in it")
    if not stat.S_ISREG(mode):
        raise MediaError(f"{given} is not a regular file; give a picture or video file")
    return path


def read_file(path: Path, name: str, limits: Limits, max_bytes: str = "max_image_bytes") -> bytes:
    """Read a whole file that may not be larger than the limit named `max_bytes`."""
    try:
        with path.open("rb") as file:
            data = file.read(int(getattr(limits, max_bytes)) + 1)
            _check_bytes(max(len(data), path.stat().st_size), name, limits, max_bytes)
    except OSError:
        raise MediaError(f"{name} cannot be read; check its permissions") from None
    return data


def _from_data_uri(uri: str, limits: Limits, max_bytes: str) -> Fetched:
    header, comma, body = uri[5:].partition(",")
    if not comma:
        raise MediaError("a data URI has no comma between its type and its data; expected data:image/png;base64,…")
    mime, *parameters = [field.strip().lower() for field in header.split(";")]
    name = f"data URI ({printable(mime, 40)})" if mime else "data URI"
    if "base64" in parameters:
        data = _decode_base64(body, name, limits, max_bytes)
    else:
        _check_bytes(len(body) - 2 * body.count("%"), name, limits, max_bytes)
        data = unquote_to_bytes(body)
    return Fetched(data, name, mime or None)


def _decode_base64(text: str, name: str, limits: Limits, max_bytes: str) -> bytes:
    compact = "".join(text.split())
    if "%" in compact:  # a URI may escape +, / and =
        compact = unquote_to_bytes(compact).decode("latin-1")
    compact = compact.rstrip("=")
    _check_bytes(len(compact) * 3 // 4, name, limits, max_bytes)
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError:
        raise MediaError(f"{name} is not valid base64; encode the file's bytes again") from None


def _check_bytes(count: int, name: str, limits: Limits, max_bytes: str) -> None:
    if count > getattr(limits, max_bytes):
        raise over_limit(name, f"has {count:,} bytes", limits, max_bytes)
