"""Open the pictures and videos of message parts: fetch, choose frames, decode.

picture    fetch → decode
video      fetch → reader (VideoReader, AnimationReader or PictureList) → frame indices → decode
           mdp3: decode candidates, resized → score them against the question (candidates.py) → frame indices
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from longview.errors import MediaError, RequestError
from longview.media.candidates import Candidates, RelevanceQuery, score_candidates, select_by_relevance
from longview.media.decoders.animation import AnimationReader
from longview.media.decoders.isolation import IsolatedReader
from longview.media.decoders.pictures import JPEG_LIST, PictureList, PictureSource
from longview.media.decoders.video import VideoReader
from longview.media.errors import format_bytes, over_limit
from longview.media.fetch import fetch, read_file
from longview.media.formats import HEAD, SUPPORTED, container_of, foreign_format_of, image_format_of, read_head
from longview.media.medium import (
    UNDECODED,
    Frame,
    FrameDecoder,
    FrameReader,
    FrameTransform,
    Medium,
    Progress,
    Relevance,
)
from longview.media.select import SAMPLERS, Timeline
from longview.messages import Part, Source
from longview.requests import CANDIDATES, FRAME_SAMPLERS, Limits, MediaOptions

UNIFORM = MediaOptions(select="uniform")


def open_medium(
    part: Part,
    options: MediaOptions | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    *,
    default: MediaOptions = UNIFORM,
    relevance_query: RelevanceQuery | None = None,
) -> Medium:
    """Fetch, decode and sample the picture or video of one message part.

    `default` is how the model's family samples a video where `options` leaves it open. A list of pictures is a video
    whose frames have been chosen already: all are used, unless `options` says otherwise. With `relevance_query` the
    candidates of every video are scored against the question (`Medium.relevance`), whichever sampler chooses.

    Raises:
        MediaError: it cannot be fetched, opened or decoded, or is over a limit.
        RequestError: the options do not fit this medium.
    """
    return open_media([part], options, limits, progress, default=default, relevance_query=relevance_query)[0]


def open_media(
    parts: Sequence[Part],
    options: MediaOptions | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
    *,
    default: MediaOptions = UNIFORM,
    relevance_query: RelevanceQuery | None = None,
    threads: int = 8,
    decode: bool = True,
) -> list[Medium]:
    """Open several media in parallel threads. Their order is kept; they share one budget of decoded bytes.

    Args:
        decode: Decode the frames of video files now; or leave them `UNDECODED`, for `Medium.read`.

    Raises:
        MediaError, RequestError: as `open_medium`; of several failures the first part's.
    """
    opener = _Opener(options or MediaOptions(), limits or Limits(), progress, default, relevance_query, decode)
    opener.check(parts)
    if len(parts) < 2:
        return [opener.open(part, number) for number, part in enumerate(parts)]
    pool = ThreadPoolExecutor(min(threads, len(parts)), thread_name_prefix="longview-media")
    futures = [pool.submit(opener.open, part, number) for number, part in enumerate(parts)]
    try:
        return [future.result() for future in futures]
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def select_frames(
    timeline: Timeline, options: MediaOptions, limits: Limits, default: MediaOptions, name: str
) -> tuple[list[int], list[str]]:
    """Choose the frames of one video: the options first, then the family's default, then the sampler's own.

    Returns ascending indices into the whole video, and warnings. A few samplers repeat frames of a short video; of one
    that selects by content, the candidates.

    Raises:
        RequestError: a clip outside the video, or times asked of a list of pictures.
        MediaError: more frames asked for than the limit.
    """
    if options.indices is not None:
        return _exactly(options.indices, timeline, limits, name), []
    by_time = next((f"--{key}" for key in ("fps", "start", "end") if getattr(options, key) is not None), None)
    if timeline.seconds is None and by_time:
        raise RequestError(f"{by_time} needs a video with times, and {name} is a list; leave it out")
    clip = range(timeline.num_frames)
    if options.start is not None or options.end is not None:
        assert timeline.seconds is not None
        clip = timeline.clip(options.start, options.end)
        timeline = timeline.slice(clip)
    if timeline.seconds is None and options.frames is None and options.select is None:
        return list(clip), []
    select = options.select or ("fps" if options.fps is not None else default.select) or "uniform"
    sampler, choose_frames = FRAME_SAMPLERS[select], SAMPLERS[select]
    if sampler.by_content:
        candidates = choose_frames(timeline, options.candidates or CANDIDATES, options.fps or 1.0)
        return [clip[i] for i in candidates], []
    # The family's numbers belong to the family's sampler; another one has its own.
    family = default if select == default.select else MediaOptions()
    wanted = options.frames or family.frames or sampler.frames
    count = min(wanted or limits.max_frames, limits.max_frames)
    rate = options.fps or family.fps or 1.0
    picked = choose_frames(timeline, count, rate)
    if options.frames is not None and options.frames > count:  # more than the limit, unless there are not so many
        shown = len(choose_frames(timeline, min(options.frames, max(timeline.num_frames, count + 1)), rate))
        _check_frames(shown, limits, name)
    warnings = []
    if count != wanted and len(choose_frames(timeline, count + 1, rate)) > count:
        warnings.append(f"{name} is thinned out to the limit of {count:,} frames; raise it with --max-frames")
    return [clip[i] for i in picked], warnings


def _exactly(indices: Sequence[int], timeline: Timeline, limits: Limits, name: str) -> list[int]:
    chosen = sorted(set(indices))
    if chosen[-1] >= timeline.num_frames:
        raise RequestError(
            f"indices names frame {chosen[-1]:,}, and {name} has {timeline.num_frames:,}; they count from 0"
        )
    _check_frames(len(chosen), limits, name)
    return chosen


def _check_frames(shown: int, limits: Limits, name: str) -> None:
    """
    Raises:
        MediaError: more frames of a video than the limit were asked for, and there are so many.
    """
    if shown > limits.max_frames:
        raise over_limit(name, f"would be shown in {shown:,} frames", limits, "max_frames")


class _Opener:
    """The state of one `open_media` call: options, limits, progress, and the budget of decoded bytes."""

    def __init__(
        self,
        options: MediaOptions,
        limits: Limits,
        progress: Progress | None,
        default: MediaOptions,
        relevance_query: RelevanceQuery | None,
        decode: bool,
    ) -> None:
        self._options = options
        self._limits = limits
        self._progress = progress
        self._default = default
        self._relevance_query = relevance_query
        self._decode = decode
        self._decoded = 0
        self._lock = threading.Lock()

    def check(self, parts: Sequence[Part]) -> None:
        """Refuse too many pictures, and selection by content without a video or without a question."""
        pictures = sum(part.type == "image" for part in parts)
        if pictures > self._limits.max_pictures:
            raise over_limit("the request", f"holds {pictures:,} pictures", self._limits, "max_pictures")
        if not (self._options.by_content and parts):
            return
        select = self._options.select
        if all(part.type != "video" for part in parts):
            raise RequestError(
                f"select {select!r} chooses frames of a video, and only pictures are given; leave it out"
            )
        if self._relevance_query is None:
            raise RequestError(
                f"select {select!r} needs a question to score frames against; give relevance_query=RelevanceQuery(…)"
            )

    def open(self, part: Part, number: int) -> Medium:
        try:
            return self._open(part)
        except MediaError as error:
            error.medium = number
            raise

    def _open(self, part: Part) -> Medium:
        if part.type == "image":
            return self._open_picture(part)
        if part.type == "video":
            return self._open_video(part)
        raise RequestError("a text part has nothing to decode; pass only image and video parts")

    def _open_picture(self, part: Part) -> Medium:
        picture = PictureSource.of(part.source, self._limits)
        picture = replace(picture, name=part.name or picture.name)
        image, warnings = picture.decode(self._limits)
        self._charge(image.width * image.height, picture.name)
        self._report(1, 1, picture.name)
        frames = [Frame(image, 0, None)]
        return Medium(
            "image", picture.name, frames, image.width, image.height, 1, None, None, picture.digest(), tuple(warnings)
        )

    def _open_video(self, part: Part) -> Medium:
        options = part.media or self._options
        with ThreadPoolExecutor(1, thread_name_prefix="longview-digest") as executor:
            # Hashing a file of gigabytes takes seconds: its frames are decoded meanwhile.
            digest, reader = self._open_reader(part.source, part.name, executor)
            decoder = None
            try:
                indices, warnings, relevance = self._choose(reader, digest, options)
                if self._decode or not isinstance(reader, (VideoReader, IsolatedReader)):
                    self._charge(reader.width * reader.height * len(set(indices)), reader.name)
                    frames = self._read(reader, indices)
                else:
                    frames = [Frame(UNDECODED, index, reader.seconds[index]) for index in indices]
                    decoder = FrameDecoder(None if self._limits.isolate else reader, reader.reopen)
            finally:
                if decoder is None or self._limits.isolate:  # a process is too much to keep for later
                    reader.close()
            return Medium(
                kind="video",
                name=reader.name,
                frames=frames,
                width=reader.width,
                height=reader.height,
                num_frames=reader.num_frames,
                duration=reader.duration,
                fps=reader.fps,
                digest=digest.result(),
                warnings=(*reader.warnings, *warnings),
                relevance=relevance,
                decoder=decoder,
            )

    def _read(self, reader: FrameReader, indices: list[int]) -> list[Frame]:
        frames = []
        for frame in reader.read(indices, self._report):
            frames.append(frame)
            self._charge(max(0, frame.image.width * frame.image.height - reader.width * reader.height), reader.name)
        return frames

    def _choose(
        self, reader: FrameReader, digest: Future[str], options: MediaOptions
    ) -> tuple[list[int], list[str], Relevance | None]:
        start, name = options.start or 0.0, reader.name
        if reader.duration is not None and start >= reader.duration:
            raise RequestError(f"start is {start:g} s, but {name} ends at {reader.duration:.2f} s; start earlier")
        timeline = Timeline(reader.num_frames, reader.seconds, reader.fps, reader.duration)
        indices, warnings = select_frames(timeline, options, self._limits, self._default, name)
        if self._relevance_query is None:
            return indices, warnings, None
        if not options.by_content:
            candidates, _ = select_frames(timeline, options.as_candidates(), self._limits, self._default, name)
            candidates = sorted({*candidates, *indices})
            relevance, _ = score_candidates(
                self._candidates(reader, digest, candidates), self._relevance_query, reader.seconds
            )
            return indices, warnings, relevance
        _check_frames(min(options.frames or 0, len(indices)), self._limits, name)
        wanted = options.frames or FRAME_SAMPLERS[options.select or ""].frames
        count = min(wanted or self._limits.max_frames, self._limits.max_frames)
        if options.frames is not None and len(indices) < options.frames:
            warnings.append(
                f"{name} has only {len(indices):,} candidates for {count:,} frames, so all are used; a higher --fps "
                "gives more"
            )
        chosen, relevance = select_by_relevance(
            self._candidates(reader, digest, indices), self._relevance_query, count, reader.seconds
        )
        return chosen, warnings, relevance

    def _candidates(self, reader: FrameReader, digest: Future[str], indices: list[int]) -> Candidates:
        def report(done: int, total: int, name: str) -> None:
            self._report(done, total, f"looking through {name}")

        def read(some: Sequence[int], transform: FrameTransform) -> Iterator[Frame]:
            return reader.read(some, report, transform)

        return Candidates(reader.name, digest.result(), indices, read)

    def _open_reader(
        self, source: Source | None, called: str, executor: ThreadPoolExecutor
    ) -> tuple[Future[str], FrameReader]:
        """Return the reader of a video, and its digest, which the executor computes."""
        limits = self._limits
        if isinstance(source, str) and source[: len(JPEG_LIST)].lower() == JPEG_LIST:
            pictures = PictureList.of_data_uri(source, limits)
            return executor.submit(pictures.digest), pictures
        if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
            pictures = PictureList(source, limits)
            return executor.submit(pictures.digest), pictures
        if not isinstance(source, (str, Path, bytes)):
            kind = type(source).__name__
            raise RequestError(f"a video cannot be read from {kind}; give a path, a URL, bytes or a list of pictures")
        fetched = fetch(source, limits, "max_video_bytes")
        data, name = fetched.data, called or fetched.name
        reader, encoded = _reader_of(data, name, limits)
        return executor.submit(_digest, encoded), reader

    def _charge(self, pixels: int, name: str) -> None:
        with self._lock:
            self._decoded += 3 * pixels
            decoded = self._decoded
        if decoded > self._limits.max_decoded_bytes:
            found = f"brings the frames of this request to {format_bytes(decoded)}"
            raise over_limit(name, found, self._limits, "max_decoded_bytes")

    def _report(self, done: int, total: int, label: str) -> None:
        if self._progress:
            with self._lock:
                self._progress(done, total, label)


def open_reader(path: Path, limits: Limits | None = None) -> FrameReader:
    """A video file whose frames are to be read one by one, as many as there are; close it.

    Raises:
        MediaError: it cannot be opened.
    """
    return _reader_of(path, path.name, limits or Limits())[0]


def _reader_of(data: bytes | Path, name: str, limits: Limits) -> tuple[FrameReader, bytes | Path]:
    """The reader of a video or an animation, and its bytes, or the file that holds them."""
    head = data[:HEAD] if isinstance(data, bytes) else read_head(data, name)
    if image_format_of(head):
        encoded = data if isinstance(data, bytes) else read_file(data, name, limits, "max_video_bytes")
        animation = IsolatedReader("animation", encoded, limits, name) if limits.isolate else None
        return animation or AnimationReader(encoded, name, limits), encoded
    if not container_of(head):
        raise MediaError(f"{name} is {foreign_format_of(head)}, given as a video; expected {SUPPORTED}")
    return IsolatedReader("video", data, limits, name) if limits.isolate else VideoReader(data, limits, name), data


def _digest(data: bytes | Path) -> str:
    """SHA-256 in hex of bytes or of a file, which is read through once."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = hashlib.sha256()
    with data.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
