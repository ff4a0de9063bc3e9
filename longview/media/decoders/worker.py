"""The child process that decodes: `longview.media.decoders.isolation` starts it and reads its replies.

Requests come on standard input, replies go to standard output, each as a frame of four bytes with the length of a JSON
header, the header, and as many bytes of data as its field `bytes` says:

    picture   encoded bytes          → width, height, warnings, RGB pixels
    animated  encoded bytes          → whether it holds several frames
    open      kind, path | bytes     → what a `FrameReader` says of itself; its `seconds` as float64
    read      indices                → width, height, RGB pixels of each frame, then `done`
    stop                             (no reply; a reading ends early, with its `done`)
    close                            (no reply)

All of them with the medium's name and limits. An error is replied as `error`, its kind, and `text`.

While it decodes, the kernel ends it by SIGALRM a second after the deadline, whatever a decoder is doing; its memory is
bounded by RLIMIT_AS, and it can write no files. It exits when its input ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
from array import array
from pathlib import Path
from typing import Any, BinaryIO

from longview.errors import LongviewError, RequestError
from longview.media.decoders.animation import AnimationReader, is_animated
from longview.media.decoders.pillow import read_picture
from longview.media.decoders.video import VideoReader
from longview.media.errors import DecoderMemoryError
from longview.media.medium import FrameReader
from longview.requests import Limits

GRACE = 1.0  # seconds after the deadline, in which a decoder that checks it can say so
PROPERTIES = ("width", "height", "num_frames", "duration", "fps")


def frame_header(header: dict[str, Any], data: bytes) -> bytes:
    """What a message begins with, before its data."""
    encoded = json.dumps(header | {"bytes": len(data)}).encode()
    return struct.pack(">I", len(encoded)) + encoded


def read_message(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    """
    Raises:
        EOFError: there is no more.
    """
    header = json.loads(_read_exactly(file, int.from_bytes(_read_exactly(file, 4), "big")))
    return header, _read_exactly(file, header["bytes"])


def _read_exactly(file: BinaryIO, length: int) -> bytes:
    """From a file without a buffer, so that `select` sees whatever has not been read."""
    data = bytearray()
    while len(data) < length:
        chunk = file.read(length - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


class _Worker:
    def __init__(self, requests: BinaryIO, replies: BinaryIO) -> None:
        self._requests, self._replies = requests, replies
        self._reader: FrameReader | None = None
        self._limits = Limits()

    def serve(self) -> None:
        """Answer requests until there are no more."""
        self._reply({"ready": True})
        while True:
            try:
                request, data = read_message(self._requests)
            except EOFError:
                return
            if request["do"] == "stop":  # the reading had ended already
                continue
            self._limits = Limits(**request["limits"])
            bound_memory(self._limits.max_decoder_bytes)
            self._arm()
            try:
                self._answer(request, data)
            except (DecoderMemoryError, MemoryError):
                self._reply({"error": "memory", "text": ""})
            except LongviewError as error:
                kind = "request" if isinstance(error, RequestError) else "media"
                self._reply({"error": kind, "text": str(error), "limit": getattr(error, "limit", None)})
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _answer(self, request: dict[str, Any], data: bytes) -> None:
        what = request["do"]
        if what == "picture":
            image, warnings = read_picture(data, request["name"], self._limits)
            self._reply({"width": image.width, "height": image.height, "warnings": warnings}, image.tobytes())
        elif what == "animated":
            self._reply({"animated": is_animated(data)})
        elif what == "open":
            self._open(request, data)
        elif what == "close":
            self._close()
        else:
            assert what == "read", what
            self._read(request["indices"])

    def _open(self, request: dict[str, Any], data: bytes) -> None:
        self._close()
        source = Path(request["path"]) if request["path"] else data
        if request["kind"] == "animation":
            self._reader = AnimationReader(data, request["name"], self._limits)
        else:
            self._reader = VideoReader(source, self._limits, request["name"])
        reader = self._reader
        facts = {name: getattr(reader, name) for name in PROPERTIES} | {"warnings": list(reader.warnings)}
        self._reply(facts, array("d", reader.seconds or ()).tobytes())

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self, indices: list[int]) -> None:
        assert self._reader is not None
        for frame in self._reader.read(indices):
            image = frame.image
            self._reply({"width": image.width, "height": image.height}, image.tobytes())
            if select.select([self._requests], [], [], 0)[0]:
                read_message(self._requests)  # to stop: nothing else is asked meanwhile
                break
            self._arm()
        self._reply({"done": True})

    def _arm(self) -> None:
        """Have the kernel end this process a little after the deadline."""
        signal.setitimer(signal.ITIMER_REAL, self._limits.decode_seconds + GRACE)

    def _reply(self, header: dict[str, Any], data: bytes = b"") -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # the time that the parent takes is not decoding
        self._replies.write(frame_header(header, data))
        self._replies.write(data)
        self._replies.flush()


def bound_memory(extra: int) -> None:
    """Bound this process's address space to what it has now and `extra` bytes. Where the system cannot, do nothing."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return


def main() -> None:
    """Run as the child process."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # a library that prints must not break into the replies
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        _Worker(requests, replies).serve()
    except BrokenPipeError:  # the parent is gone
        sys.exit(1)
