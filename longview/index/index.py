"""An index: made of folders, kept up to date, and searched."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from longview.engine.devices import best_device
from longview.errors import RequestError
from longview.index.catalogue import NAME, Catalogue, FileRecord, Files, read_files
from longview.index.moments import MARGIN, Found, at_path, fuse, moments
from longview.index.read import Ended, Entry, prefetched
from longview.index.read import read_files as read_contents
from longview.index.scan import scan
from longview.index.settings import FindOptions, IndexOptions, day
from longview.index.store import Hit, Item, Store, Vectors
from longview.media.decoders.pictures import PictureSource
from longview.messages import Progress
from longview.models.similarity import Similarity
from longview.requests import Limits

VERSION = 2
FLUSH_ITEMS, FLUSH_SECONDS = 2048, 30.0
"""What has been encoded is written after so many items, or after so long."""
CHUNK = 16
"""Pictures that are encoded at a time."""
DEPTHS = (4, 20, 100)
"""Items that are looked at for each that is to be found, as several may be of one moment, until there are enough."""


@dataclass
class Summary:
    """What indexing has done."""

    added: int = 0
    """Files read."""
    unchanged: int = 0
    moved: int = 0
    """Files that are known under another path."""
    removed: int = 0
    items: int = 0
    """Vectors in the index at the end."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why a file could not be read, by path."""


class Index:
    """An index in a folder, open for searching.

    Args:
        similarity: Opened already; else the checkpoint that the index was made with is, when it is needed.

    Raises:
        RequestError: there is no index in the folder.
    """

    def __init__(self, folder: Path, similarity: Similarity | None = None, device: str | None = None) -> None:
        self.folder = folder
        self.job, self.files = read_files(folder)
        self._similarity, self._device = similarity, device
        self.store = Store(folder, self.job["width"])

    @property
    def model(self) -> str:
        """The SigLIP checkpoint that it was made with."""
        return str(self.job["model"])

    @property
    def similarity(self) -> Similarity:
        if self._similarity is None:
            self._similarity = Similarity.open(self.model, self._device or best_device())
        return self._similarity

    def find(
        self,
        text: str | None = None,
        image: Image.Image | None = None,
        options: FindOptions | None = None,
        kinds: Sequence[str] = (),
    ) -> tuple[list[Found], list[str]]:
        """Moments, pictures and passages nearest to a text, a picture or both, best first.

        What is shown and what is written are rankings of their own, as are a text's and a picture's; where there are
        several, they are fused by reciprocal ranks. A picture is held against what is written only where nothing is
        shown: pictures are much more like each other than like texts.

        Args:
            kinds: Only items of these (frame, picture, passage).

        Returns:
            What was found, and warnings: files of the index that are no longer there.

        Raises:
            RequestError: neither a text nor a picture is given.
        """
        options = options or FindOptions()
        vectors = self.vectors(text, image)
        among = self._among(options)
        for depth in DEPTHS:
            limit = options.top * depth
            queries = [
                self._rankings(vector, number == len(vectors) - 1 and image is not None, limit, kinds, among)
                for number, vector in enumerate(vectors)
            ]
            rankings = [ranking for query in queries for ranking in query if ranking]
            found, warnings = self._with_paths(moments(fuse(queries), None if len(rankings) > 1 else MARGIN))
            if len(found) >= options.top or all(len(ranking) < limit for ranking in rankings):
                break
        return found[: options.top], warnings

    def _rankings(
        self, vector: Vectors, of_picture: bool, limit: int, kinds: Sequence[str], among: Sequence[str] | None
    ) -> list[list[Hit]]:
        shown = self.store.search(vector, limit, "image", kinds, among)
        return [shown] if of_picture and shown else [shown, self.store.search(vector, limit, "text", kinds, among)]

    def vectors(self, text: str | None, image: Image.Image | None) -> list[Vectors]:
        """Of the text, then of the picture.

        Raises:
            RequestError: neither is given.
        """
        if not (text or "").strip() and image is None:
            raise RequestError("there is nothing to look for; give a text, a picture (--image), or both")
        found = [] if not (text or "").strip() else [self.similarity.passage(str(text))]
        if image is not None:
            found.append(self.similarity.images([self.similarity.resized(image)])[0])
        return found

    def _among(self, options: FindOptions) -> list[str] | None:
        """Digests of the files that the options admit; None: all."""
        if options == FindOptions(top=options.top):
            return None
        return sorted({record.digest for record in self.files if record.digest and _admits(options, record)})

    def _with_paths(self, found: Iterable[Found]) -> tuple[list[Found], list[str]]:
        paths: dict[str, list[str]] = {}
        for record in self.files:
            paths.setdefault(record.digest, []).append(record.path)
        there, gone = [], dict[str, None]()
        for each in found:
            known = paths.get(each.path, [])
            present = next((path for path in known if Path(path).is_file()), None)
            if present is not None:
                there.append(at_path(each, present))
            elif known:
                gone[known[0]] = None
        warnings = [f"{path} is in the index, and no longer there; index its folder again" for path in gone]
        return there, warnings


