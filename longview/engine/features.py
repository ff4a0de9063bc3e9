"""Pictures are encoded once: features by content, bounded in bytes, in memory and on disk if asked to.

    frames ── decode ── crops, pixels ── a short queue ── encode, a few pictures at a time ── FeatureCache
    └────────── a thread of its own (Prefetcher) ──────────┘  └───────── the scheduler ────────┘

The key of a frame's features is a digest over the raw bytes of its medium, which frame it is, everything that decides
its pixels, and the model. Each field is framed by its length, so no two different requests share a key.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longview.errors import RequestError
from longview.media import Medium, Progress, RelevanceQuery, open_media
from longview.messages import Part
from longview.models.base import EncoderInput, ModelInputs
from longview.requests import Limits, MediaOptions

AHEAD = 32
"""Frames whose pixels wait to be encoded, at most: what a film costs in memory, however long it is."""


def framed(*fields: object) -> str:
    """SHA-256 in hex over fields of which none can flow into the next: type, length, value."""
    digest = hashlib.sha256()
    for field in fields:
        value = field if isinstance(field, bytes) else repr(field).encode()
        digest.update(f"{type(field).__name__}:{len(value)}:".encode())
        digest.update(value)
    return digest.hexdigest()


def key_of(model_id: str, medium: Medium, encoder_input: EncoderInput) -> str:
    """What a frame's features are kept under."""
    return framed(
        "picture features", model_id, medium.digest, medium.frames[encoder_input.frame].index, encoder_input.settings
    )


