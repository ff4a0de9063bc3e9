"""Files that clients upload once and ask about often: streamed to disk, stored by content, deleted when they expire.

    folder/blobs/<SHA-256>         the bytes, once, however often they are uploaded
    folder/files/<id>.json         what `GET /v1/files/<id>` says, and whose it is

A file's path is that of its content, so the second question about a film finds the engine's caches filled.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from longview.errors import MediaError
from longview.media import sniff
from longview.media.text import printable
from longview.requests import Limits
from longview.serve.errors import APIError, invalid

MAX_FIELD_BYTES = 1 << 10
MAX_NAME = 200
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


@dataclass(frozen=True)
class StoredFile:
    """One upload."""

    id: str
    digest: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    kind: str
    """image or video, by content."""
    tenant: str = ""
    """A digest of the key that it was uploaded with: other keys do not see it."""

    def body(self) -> dict[str, Any]:
        """As OpenAI's `file` object."""
        shown = {name: value for name, value in asdict(self).items() if name not in ("digest", "tenant", "kind")}
        return {
            **shown,
            "object": "file",
            "status": "processed",
            "longview": {"kind": self.kind},
        }


@dataclass
class Upload:
    """A form that is being read: its file, and the few fields beside it."""

    path: Path
    size: int = 0
    filename: str | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    fields: dict[str, str] = field(default_factory=dict)


