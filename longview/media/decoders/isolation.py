"""Decode in child processes, under limits of time and memory that hold whatever a decoder does.

`Limits(isolate=True)` asks for it. A decoder that hangs is killed at the deadline, one that takes too much memory fails
alone, one that crashes ends its process and not this one; each becomes a `MediaError`.

    IsolatedReader ── _Session ── requests, replies ── worker process (longview.media.decoders.worker)

Workers that ended a job normally are kept for the next; one that was killed has been waited for, so that no zombie is
left. Replies are JSON and raw pixels, never pickles, and their sizes are checked: a worker has parsed hostile bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from longview.errors import MediaError, RequestError
from longview.media.decoders.pillow import check_size
from longview.media.decoders.worker import GRACE, frame_header
from longview.media.errors import over_limit
from longview.media.medium import Frame, FrameTransform, Progress
from longview.media.text import printable
from longview.requests import Limits

MAX_WORKERS = min(8, max(4, os.cpu_count() or 1))
"""Workers that are kept, and that work at a time: to start one takes half a second of a processor, and more of them
than processors decode no faster. Many requests about videos would start one each."""
WAIT_SECONDS = 10.0
"""After which a medium gets a worker of its own, however many there are: those that have one may wait for somebody."""
MAX_HEADER_BYTES = 1 << 20
MAX_TEXT = 400  # characters of a message
CRASHED = "is damaged: its decoder crashed; save or download it again, or re-encode it"
MAX_INDEX_BYTES = 1 << 28  # the times of a video's frames
PIPE_BYTES = 1 << 20  # pictures of dozens of megabytes go through it
START_SECONDS = SEND_SECONDS = 60.0
STOP_SECONDS = 1.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Little address space for what is not used: RLIMIT_AS counts it."""
DECODING = (
    "max_pixels", "min_side", "max_aspect", "max_frames", "max_image_bytes", "max_video_bytes", "max_decoded_bytes",
    "max_decoder_bytes", "decode_seconds",
)  # fmt: skip
"""Limits that a worker needs; the others are checked here."""
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from longview.media.decoders.worker import main; main()"
)


def read_picture_isolated(data: bytes, name: str, limits: Limits) -> tuple[Image.Image, list[str]]:
    """As `longview.media.decoders.pillow.read_picture`, in a worker."""
    with contextlib.closing(_Session(name, limits)) as session:
        session.send({"do": "picture"}, data)
        header, pixels = session.receive(3 * limits.max_pixels)
        with session.validation():
            return session.image(header, pixels), [printable(warning, MAX_TEXT) for warning in header["warnings"]]


def is_animated_isolated(data: bytes, limits: Limits) -> bool:
    """As `longview.media.decoders.animation.is_animated`, in a worker."""
    try:
        with contextlib.closing(_Session("the picture", limits)) as session:
            session.send({"do": "animated"}, data)
            header, _ = session.receive(0)
            with session.validation():
                return bool(header["animated"])
    except MediaError:  # whoever opens it next gets this error, with the file's name
        return False


class IsolatedReader:
    """A `FrameReader` whose file is opened and decoded in a worker. Not to be shared between threads.

    Args:
        kind: The reader that the worker uses: `VideoReader` or `AnimationReader`.

    Raises:
        MediaError: as that reader's own; or the worker crashed, or had to be killed.
    """

    def __init__(self, kind: Literal["video", "animation"], source: Path | bytes, limits: Limits, name: str) -> None:
        self.name = name
        self._kind, self._source, self._limits = kind, source, limits
        self._session, facts, seconds = self._open()
        try:
            with self._session.validation():
                self.width, self.height = int(facts["width"]), int(facts["height"])
                self.duration, self.fps = float(facts["duration"]), float(facts["fps"])
                self.warnings = [printable(warning, MAX_TEXT) for warning in facts["warnings"]]
                self.seconds = array("d", bytes(seconds))
        except BaseException:
            self._session.close()
            raise
        self.num_frames = len(self.seconds)

    def reopen(self) -> IsolatedReader:
        """Open the same file once more."""
        return IsolatedReader(self._kind, self._source, self._limits, self.name)

    def read(
        self, indices: Sequence[int], progress: Progress | None = None, transform: FrameTransform | None = None
    ) -> Iterator[Frame]:
        """Yield exactly the frames at `indices`, which ascend and may repeat."""
        if self._session.closed:
            self._session, _, _ = self._open()
        session = self._session
        session.send({"do": "read", "indices": list(indices)})
        try:
            for done, index in enumerate(indices, 1):
                header, pixels = session.receive(3 * self._limits.max_pixels, more=True)
                with session.validation():
                    image = session.image(header, pixels)
                yield Frame(transform(image) if transform else image, index, self.seconds[index])
                if progress:
                    progress(done, len(indices), self.name)
            session.receive(0)
        finally:
            if session.busy:  # the caller has stopped reading; the worker would go on sending
                session.stop_reading(3 * self._limits.max_pixels)

    def close(self) -> None:
        """Give the worker back."""
        self._session.close()

    def _open(self) -> tuple[_Session, dict[str, Any], bytearray]:
        session = _Session(self.name, self._limits)
        path, data = (str(self._source), b"") if isinstance(self._source, Path) else (None, self._source)
        try:
            session.send({"do": "open", "kind": self._kind, "path": path}, data)
            facts, seconds = session.receive(MAX_INDEX_BYTES)
        except BaseException:
            session.close()
            raise
        weakref.finalize(self, session.close)  # of a reader that nobody closes
        return session, facts, seconds