def identity(model: nn.Module) -> str:
    """A digest of everything that makes features of pixels: the config and the weights outside the language model."""
    digest = hashlib.sha256(framed(type(model).__name__, model.config.to_json_string(use_diff=False)).encode())  # type: ignore[union-attr, operator]
    own = {id(parameter) for parameter in model.language_model.parameters()}  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        if id(parameter) in own:
            continue
        value = parameter.detach().cpu().contiguous()
        digest.update(framed(name, str(value.dtype), tuple(value.shape)).encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Features by key: those used last stay, up to a number of bytes.

    Args:
        limit: Bytes in memory.
        folder: Keep them in files as well, which outlive the program. It may be shared by several programs.
        disk_limit: Bytes in files; the oldest go first.
    """

    def __init__(self, limit: int, folder: Path | None = None, disk_limit: int = 16 << 30) -> None:
        self.limit = limit
        self.nbytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._disk = None if folder is None else DiskStore(folder, disk_limit)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Tensor | None:
        """Features (crops, P, D), or None."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return found
        if self._disk is not None and (found := self._disk.get(key)) is not None:
            self._keep(key, found)
            self.hits += 1
            return found
        self.misses += 1
        return None

    def put(self, key: str, features: Tensor) -> None:
        """Keep features; they are never changed afterwards."""
        self._keep(key, features)
        if self._disk is not None:
            self._disk.put(key, features)

    def clear(self) -> None:
        """Forget what is in memory."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0

    def _keep(self, key: str, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        with self._lock:
            old = self._kept.pop(key, None)
            if old is not None:
                self.nbytes -= old.numel() * old.element_size()
            if size > self.limit:
                return
            self._kept[key] = features
            self.nbytes += size
            while self.nbytes > self.limit:
                _, oldest = self._kept.popitem(last=False)
                self.nbytes -= oldest.numel() * oldest.element_size()


class DiskStore:
    """One safetensors file a key, written beside its place and renamed, so that a reader never sees half of one.

    Raises:
        RequestError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held = sum(size for _, size, _ in self._files())
        except OSError as error:
            raise RequestError(
                f"features cannot be kept in {folder} ({error.strerror}); give a folder that can be written"
            ) from None

    def get(self, key: str) -> Tensor | None:
        """Features, or None where there are none or the file is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self.folder / f"{key}.safetensors"
        try:
            found = load_file(path)["features"]
            os.utime(path)
        except (OSError, SafetensorError, KeyError):
            return None
        return found

    def put(self, key: str, features: Tensor) -> None:
        """Write features; a full disk means that they are not kept, nothing worse."""
        from safetensors.torch import save

        path = self.folder / f"{key}.safetensors"
        if path.exists():
            return
        data = save({"features": features.detach().cpu().contiguous()})
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".unfinished-", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError:
            return
        self._held += len(data)
        if self._held > self.limit:
            self._forget()

    def _forget(self) -> None:
        """Delete the files used longest ago, until a tenth of the limit is free."""
        files = sorted(self._files())
        self._held = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self._held <= 0.9 * self.limit:
                break
            path.unlink(missing_ok=True)
            self._held -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.glob("*.safetensors"):
            try:
                status = path.stat()
            except OSError:  # another program has just deleted it
                continue
            yield status.st_mtime, status.st_size, path


class VideoCache:
    """Video files that have been opened: which of their frames are looked at is not found out twice.

    A file is known by its place, size and time of change. Its frames stay undecoded until they are read.
    """

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self._kept: OrderedDict[object, Medium] = OrderedDict()
        self._lock = threading.Lock()

    def open_media(
        self,
        parts: Sequence[Part],
        options: MediaOptions,
        limits: Limits,
        progress: Progress | None,
        default: MediaOptions,
        relevance_query: RelevanceQuery | None = None,
        decode: bool = False,
    ) -> list[Medium]:
        """As `longview.media.open_media`. What a question chooses, or is to be decoded at once, is opened each time."""
        keys = [None if relevance_query or decode else self._key(part, options, limits, default) for part in parts]
        with self._lock:
            known = [self._kept.get(key) for key in keys]
        new = [part for part, medium in zip(parts, known, strict=True) if medium is None]
        opened = iter(
            open_media(new, options, limits, progress, default=default, relevance_query=relevance_query, decode=decode)
        )
        media = [medium or next(opened) for medium in known]
        with self._lock:
            for key, medium in zip(keys, media, strict=True):
                if key is not None:
                    self._kept[key] = medium
                    self._kept.move_to_end(key)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return media

    @staticmethod
    def _key(part: Part, options: MediaOptions, limits: Limits, default: MediaOptions) -> object:
        """What an opened video is known by; None where it is no file on this machine."""
        if part.type != "video" or not isinstance(part.source, (str, Path)):
            return None
        try:
            path = Path(part.source).expanduser().resolve()
            status = path.stat()
        except (OSError, ValueError):  # an address, or a mistake that `open_media` explains
            return None
        return path, status.st_ino, status.st_size, status.st_mtime_ns, options, limits, default


class Prefetcher:
    """Decodes and prepares the frames of one request in a thread, at most `AHEAD` before they are encoded.

    Args:
        encoder_inputs: Those of `inputs.encoder_inputs` to prepare.
        ready: Called whenever something has become ready, or has failed.
    """

    def __init__(self, inputs: ModelInputs, encoder_inputs: Sequence[EncoderInput], ready: Callable[[], None]) -> None:
        self._inputs, self._encoder_inputs, self._ready = inputs, encoder_inputs, ready
        self._queue: queue.Queue[Any] = queue.Queue(AHEAD)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="longview-prefetcher", daemon=True)
        self._thread.start()

    def take(self) -> tuple[EncoderInput, Mapping[str, Tensor]] | None:
        """The next frame's pixels, or None if none is ready.

        Raises:
            MediaError, RequestError: it could not be made.
        """
        try:
            found = self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def stop(self) -> None:
        """Let go of the files, as soon as the frame in hand is done."""
        self._stopped = True

    def _put(self, found: Any) -> bool:
        """Put something down when there is room; False when nobody wants it any more."""
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                self._queue.put(found, timeout=0.1)
                self._ready()
                return True
        return False

    def _run(self) -> None:
        try:
            for shown in self._inputs.iterate_pixels(self._encoder_inputs):
                if not self._put(shown):
                    break
        except Exception as error:  # whatever it is, it is this request's, and not this thread's
            self._put(error)
        finally:
            for medium in self._inputs.media:
                medium.close()
