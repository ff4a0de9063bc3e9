"""From frames to features: the prefetcher of their pixels, and the caches of features and of opened videos.

    frames ── decode ── crops, pixels ── a short queue ── encode, a chunk of pictures at a time ── FeatureCache
    └───────── a thread per request (Prefetcher) ────────┘  └─────────── the scheduler ───────────┘

Where there are many cores, some threads that all requests share make the pixels of several decoded frames at once.

Features are looked up by content. Their key is a digest of the raw bytes of the medium, which frame it is, everything
that decides its pixels, and the model. Each field is prefixed with its length, so no two different frames share a key.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import queue
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longview.engine.feature_folder import FeatureFolder, digest_of
from longview.errors import MediaError
from longview.media import Medium, RelevanceQuery, open_media
from longview.messages import Part, Progress
from longview.models.base import EncoderInput, Model, ModelInputs
from longview.requests import Limits, MediaOptions

ADDRESS = re.compile(r"data:|[a-z]+://", re.IGNORECASE)
MAX_PREFETCHED = 32
"""Frames of a request whose pixels wait to be encoded, at most; it bounds the memory that a video takes."""
PIXEL_THREADS = min(8, (os.cpu_count() or 1) // 2)
"""Threads that make pixels of decoded frames; with fewer than two, each request's own thread does."""


def feature_key(model_id: str, medium: Medium, encoder_input: EncoderInput) -> str:
    """The key of a frame's features in a `FeatureCache`."""
    return _feature_key(model_id, medium.digest, medium.frames[encoder_input.frame].index, encoder_input.settings)


@functools.lru_cache(4096)  # many questions about a film ask for those of the same frames
def _feature_key(*fields: object) -> str:
    return digest_of("picture features", *fields)


def details_key(key: str) -> str:
    """The key of what evidence says of a frame's patches, kept beside its features."""
    return f"{key} details"