class _Session:
    """The use of one worker for one medium: its errors become those of the medium.

    Attributes:
        busy: A reply is outstanding, so that the worker cannot be used for anything else.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.busy = self.closed = False
        self._name, self._limits = name, limits
        self._place = _Place()
        try:
            self._worker = _take_worker()
        except BaseException:
            self._place.leave()
            raise

    def send(self, header: dict[str, Any], data: bytes = b"") -> None:
        """Send a request, whose replies `receive` returns."""
        limits = {field: getattr(self._limits, field) for field in DECODING}
        self.busy = True
        # where the worker has ended, reading its reply says why
        with contextlib.suppress(BrokenPipeError):
            self._worker.send(header | {"name": self._name, "limits": limits}, data, SEND_SECONDS)

    def receive(self, max_bytes: int, more: bool = False) -> tuple[dict[str, Any], bytearray]:
        """The next reply, with at most so many bytes of data; `more`: it is not the last one.

        Raises:
            MediaError: the worker says so, or it crashed, or is late and has been killed.
        """
        try:
            header, data = self._worker.receive(self._limits.decode_seconds + 2 * GRACE, max_bytes)
        except _WorkerEndedError as error:
            raise self._error_of(error.status) from None
        self.busy = more and "error" not in header
        if "error" not in header:
            return header, data
        if header["error"] == "memory":
            raise over_limit(self._name, "needs more memory to decode", self._limits, "max_decoder_bytes")
        with self.validation():
            text = printable(header["text"], MAX_TEXT)
            if header["error"] == "request":
                raise RequestError(text)
            refused = MediaError(text)
            refused.limit = header["limit"] if header["limit"] in DECODING else None
            raise refused

    def stop_reading(self, max_bytes: int) -> None:
        """Have the worker read no further frames. One that does not obey at once is ended."""
        with contextlib.suppress(BrokenPipeError):
            self._worker.send({"do": "stop"}, b"", STOP_SECONDS)
        until = time.monotonic() + STOP_SECONDS
        with contextlib.suppress(_WorkerEndedError):
            while self.busy:
                header, _ = self._worker.receive(until - time.monotonic(), max_bytes)
                self.busy = "done" not in header and "error" not in header
        if self.busy:
            self.close()

    @contextlib.contextmanager
    def validation(self) -> Iterator[None]:
        """A reply that is malformed is one of a worker that was taken over: its medium is refused, and it is ended."""
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError):
            self.busy = True
            raise MediaError(f"{self._name} {CRASHED}") from None

    def image(self, header: dict[str, Any], pixels: bytearray) -> Image.Image:
        """The picture in a reply."""
        width, height = int(header["width"]), int(header["height"])
        check_size(width, height, self._name, self._limits)
        if len(pixels) != 3 * width * height:
            raise ValueError("more or less pixels than stated")
        return Image.frombytes("RGB", (width, height), bytes(pixels))

    def close(self) -> None:
        """Keep the worker for another session; end it, where it is still busy."""
        if not self.closed:
            self.closed = True
            if not self.busy:
                self.send({"do": "close"})
                _keep_worker(self._worker)
            else:
                self._worker.end()
            self._place.leave()

    def _error_of(self, status: int) -> MediaError:
        if status == -signal.SIGALRM:
            return over_limit(self._name, "takes too long to decode", self._limits, "decode_seconds")
        if status == -signal.SIGKILL:  # by the system, as it had no more memory
            return over_limit(self._name, "needs more memory to decode", self._limits, "max_decoder_bytes")
        return MediaError(f"{self._name} {CRASHED}")


class _WorkerEndedError(Exception):
    """A worker ended, or was ended, before it replied; its status is as `subprocess.Popen.returncode`."""

    def __init__(self, status: int) -> None:
        self.status = status


class _Worker:
    """A child process. Used by one thread at a time."""

    def __init__(self) -> None:
        # Isolated mode, with the paths of this process: no file in the current folder is taken for a module.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for this process
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        os.set_blocking(self._requests.fileno(), False)
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(ImportError, AttributeError, OSError):  # Linux alone has it
                import fcntl

                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll_requests, self._poll_replies = select.poll(), select.poll()
        self._poll_requests.register(self._requests, select.POLLOUT)
        self._poll_replies.register(self._replies, select.POLLIN)
        try:
            self.receive(START_SECONDS, 0)
        except _WorkerEndedError as error:
            raise RuntimeError(f"the process that decodes did not start (status {error.status})") from None

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, header: dict[str, Any], data: bytes, seconds: float) -> None:
        """Write a message, within so many seconds: a worker that does not read is ended."""
        until = time.monotonic() + seconds
        for part in (frame_header(header, data), data):
            view = memoryview(part)
            while view:
                if not self._poll_requests.poll(1000 * max(0.0, until - time.monotonic())):
                    self.end()
                    raise BrokenPipeError
                view = view[os.write(self._requests.fileno(), view) :]

    def receive(self, seconds: float, max_bytes: int) -> tuple[dict[str, Any], bytearray]:
        """The next message, within so many seconds.

        Raises:
            _WorkerEndedError: the worker ended before; or it was late or wrote nonsense, and has been ended.
        """
        until = time.monotonic() + seconds
        length = int.from_bytes(self._read(4, until), "big")
        if length > MAX_HEADER_BYTES:
            raise _WorkerEndedError(self.end())
        try:
            header = json.loads(self._read(length, until))
            size = int(header["bytes"])
        except (ValueError, KeyError, TypeError):
            size = -1
        if not 0 <= size <= max_bytes:
            self.end()
            raise _WorkerEndedError(0)
        return header, self._read(size, until)

    def _read(self, length: int, until: float) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            left = until - time.monotonic()
            if left <= 0 or not self._poll_replies.poll(1000 * left):
                self.end()
                raise _WorkerEndedError(-signal.SIGALRM)
            count = os.readv(self._replies.fileno(), [view])
            if not count:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)  # its output ends a moment before it does
                raise _WorkerEndedError(self.end())
            view = view[count:]
        return data

    def end(self) -> int:
        """Kill it, unless it has ended, and wait for it. Returns its status."""
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        return status

    def disown(self) -> None:
        """Forget the process: it is another's child, since this process was forked."""
        self._process.returncode = 0