def _admits(options: FindOptions, record: FileRecord) -> bool:
    changed = datetime.date.fromtimestamp(record.mtime_ns / 1e9)
    under = None if options.under is None else Path(options.under).expanduser().absolute()
    duration = record.duration
    return (
        (under is None or Path(record.path).is_relative_to(under))
        and (options.after is None or changed >= day(options.after))
        and (options.before is None or changed < day(options.before))
        and (options.min_duration is None or (duration is not None and duration >= options.min_duration))
        and (options.max_duration is None or (duration is not None and duration <= options.max_duration))
    )


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────────


def update_index(
    folder: Path,
    paths: Sequence[Path],
    similarity: Similarity,
    model: str,
    options: IndexOptions | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Bring an index up to date with folders or files; it is made if need be. Killed at any time, it goes on.

    Args:
        model: The name of the SigLIP checkpoint; an index of another one is refused.

    Raises:
        RequestError: another process writes the index, it was made otherwise, or a folder has nothing to index.
    """
    options = options or IndexOptions()
    job = {"index": VERSION, "model": model, "width": similarity.width, **asdict(options)}
    is_new = not (folder / NAME).exists()
    scan(paths, Files() if is_new else read_files(folder)[1], folder)  # before a folder is made for nothing
    catalogue = Catalogue(folder, job)
    try:
        return _Update(folder, catalogue, similarity, options, limits or Limits(), progress).run(paths)
    finally:
        catalogue.close()


class _Update:
    """One run of indexing."""

    def __init__(
        self,
        folder: Path,
        catalogue: Catalogue,
        similarity: Similarity,
        options: IndexOptions,
        limits: Limits,
        progress: Progress | None,
    ) -> None:
        self._folder, self._catalogue, self._files = folder, catalogue, catalogue.files
        self._similarity, self._options, self._limits, self._progress = similarity, options, limits, progress
        self._store = Store(folder, similarity.width)
        self._waiting: list[tuple[FileRecord, list[tuple[Item, Vectors]]]] = []  # read, not written yet
        self._current: list[tuple[Item, Vectors]] = []  # of the file that is being read
        self._last: Vectors | None = None  # of the frame before, whether it is kept or not
        self._flushed = time.monotonic()
        self.summary = Summary()

    def run(self, paths: Sequence[Path]) -> Summary:
        self._drop(sorted(self._files.unsure))
        changes = scan(paths, self._files, self._folder)
        self.summary.unchanged = changes.unchanged
        contents = read_contents(
            changes.new, self._known, self._options.rate, self._similarity.resized, self._limits, self._progress
        )
        events: list[Entry | Ended] = []
        done = 0
        for event in prefetched(contents):
            events.append(event)
            if isinstance(event, Ended):
                done += 1
            if sum(isinstance(each, Entry) for each in events) >= CHUNK or done == len(changes.new):
                self._take(events)
                events = []
                if self._progress is not None:
                    self._progress(done, len(changes.new), "files")
        self._flush()
        self._remove([record.path for record in changes.gone])
        self._store.optimize()
        self.summary.items = len(self._store)
        return self.summary

    def _known(self, digest: str) -> FileRecord | None:
        """A file with this digest that the index holds. Called from the thread that reads."""
        return next(iter(self._files.with_digest(digest)), None) if digest in self._files.digests else None

    def _take(self, events: Sequence[Entry | Ended]) -> None:
        entries = [event for event in events if isinstance(event, Entry)]
        pictures = [entry.content for entry in entries if not isinstance(entry.content, str)]
        encoded = iter(self._similarity.images(pictures))
        for event in events:
            if isinstance(event, Ended):
                self._end(event.record)
            else:
                content = event.content
                vector = self._similarity.passage(content) if isinstance(content, str) else next(encoded)
                self._keep(event.item, vector)

    def _keep(self, item: Item, vector: Vectors) -> None:
        """Add an item of the current file; a frame like the one kept before only makes that one last longer."""
        if item.kind == "frame" and self._current:
            kept, kept_vector = self._current[-1]
            near = float(vector @ kept_vector)
            before = float(vector @ self._last) if self._last is not None else 1.0
            shot = kept.shot + (before < self._options.shot)
            self._last = vector
            if near >= self._options.duplicate:
                self._current[-1] = replace(kept, until=item.until), kept_vector
                return
            item = replace(item, shot=shot)
        self._last = vector
        self._current.append((item, vector))

    def _end(self, record: FileRecord) -> None:
        items, self._current, self._last = self._current, [], None
        if record.error:
            self.summary.failed[record.path] = record.error
            items = []
        elif not items:
            self.summary.moved += 1
        else:
            self.summary.added += 1
            record = replace(record, items=len(items))
        self._waiting.append((record, items))
        num_waiting = sum(len(items) for _, items in self._waiting)
        if num_waiting >= FLUSH_ITEMS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        """Write what has been read: doubted, written, confirmed, in this order, so that a kill leaves nothing half."""
        waiting, self._waiting = self._waiting, []
        new = {record.digest: items for record, items in waiting if items}
        before = {record.path: self._files.by_path.get(record.path) for record, _ in waiting}
        self._catalogue.doubt(new)
        self._store.add(item for items in new.values() for item in items)
        self._catalogue.end(record for record, _ in waiting)
        self._drop({old.digest for old in before.values() if old is not None and old.digest} - self._files.digests)
        self._flushed = time.monotonic()

    def _remove(self, paths: Sequence[str]) -> None:
        before = {self._files.by_path[path].digest for path in paths} - {""}
        self._catalogue.remove(paths)
        self._drop(before - self._files.digests)
        self.summary.removed = len(paths)

    def _drop(self, digests: Iterable[str]) -> None:
        """Remove the items of files that are in the index no more."""
        gone = sorted(digests)
        if gone:
            self._catalogue.doubt(gone)
            self._store.remove(gone)
            self._catalogue.clear(gone)


def made_with(folder: Path) -> str | None:
    """The SigLIP checkpoint that an index was made with; None where there is no index yet."""
    return str(read_files(folder)[0].get("model")) if (folder / NAME).is_file() else None


def read_picture(path: Path) -> Image.Image:
    """A picture to look for.

    Raises:
        MediaError: it cannot be opened.
    """
    image, _ = PictureSource.of(path, Limits()).decode(Limits())
    return image


def as_dict(found: Found) -> dict[str, Any]:
    """What was found, as plain data, without what it has none of."""
    return {name: value for name, value in asdict(found).items() if value is not None and value != ""}
