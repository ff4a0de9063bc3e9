"""Videos: exactly the frames asked for, without decoding what lies between.

    open     demux the whole file once, decode nothing    every packet's time and key flag: the true order and number of frames
    read     targets grouped by the key frame they need    seek → feed the decoder up to the last target → drain
             packets nobody refers to are skipped on the way (`skip_frame = NONREF`)

Demuxing two hours takes a fraction of a second, so no header is believed: neither the frame count nor the duration.
"""

from __future__ import annotations

import io
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longview.errors import MediaError
from longview.media.decode import check_size
from longview.media.medium import Frame, Progress
from longview.media.options import Limits, beyond
from longview.media.sniff import container_of, missing_bytes

CODECS = frozenset(
    "av1 ffv1 h263 h264 hevc mjpeg mpeg1video mpeg2video mpeg4 msmpeg4v2 msmpeg4v3 prores theora vp8 vp9 wmv1 wmv2".split()
)
"""Codecs that are opened. The others (JPEG 2000 among them) are rare in videos and frequent in advisories."""

UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""By degrees counter-clockwise, as a display matrix gives them."""

NEAR = 48  # packets: reading past that many costs less than a seek


class VideoReader:
    """A video file, open for reading single frames. Not to be shared between threads.

    Times are seconds after the first frame. Non-square pixels stay as they are stored.

    Attributes:
        width, height: pixels of the first frame, upright
        num_frames: frames really in the file
        seconds: when each frame appears, ascending, (num_frames,)
        duration: seconds, until the last frame leaves
        fps: average over the file

    Raises:
        MediaError: no video in it, truncated, damaged beyond decoding, an unsupported codec, or over a limit.
    """

    def __init__(self, source: Path | bytes, limits: Limits | None = None, name: str | None = None) -> None:
        self.name = name or (source.name if isinstance(source, Path) else "video")
        self.limits = limits or Limits()
        self.warnings: list[str] = []
        self._source = source
        self._deadline = time.monotonic() + self.limits.decode_seconds
        self._container: Any = None
        self._format = self._check_complete()
        try:
            self._open()
            self._index()
            first = next(self.read([0]))
        except BaseException:
            self.close()
            raise
        self.width, self.height = first.image.size

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    def read(self, indices: Sequence[int], progress: Progress | None = None) -> Iterator[Frame]:
        """Yield exactly the frames asked for. `indices` ascends and may repeat; 0 is the first frame shown.

        Raises:
            MediaError: a frame is damaged, over the pixel limit, or the decoding deadline has passed.
            IndexError: there is no such frame.
        """
        if any(a > b for a, b in pairwise(indices)):
            raise IndexError("the indices of the frames to read must ascend")
        if len(indices) and not 0 <= indices[0] <= indices[-1] < self.num_frames:
            raise IndexError(f"{self.name} has frames 0 to {self.num_frames - 1}, not {indices[0]} to {indices[-1]}")
        self._deadline = time.monotonic() + self.limits.decode_seconds
        repeats = Counter(indices)
        done = 0
        for index, image in self._decode(sorted(repeats)):
            done += repeats[index]
            for _ in range(repeats[index]):
                yield Frame(image, index, self.seconds[index])
            if progress:
                progress(done, len(indices), self.name)

    # Opening

    def _check_complete(self) -> str:
        """Return the container's format; what the file itself says is missing at its end is an error."""
        size = self._source.stat().st_size if isinstance(self._source, Path) else len(self._source)
        if size == 0:
            raise MediaError(f"{self.name} is empty (0 bytes); save or download it again")
        with self._source.open("rb") if isinstance(self._source, Path) else io.BytesIO(self._source) as file:
            container = container_of(file.read(64))
            if container is None:
                raise MediaError(f"{self.name} is not a video that can be read; expected MP4, MOV, MKV, WebM or AVI")
            missing = missing_bytes(file, container, size)
        if missing:
            lost = f"{missing:,} of {size + missing:,} bytes are missing at its end"
            raise MediaError(f"{self.name} is incomplete: {lost}; save or download it again")
        return container

    def _open(self) -> None:
        import av

        # The format is the one its first bytes show, never a guess: playlists and concat scripts open other files.
        source = f"file:{self._source.resolve()}" if isinstance(self._source, Path) else io.BytesIO(self._source)
        try:
            self._container = av.open(
                source,
                format=self._format,
                options={"protocol_whitelist": "file"},
                timeout=self.limits.decode_seconds,
                metadata_errors="replace",
            )
        except (av.FFmpegError, ValueError):
            raise self._damaged("its header cannot be read") from None
        streams = [s for s in self._container.streams.video if "attached_pic" not in _disposition(s)]
        if not streams:
            held = "only sound" if self._container.streams.audio else "no track that can be shown"
            raise MediaError(f"{self.name} has no video in it, {held}; give a file with a video track")
        self._stream = streams[0]
        context = self._stream.codec_context
        if context is None or context.codec.canonical_name not in CODECS:
            codec = "an unknown codec" if context is None else context.codec.canonical_name
            raise MediaError(f"{self.name} is coded with {codec}, which is not read; convert it, to H.264 for example")
        if context.width and context.height:
            check_size(context.width, context.height, self.name, self.limits)
        context.thread_count = 1
        self._packets: Iterator[Any] = self._demux()
        self._at = 0  # position, in decoding order, of the next packet in `_packets`

    def _demux(self) -> Iterator[Any]:
        """Yield the stream's packets in decoding order; damage ends them with a warning."""
        import av

        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self._check_deadline()
                    yield packet
        except (av.FFmpegError, ValueError):
            warning = f"{self.name} is damaged; what follows the damage is left out"
            if warning not in self.warnings:
                self.warnings.append(warning)

    def _index(self) -> None:
        """Demux the file once: when each packet's frame is shown, and which packets are key frames."""
        codec = self._stream.codec_context.codec.canonical_name
        times: list[int | None] = []
        keys: list[int] = []
        hidden: set[int] = set()
        end = 0
        for position, packet in enumerate(self._demux()):
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(position)
            if packet.is_discard or (codec == "vp8" and not bytes(packet)[0] >> 4 & 1):
                hidden.add(position)
            elif packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
        self._at = len(times)
        if keys:  # what comes before the first key frame, or is shown before it, leans on frames that are not there
            first = times[keys[0]]
            early = (t is not None and first is not None and t < first for t in times)
            hidden.update(p for p, is_early in enumerate(early) if p < keys[0] or is_early)
        shown = [position for position in range(len(times)) if position not in hidden]
        if not shown:
            raise MediaError(f"{self.name} has a video track without a frame to show; save or download it again")
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.num_frames = len(shown)
        known = [(pts, position) for position in shown if (pts := times[position]) is not None]
        # AVI has no presentation times; what stands for them is wrong for codecs that reorder their frames.
        reordered = (
            self._format == "avi"
            and codec in ("h264", "hevc", "mpeg4")
            and (self._stream.codec_context.has_b_frames or known != sorted(known))
        )
        self._exact = not reordered and len({pts for pts, _ in known}) == len(shown)
        if not self._exact:
            self.fps = rate
            self.seconds = [i / rate for i in range(self.num_frames)]
            self.duration = self.num_frames / rate
            return
        known.sort()
        self._pts = [pts for pts, _ in known]
        self._position = [position for _, position in known]
        counts = Counter(times)
        self._landing = {pts: position for position, pts in enumerate(times) if pts is not None and counts[pts] == 1}
        keys = [key for key in keys if times[key] is not None] or [0]
        self._keys = keys
        self._key_times = [times[key] or 0 for key in keys]
        base = float(self._stream.time_base)
        self.seconds = ((np.asarray(self._pts, dtype=np.float64) - self._pts[0]) * base).tolist()
        rest = (end - self._pts[-1]) * base
        if not 0 < rest <= 3600:  # the last frame does not say how long it stays: as long as the average
            rest = self.seconds[-1] / (self.num_frames - 1) if self.num_frames > 1 else 1 / rate
        self.duration = self.seconds[-1] + rest
        measured = self.num_frames / self.duration
        # Containers round times to milliseconds; a header that says nearly the same says it better.
        self.fps = rate if abs(measured - rate) < 0.01 * rate else measured

    # Decoding

    def _decode(self, indices: list[int]) -> Iterator[tuple[int, Image.Image]]:
        if not self._exact:
            yield from self._decode_in_order(indices)
            return
        for number, group in groupby(indices, self._key_of):
            yield from self._decode_group(number, list(group))

    def _key_of(self, index: int) -> int:
        """Return the number of the key frame to decode from.

        A frame shown before a key frame but stored after it (an open group) needs the key frame before that one.
        """
        number = max(0, bisect_right(self._key_times, self._pts[index]) - 1)
        while number and self._keys[number] > self._position[index]:
            number -= 1
        return number

    def _decode_group(self, number: int, indices: list[int]) -> Iterator[tuple[int, Image.Image]]:
        """Decode the targets that share a key frame: from that key frame to the last of them."""
        context = self._stream.codec_context
        wanted = {self._pts[index]: index for index in indices}
        last = max(self._position[index] for index in indices)
        found: dict[int, Image.Image] = {}
        due = 0
        for packet in self._packets_from(self._keys[number], last):
            if packet is not None:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            for frame in self._frames_of(packet):
                if frame.pts in wanted:
                    found[wanted[frame.pts]] = self._upright(frame)
            while due < len(indices) and indices[due] in found:
                yield indices[due], found.pop(indices[due])
                due += 1
        if due < len(indices):
            index = indices[due]
            raise self._damaged(f"frame {index:,}, at {self.seconds[index]:.2f} s, cannot be decoded")

    def _packets_from(self, key: int, last: int) -> Iterator[Any]:
        """Yield the packets from position `key` up to `last`, then None, which drains the decoder."""
        if not 0 <= key - self._at <= NEAR:
            self._seek(key)
        self._stream.codec_context.flush_buffers()
        for packet in self._packets:
            position = self._at
            self._at += 1
            if position >= key:
                yield packet
            if position >= last:
                break
        yield None

    def _seek(self, key: int) -> None:
        """Stand at or before the key frame at position `key`, and know where.

        Containers seek by decoding time, by presentation time, or by an index that lies. So the first packet after a
        seek tells where we landed; too late means trying from further back, at last from the beginning.
        """
        import av

        number = bisect_right(self._keys, key) - 1
        for steps in (0, 1, 8, 64):
            if number < steps:
                break
            try:
                self._container.seek(self._key_times[number - steps], stream=self._stream)
            except av.FFmpegError:
                break
            packets = self._demux()
            first = next(packets, None)
            landed = None if first is None else self._landing.get(first.pts)
            if landed is not None and landed <= key:
                self._packets, self._at = chain([first], packets), landed
                return
        self._rewind()

    def _rewind(self) -> None:
        self._container.close()
        self._open()

    def _decode_in_order(self, indices: list[int]) -> Iterator[tuple[int, Image.Image]]:
        """Decode from the beginning and count: for files whose packets do not say when their frames are shown."""
        self._rewind()
        targets = iter(indices)
        due = next(targets, None)
        count = 0
        for packet in chain(self._packets, [None]):
            for frame in self._frames_of(packet):
                if count == due:
                    yield count, self._upright(frame)
                    due = next(targets, None)
                    if due is None:
                        return
                count += 1
        if due is not None:
            raise self._damaged(f"frame {due:,} cannot be decoded")

    def _frames_of(self, packet: Any) -> list[Any]:
        """Feed one packet, or None to drain; damage yields nothing, and shows when its frame is missed."""
        import av

        self._check_deadline()
        try:
            return self._stream.codec_context.decode(packet)
        except av.EOFError:
            return []
        except (av.FFmpegError, ValueError):
            return []

    def _upright(self, frame: Any) -> Image.Image:
        check_size(frame.width, frame.height, self.name, self.limits)
        image = frame.to_image()
        turn = UPRIGHT.get(round(frame.rotation / 90) * 90 % 360)
        return image if turn is None else image.transpose(turn)

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise beyond(self.name, "takes too long to decode", self.limits, "decode_seconds")

    def _damaged(self, what: str) -> MediaError:
        return MediaError(f"{self.name} is damaged: {what}; save or download it again, or re-encode it")


def _disposition(stream: Any) -> str:
    return str(stream.disposition.name or "")