_idle: list[_Worker] = []
_lock = threading.Lock()
_places = threading.Semaphore(MAX_WORKERS)


class _Place:
    """Leave to use a worker, which bounds how many there are. A thread that has one gets more at once: it would wait
    for itself."""

    _of_threads: ClassVar[Counter[int]] = Counter()

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._taken = not self._of_threads[self._thread] and _places.acquire(timeout=WAIT_SECONDS)
        self._of_threads[self._thread] += 1

    def leave(self) -> None:
        self._of_threads[self._thread] -= 1
        if not self._of_threads[self._thread]:
            del self._of_threads[self._thread]
        if self._taken:
            _places.release()


def _take_worker() -> _Worker:
    with _lock:
        while _idle:
            worker = _idle.pop()
            if not worker.ended:
                return worker
            worker.end()
    if not hasattr(select, "poll"):
        raise RequestError("isolate runs on Linux and macOS; leave it out")
    return _Worker()


def _keep_worker(worker: _Worker) -> None:
    with _lock:
        if len(_idle) < MAX_WORKERS and not worker.ended:
            _idle.append(worker)
            return
    worker.end()


@atexit.register
def end_idle_workers() -> None:
    """End the workers that wait for a job."""
    with _lock:
        workers, _idle[:] = list(_idle), []
    for worker in workers:
        worker.end()


def _forget_workers() -> None:
    global _lock, _places
    _Place._of_threads.clear()
    _lock, _places = threading.Lock(), threading.Semaphore(MAX_WORKERS)
    for worker in _idle:
        worker.disown()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