def model_digest(model: Model) -> str:
    """A digest of what decides the features of given pixels: the config, and the weights outside the language model."""
    digest = hashlib.sha256(digest_of(type(model).__name__, model.config.to_json_string(use_diff=False)).encode())
    language_model = {id(parameter) for parameter in model.language_model.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in language_model:
            value = parameter.detach().cpu().contiguous()
            digest.update(digest_of(name, str(value.dtype), tuple(value.shape)).encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Features by key. The least recently used are dropped when they exceed a number of bytes.

    Args:
        max_bytes: Bytes in memory.
        folder: Keep them in files as well, which outlive the program. Several programs may share it.
        max_disk_bytes: Bytes in files; the least recently used are deleted.
    """

    def __init__(self, max_bytes: int, folder: Path | None = None, max_disk_bytes: int = 16 << 30) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = self.misses = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self._disk = None if folder is None else FeatureFolder(folder, max_disk_bytes)

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: str) -> Tensor | None:
        """Features (crops, P, D), or None."""
        with self._lock:
            cached = self._features.get(key)
            if cached is not None:
                self._features.move_to_end(key)
                self.hits += 1
                return cached
        if self._disk is not None and (cached := self._disk.get(key)) is not None:
            self._remember(key, cached)
            self.hits += 1
            return cached
        self.misses += 1
        return None

    def put(self, key: str, features: Tensor) -> None:
        """Keep features; they are never changed afterwards."""
        self._remember(key, features)
        if self._disk is not None:
            self._disk.put(key, features)

    def clear(self) -> None:
        """Drop the features in memory, not those in files."""
        with self._lock:
            self._features.clear()
            self.nbytes = 0

    def _remember(self, key: str, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        with self._lock:
            old = self._features.pop(key, None)
            if old is not None:
                self.nbytes -= old.numel() * old.element_size()
            if size > self.max_bytes:
                return
            self._features[key] = features
            self.nbytes += size
            while self.nbytes > self.max_bytes:
                _, oldest = self._features.popitem(last=False)
                self.nbytes -= oldest.numel() * oldest.element_size()


class VideoCache:
    """Opened video files, with the frames that were selected; the least recently used are dropped.

    The key of a file is its path, inode, size and modification time, and the options. Frames are decoded when read.
    """

    def __init__(self, max_videos: int = 256) -> None:
        self.max_videos = max_videos
        self._videos: OrderedDict[object, Medium] = OrderedDict()
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
        """As `longview.media.open_media`. Frames chosen by a question, or decoded at once, are not cached."""
        keys = [None if relevance_query or decode else self._key(part, options, limits, default) for part in parts]
        with self._lock:
            known = [self._videos.get(key) for key in keys]
        new = [number for number, medium in enumerate(known) if medium is None]
        missing = [parts[number] for number in new]
        try:
            opened = iter(
                open_media(
                    missing, options, limits, progress, default=default, relevance_query=relevance_query, decode=decode
                )
            )
        except MediaError as error:
            error.medium = None if error.medium is None else new[error.medium]
            raise
        media = [medium or next(opened) for medium in known]
        with self._lock:
            for key, medium in zip(keys, media, strict=True):
                if key is not None:
                    self._videos[key] = medium
                    self._videos.move_to_end(key)
            while len(self._videos) > self.max_videos:
                self._videos.popitem(last=False)[1].close()
        return media

    @staticmethod
    def _key(part: Part, options: MediaOptions, limits: Limits, default: MediaOptions) -> object:
        """The key of a video; None where it is no file on this machine."""
        if part.type != "video" or not isinstance(part.source, (str, Path)):
            return None
        if isinstance(part.source, str) and ADDRESS.match(part.source):  # to resolve megabytes of base64 takes seconds
            return None
        try:
            path = Path(part.source).expanduser().resolve()
            status = path.stat()
        except (OSError, ValueError):  # an address, or a mistake that `open_media` explains
            return None
        return (
            path,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            part.name,
            part.media or options,
            limits,
            default,
        )


class Prefetcher:
    """A thread that makes the pixels of a request's frames, at most `MAX_PREFETCHED` ahead of the encoder, and as many
    more as `PIXEL_THREADS` make at once.

    Args:
        encoder_inputs: Those of `inputs.encoder_inputs` whose pixels are needed.
        ready: Called when pixels are ready, or could not be made.
    """

    def __init__(self, inputs: ModelInputs, encoder_inputs: Sequence[EncoderInput], ready: Callable[[], None]) -> None:
        self._inputs, self._encoder_inputs, self._ready = inputs, encoder_inputs, ready
        self._queue: queue.Queue[Any] = queue.Queue(MAX_PREFETCHED)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="longview-prefetcher", daemon=True)
        self._thread.start()

    def take(self) -> tuple[EncoderInput, Mapping[str, Tensor]] | None:
        """The next frame and its pixels, or None if none is ready.

        Raises:
            MediaError, RequestError: it could not be decoded.
        """
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """Close the media, once the frame that is being decoded is done."""
        self._stopped = True

    def _put(self, item: Any) -> bool:
        """Queue pixels or an error when there is room; False once `stop` has been called."""
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                self._ready()
                return True
        return False

    def _run(self) -> None:
        try:
            for frame in self._iterate():
                if not self._put(frame):
                    break
        except Exception as error:  # noqa: BLE001 - `take` raises it in the scheduler, where it ends this request
            self._put(error)
        finally:
            for medium in self._inputs.media:
                medium.close()

    def _iterate(self) -> Iterator[tuple[EncoderInput, Mapping[str, Tensor]]]:
        """Frames with their pixels, in their order."""
        if PIXEL_THREADS < 2:
            yield from self._inputs.iterate_pixels(self._encoder_inputs)
            return
        pending: deque[tuple[EncoderInput, Future[Mapping[str, Tensor]]]] = deque()
        for encoder_input, image in self._inputs.iterate_frames(self._encoder_inputs):
            pending.append((encoder_input, _pixel_pool().submit(encoder_input.pixels, image)))
            if len(pending) >= PIXEL_THREADS:
                first, pixels = pending.popleft()
                yield first, pixels.result()
        for encoder_input, pixels in pending:
            yield encoder_input, pixels.result()


@functools.cache
def _pixel_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(PIXEL_THREADS, thread_name_prefix="longview-pixels")
