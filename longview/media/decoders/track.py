"""One video track, demuxed and decoded by FFmpeg: the only place that calls PyAV.

FFmpeg supports dozens of containers and hundreds of codecs, some of which open other files or are rarely tested. Here
the demuxer is chosen by the file's first bytes, and the codec must be on a short list.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longview.errors import MediaError, RequestError
from longview.media.decoders.containers import MAX_TRACKS, WHAT_TO_DO, check_container
from longview.media.decoders.pillow import check_size
from longview.media.errors import decoder_errors, over_limit
from longview.media.formats import HEAD, container_of
from longview.requests import Limits

CODECS = frozenset(
    {"av1", "ffv1", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4"}
    | {"msmpeg4v2", "msmpeg4v3", "prores", "theora", "vp8", "vp9", "wmv1", "wmv2"}
)
"""Codecs that are decoded. The others (JPEG 2000 among them) are rare in videos and frequent in advisories."""

ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""By degrees counter-clockwise, as a display matrix gives them."""

DEADLINE_INTERVAL = 64
"""Packets between two checks of the deadline, where they are only demuxed: each takes microseconds."""


class Track:
    """The first video track of a file: packets in decoding order, and frames from packets.

    Raises:
        MediaError: no video in it, truncated, damaged, an unsupported codec, over a limit, or past the deadline.
    """

    def __init__(self, source: Path | bytes, name: str, limits: Limits, deadline: float) -> None:
        self.name = name
        self.limits = limits
        self.deadline = deadline  # of time.monotonic()
        self.broken = False  # whether demuxing ended early at damage
        self.size = 0  # bytes of the file
        self.composition: list[bytes] = []
        self.is_fragmented = False
        self._source = source
        self.format = self._checked_format()
        self._container: Any = None
        try:
            self.rewind()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def rewind(self) -> None:
        """Open the file anew, at its beginning."""
        import av

        self.close()
        self.broken = False
        source = f"file:{self._source.resolve()}" if isinstance(self._source, Path) else io.BytesIO(self._source)
        with self._errors("its header cannot be read"):
            self._container = av.open(
                source,
                format=self.format,
                options={"protocol_whitelist": "file", "max_streams": str(MAX_TRACKS)},
                timeout=self.limits.decode_seconds,
                metadata_errors="replace",
            )
            # Containers list a cover picture among the video tracks.
            videos = self._container.streams.video
            streams = [stream for stream in videos if "attached_pic" not in str(stream.disposition.name)]
            if not streams:
                held = "only sound" if self._container.streams.audio else "nothing that can be shown"
                raise MediaError(f"{self.name} has no video in it, {held}; give a file with a video track")
            self.stream = streams[0]
            self.context = self.stream.codec_context
            self.codec = str(self.context.codec.canonical_name) if self.context else "an unknown codec"
            if self.codec not in CODECS:
                raise MediaError(
                    f"{self.name} is coded with {self.codec}, which is not supported; convert it, to H.264 for example"
                )
            if self.context.width and self.context.height:
                check_size(self.context.width, self.context.height, self.name, self.limits)
            # Groups of frames are decoded in parallel instead; FFmpeg's own threads would be started for each group.
            self.context.thread_count = 1
            self.context.options = {"max_pixels": str(self.limits.max_pixels)}
            self.time_base = float(self.stream.time_base)
            self.rate = float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def packets(self) -> Iterator[Any]:
        """Yield the packets from here on, in decoding order; damage ends them."""
        packets = self._container.demux(self.stream)
        for number in count():
            if number % DEADLINE_INTERVAL == 0:
                self.check_deadline()
            try:
                with self._errors("it cannot be read"):
                    packet = next(packets, None)
            except MediaError:
                self.broken = True
                return
            if packet is None:
                return
            if packet.size:
                yield packet

    def index_entries(self) -> NDArray[np.int64]:
        """The container's own table of packets, as far as it is known without demuxing.

        Decoding time, place in the file, size and flags (1: key frame, 2: not shown) of each: (packets, 4).
        """
        entries = self.stream.index_entries
        rows = ((entry.timestamp, entry.pos, entry.size, entry.flags) for entry in entries)
        return np.fromiter(rows, np.dtype((np.int64, 4)), len(entries))

    def seek(self, pts: int) -> bool:
        """Seek to a key frame near a time; the next packet says which. False: the container cannot seek."""
        try:
            with self._errors("it cannot be read"):
                self._container.seek(pts, stream=self.stream)
        except MediaError:
            return False
        return True

    def write_clip(self, target: Path, begin: int, end: int) -> None:
        """Copy the packets of this track and of its first sound from a key frame's time until another time.

        Raises:
            MediaError: they cannot be read, or the container cannot hold them.
            RequestError: the file cannot be written.
        """
        import av

        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            with self._errors("a part of it cannot be copied"):
                with av.open(str(unfinished), "w", format=self.format) as out:
                    self._copy(out, begin, end)
                os.replace(unfinished, target)
        except OSError as error:
            raise RequestError(f"{target} cannot be written ({error.strerror}); choose another folder") from None
        finally:
            unfinished.unlink(missing_ok=True)

    def _copy(self, out: Any, begin: int, end: int) -> None:
        copied = [self.stream, *self._container.streams.audio[:1]]
        written = {stream: out.add_stream_from_template(stream) for stream in copied}
        span = {
            stream: [int(at * self.stream.time_base / stream.time_base) for at in (begin, end)] for stream in copied
        }
        self._container.seek(begin, stream=self.stream)
        decoded = {stream: first - int(1 / stream.time_base) for stream, (first, _) in span.items()}
        began = False
        for packet in self._container.demux(copied):
            self.check_deadline()
            stream = packet.stream
            first, last = span[stream]
            if packet.pts is None:
                continue
            if packet.dts is None:  # MKV has none, and after a seek FFmpeg has not seen enough to tell
                packet.dts = decoded[stream] + 1
            if stream is self.stream:
                began = began or (packet.is_keyframe and packet.pts >= begin)
                if packet.dts >= last:
                    return
            if began if stream is self.stream else first <= packet.pts < last:
                decoded[stream] = packet.dts
                packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, written[stream]
                out.mux(packet)

    def decode(self, packet: Any) -> list[Any]:
        """Decode one packet, or drain the decoder with None. A damaged packet yields no frame; the caller notices."""
        self.check_deadline()
        try:
            with self._errors("it cannot be decoded"):
                frames: list[Any] = self.context.decode(packet)
                return frames
        except MediaError:
            return []

    def upright(self, frame: Any) -> Image.Image:
        """Convert a decoded frame to an upright RGB picture."""
        with self._errors("a frame cannot be decoded"):
            check_size(frame.width, frame.height, self.name, self.limits)
            image: Image.Image = frame.to_image()
            rotation = ROTATIONS.get(round(frame.rotation / 90) * 90 % 360)
            return image if rotation is None else image.transpose(rotation)

    def check_deadline(self) -> None:
        if time.monotonic() > self.deadline:
            raise over_limit(self.name, "takes too long to decode", self.limits, "decode_seconds")

    def damaged(self, what: str) -> MediaError:
        return MediaError(f"{self.name} is damaged: {what}; {WHAT_TO_DO}")

    def _errors(self, what: str) -> decoder_errors:
        return decoder_errors(self.name, f"is damaged: {what}; {WHAT_TO_DO}")

    def _checked_format(self) -> str:
        """Return the container's format, after its size and its tables have been checked."""
        try:
            with self._source.open("rb") if isinstance(self._source, Path) else io.BytesIO(self._source) as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                container = container_of(file.read(HEAD))
                if container is not None:
                    tables = check_container(file, container, size, self.name)
                    self.size, self.composition, self.is_fragmented = size, tables.composition, tables.is_fragmented
        except OSError:
            raise MediaError(f"{self.name} cannot be read; check the path and its permissions") from None
        if size == 0:
            raise MediaError(f"{self.name} is empty (0 bytes); save or download it again")
        if container is None:
            raise MediaError(f"{self.name} is not a video of a supported format; expected MP4, MOV, MKV, WebM or AVI")
        return container