class FileStore:
    """
    Args:
        folder: None: a temporary one, deleted by `close`.
        max_bytes: Of one file.
        quota: Of all files.
        seconds: How long a file is kept, unless its upload says otherwise.
    """

    def __init__(self, folder: Path | None, limits: Limits, max_bytes: int, quota: int, seconds: int) -> None:
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="longview-files-")) if folder is None else folder
        self._limits = replace(limits, file_roots=None)
        self._max_bytes, self._quota, self._seconds = max_bytes, quota, seconds
        self._blobs, self._records = self.folder / "blobs", self.folder / "files"
        self._make_folders()
        self._files = self._load()

    def _make_folders(self) -> None:
        """Make the folders, also where somebody has deleted them meanwhile, as cleaners of temporary files do."""
        for each in (self._blobs, self._records):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _new_blob(self) -> tuple[int, str]:
        """
        Raises:
            APIError: there is no place for a file.
        """
        try:
            self._make_folders()
            return tempfile.mkstemp(dir=self._blobs, suffix=".part")
        except OSError as error:
            raise _not_stored(error) from None

    def _load(self) -> dict[str, StoredFile]:
        for unfinished in (*self._blobs.glob("*.part"), *self._records.glob("*.part")):
            unfinished.unlink(missing_ok=True)
        records = [json.loads(record.read_text(encoding="utf-8")) for record in self._records.glob("*.json")]
        stored = sorted((StoredFile(**record) for record in records), key=lambda each: each.created_at)
        return {each.id: each for each in stored if self._blob(each.digest).exists()}

    def close(self) -> None:
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, each content once."""
        return sum({stored.digest: stored.bytes for stored in self._files.values()}.values())

    @property
    def room(self) -> int:
        """Bytes that may still come."""
        return self._quota - self.num_bytes

    def temporary(self) -> Any:
        """A file that is deleted when it is closed, beside the others.

        Raises:
            APIError: there is no place for a file.
        """
        try:
            self._make_folders()
            return tempfile.NamedTemporaryFile(dir=self.folder)
        except OSError as error:
            raise _not_stored(error) from None

    # ── what is there ──

    def find(self, id: str, tenant: str) -> StoredFile:
        """
        Raises:
            APIError: no such file, or it has expired.
        """
        self.expire()
        stored = self._files.get(id)
        if stored is not None and not self._blob(stored.digest).exists():
            self.delete(stored)
            stored = None
        if stored is None or stored.tenant != tenant:
            raise APIError(
                404,
                f"there is no file {printable(id, 80)!r}; it may have expired: upload it again",
                "file_id",
                "file_not_found",
            )
        return stored

    def path(self, stored: StoredFile) -> Path:
        return self._blob(stored.digest)

    def listed(self, tenant: str, purpose: str | None = None) -> list[StoredFile]:
        """The newest first."""
        self.expire()
        found = [each for each in self._files.values() if each.tenant == tenant and purpose in (None, each.purpose)]
        return found[::-1]

    def delete(self, stored: StoredFile) -> None:
        del self._files[stored.id]
        (self._records / f"{stored.id}.json").unlink(missing_ok=True)
        if all(other.digest != stored.digest for other in self._files.values()):
            self._blob(stored.digest).unlink(missing_ok=True)  # a request that reads it keeps it open

    def expire(self) -> None:
        """Delete what has expired."""
        now = time.time()
        for stored in [each for each in self._files.values() if each.expires_at <= now]:
            self.delete(stored)

    # ── what comes ──

    async def receive(self, content_type: str, body: AsyncIterator[bytes], tenant: str) -> StoredFile:
        """Read a form with a file, as it comes in, to disk.

        Raises:
            APIError: it is no such form, its file is no picture or video, or there is no room for it.
        """
        self.expire()
        handle, name = self._new_blob()
        upload = Upload(Path(name))
        try:
            with os.fdopen(handle, "wb") as file:
                await self._read_form(content_type, body, upload, file)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            return await self._keep(upload, tenant)
        except OSError as error:
            raise _not_stored(error) from None
        finally:
            upload.path.unlink(missing_ok=True)

    async def add(self, path: Path, filename: str, tenant: str, link: bool = False) -> StoredFile:
        """Keep a file of this machine. One that is there already is kept for longer.

        Args:
            link: Keep the file itself, which nobody will change, rather than a copy.

        Raises:
            APIError: it is no picture or video, or there is no room for it.
        """
        self.expire()
        handle, name = self._new_blob()
        os.close(handle)
        upload = Upload(Path(name), filename=filename, fields={"purpose": "user_data"})
        try:
            left = min(self._max_bytes, self.room)
            if path.stat().st_size > left:
                raise APIError(413, f"{filename} is larger than the {max(0, left):,} bytes left", "file", "quota")
            await asyncio.to_thread(_take, path, upload, link)
            digest = upload.digest.hexdigest()
            for stored in self._files.values():
                if (stored.digest, stored.filename, stored.tenant) == (digest, printable(filename, MAX_NAME), tenant):
                    if not self._blob(digest).exists():
                        os.replace(upload.path, self._blob(digest))
                    longer = replace(stored, expires_at=max(stored.expires_at, int(time.time()) + self._seconds))
                    return self._record(longer)
            return await self._keep(upload, tenant)
        except OSError as error:
            raise _not_stored(error) from None
        finally:
            upload.path.unlink(missing_ok=True)

    async def _read_form(self, content_type: str, body: AsyncIterator[bytes], upload: Upload, file: Any) -> None:
        _, options = parse_options_header(content_type)
        if b"boundary" not in options:
            raise APIError(415, "the body is no form; send Content-Type: multipart/form-data", "file")
        form, left = _Form(upload, file, self._max_bytes), self.room
        try:
            parser = MultipartParser(options[b"boundary"], form.callbacks)
            async for chunk in body:
                parser.write(chunk)
                if upload.size > left:
                    raise APIError(
                        413, f"all files together hold {self._quota:,} bytes at most; delete some", "file", "quota"
                    )
            parser.finalize()
        except (FormParserError, ValueError):
            raise invalid("the form is malformed", "file") from None
        if not form.is_whole:
            raise invalid("the form has no end", "file")
        if upload.filename is None:
            raise invalid("the form has no file", "file")

    async def _keep(self, upload: Upload, tenant: str) -> StoredFile:
        purpose = upload.fields.get("purpose")
        if purpose not in PURPOSES:
            raise invalid(f"purpose is {purpose!r:.40}; give one of {', '.join(PURPOSES)}", "purpose")
        seconds = _seconds_of(upload.fields, self._seconds)
        try:
            kind = await asyncio.to_thread(sniff, upload.path, self._limits)
        except MediaError as error:
            text = str(error).replace(upload.path.name, upload.filename or "the file")
            raise invalid(text, "file", "invalid_media") from None
        digest, now = upload.digest.hexdigest(), int(time.time())
        if not self._blob(digest).exists():
            os.replace(upload.path, self._blob(digest))
        stored = StoredFile(
            id=f"file-{secrets.token_hex(12)}",
            digest=digest,
            bytes=upload.size,
            created_at=now,
            expires_at=now + seconds,
            filename=printable(upload.filename or "", MAX_NAME),
            purpose=purpose,
            kind=kind,
            tenant=tenant,
        )
        return self._record(stored)

    def _record(self, stored: StoredFile) -> StoredFile:
        record = self._records / f"{stored.id}.json"
        unfinished = record.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(stored)), encoding="utf-8")
        os.replace(unfinished, record)
        self._files[stored.id] = stored
        return stored


def _not_stored(error: OSError) -> APIError:
    text = f"the file cannot be stored ({error.strerror}); see that the server can write in its --files folder"
    return APIError(507, text, "file", "storage")


def _take(path: Path, upload: Upload, link: bool) -> None:
    """Copy or link a file to the path of an upload."""
    if link:
        upload.path.unlink()
        os.link(path, upload.path)
    with path.open("rb") as source, upload.path.open("rb" if link else "wb") as file:
        while chunk := source.read(1 << 20):
            upload.size += len(chunk)
            upload.digest.update(chunk)
            if not link:
                file.write(chunk)
        if not link:
            file.flush()
            os.fsync(file.fileno())


class _Form:
    """The parts of a form as its parser finds them: the field `file` goes to disk."""

    def __init__(self, upload: Upload, file: Any, max_bytes: int) -> None:
        self._upload, self._file, self._max_bytes = upload, file, max_bytes
        self._header = b""
        self._value = b""
        self._disposition: Mapping[bytes, bytes] = {}
        self.is_whole = False
        self.callbacks: Any = {
            name: getattr(self, name)
            for name in (
                "on_part_begin",
                "on_header_field",
                "on_header_value",
                "on_header_end",
                "on_part_data",
                "on_end",
            )
        }

    @property
    def _name(self) -> str:
        return self._disposition.get(b"name", b"").decode(errors="replace")

    def on_end(self) -> None:
        self.is_whole = True

    def on_part_begin(self) -> None:
        self._disposition = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(self._value)
            if self._name == "file":
                if self._upload.filename is not None:
                    raise invalid("the form has two files; upload them one by one", "file")
                name = self._disposition.get(b"filename", b"").decode(errors="replace")
                self._upload.filename = name.replace("\\", "/").rpartition("/")[2] or "upload"
        self._header = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        chunk, upload = data[start:end], self._upload
        if self._name == "file":
            upload.size += len(chunk)
            if upload.size > self._max_bytes:
                raise APIError(413, f"a file has {self._max_bytes:,} bytes at most", "file", "file_too_large")
            upload.digest.update(chunk)
            self._file.write(chunk)
            return
        value = upload.fields.get(self._name, "") + chunk.decode(errors="replace")
        if len(value) > MAX_FIELD_BYTES or len(upload.fields) > 8:
            raise invalid("the form has fields that are too long", self._name[:40] or None)
        upload.fields[self._name] = value


def _seconds_of(fields: Mapping[str, str], default: int) -> int:
    """How long a file is kept: `expires_after[seconds]`, in OpenAI's bounds."""
    given = fields.get("expires_after[seconds]")
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise invalid("expires_after counts from created_at", "expires_after.anchor")
    if given is None:
        return default
    if not given.isdigit() or not 3600 <= int(given) <= 2592000:
        raise invalid("a file is kept from 3,600 to 2,592,000 seconds", "expires_after.seconds")
    return int(given)
