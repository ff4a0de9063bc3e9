"""What of a file goes into an index: pictures, frames of videos, passages; read one after another, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from longview.errors import LongviewError, MediaError
from longview.index.catalogue import FileRecord
from longview.index.passages import SUFFIX, read_passages
from longview.index.scan import digest_of
from longview.index.store import Item
from longview.media import sniff
from longview.media.decoders.pictures import PictureSource
from longview.media.open import open_reader
from longview.media.select import by_rate
from longview.messages import Progress
from longview.requests import Limits

AHEAD = 64
"""Pictures that are held for the encoder, resized."""
T = TypeVar("T")
Resize = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Entry:
    """An item, and what its vector is made of: a picture or a text."""

    item: Item
    content: Image.Image | str


@dataclass(frozen=True)
class Ended:
    """A file has been read, or could not be (its record has the error)."""

    record: FileRecord


def read_files(
    paths: Iterable[Path],
    known: Callable[[str], FileRecord | None],
    rate: float,
    resize: Resize,
    limits: Limits,
    progress: Progress | None = None,
) -> Iterator[Entry | Ended]:
    """The entries of each file, then its record.

    Args:
        known: The record of a file with this digest that is indexed already; it is not read again.
        rate: Frames a second of a video.
    """
    for path in paths:
        yield from _read_file(path, known, rate, resize, limits, progress)


def _read_file(
    path: Path,
    known: Callable[[str], FileRecord | None],
    rate: float,
    resize: Resize,
    limits: Limits,
    progress: Progress | None,
) -> Iterator[Entry | Ended]:
    size = mtime = 0
    digest = ""
    count, duration, kind = 0, None, ""
    try:
        stat = path.stat()
        size, mtime = stat.st_size, stat.st_mtime_ns
        digest = digest_of(path)
        same = known(digest)
        if same is not None:
            yield Ended(FileRecord(str(path), digest, size, mtime, same.kind, same.items, same.duration))
            return
        kind = _kind_of(path, limits)
        entries: Iterator[Entry]
        if kind == "video":
            duration, entries = _video(path, digest, rate, resize, limits, progress)
        elif kind == "picture":
            entries = _picture(path, digest, resize, limits)
        else:
            entries = _passages(path, digest, resize, limits)
        for entry in entries:
            count += 1
            yield entry
    except (LongviewError, OSError) as error:
        reason = str(error) if isinstance(error, LongviewError) else f"{path.name}: {error.strerror or error}"
        yield Ended(FileRecord(str(path), "", size, mtime, error=reason))
        return
    yield Ended(FileRecord(str(path), digest, size, mtime, kind, count, duration))


def _kind_of(path: Path, limits: Limits) -> str:
    if path.suffix.lower() == SUFFIX:
        return "passages"
    return {"image": "picture", "video": "video"}[sniff(path, limits)]


def _video(
    path: Path, digest: str, rate: float, resize: Resize, limits: Limits, progress: Progress | None
) -> tuple[float | None, Iterator[Entry]]:
    reader = open_reader(path, limits)
    if reader.seconds is None:  # an animation without times
        reader.close()
        raise MediaError(f"{path.name} has no times; convert it to a video")
    duration = reader.duration
    indices = by_rate(reader.seconds, rate, duration)
    seconds = reader.seconds
    ends = [*(seconds[index] for index in indices[1:]), duration if duration is not None else seconds[-1]]

    def frames() -> Iterator[Entry]:
        try:
            for frame, until in zip(reader.read(indices, progress, resize), ends, strict=True):
                at = frame.seconds or 0.0
                yield Entry(Item("frame", "image", digest, frame.index, at, max(until, at)), frame.image)
        finally:
            reader.close()

    return duration, frames()


def _picture(path: Path, digest: str, resize: Resize, limits: Limits) -> Iterator[Entry]:
    image, _ = PictureSource.of(path, limits).decode(limits)
    yield Entry(Item("picture", "image", digest, 0), resize(image))


def _passages(path: Path, digest: str, resize: Resize, limits: Limits) -> Iterator[Entry]:
    for number, passage in enumerate(read_passages(path)):
        item = Item("passage", "image", digest, number, text=passage.text, source=passage.source)
        if passage.text:
            yield Entry(replace(item, vector_of="text"), passage.text)
        for picture in passage.pictures:
            image, _ = PictureSource.of(picture, limits).decode(limits)
            yield Entry(item, resize(image))


def prefetched(items: Iterator[T], size: int = AHEAD) -> Iterator[T]:
    """The same items, made in a thread that is so many ahead at most."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(size)
    stopped = threading.Event()

    def put(item: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            put(error)

    thread = threading.Thread(target=make, name="longview-index", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
