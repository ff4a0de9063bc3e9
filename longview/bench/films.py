"""Films of numbered frames; reading one by its length: opening it, reading frames spread over it, decoding it through.

A long film is a minute of numbered frames, encoded once, whose packets are written again and again with later times.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from longview.bench.peak import peak_memory, reset_peak_memory

FRAMES = 64
"""Read of a film, spread over it."""
MINUTE = 60
VIDEO_FPS = 24
BITS = 20


def read_films(lengths: Sequence[float], repeats: int, limit: float) -> list[dict[str, Any]]:
    """A row for each length in seconds, ascending: opening (an index of all packets), reading frames, decoding through.

    Args:
        limit: Seconds that decoding one through may be predicted to take.
    """
    rows: list[dict[str, Any]] = []
    through: tuple[float, int] | None = None
    with tempfile.TemporaryDirectory(prefix="longview-bench-") as folder:
        minute = write_numbered_video(Path(folder) / "minute.mp4", MINUTE * VIDEO_FPS, 0)
        for seconds in sorted(lengths):
            frames = max(FRAMES, round(seconds * VIDEO_FPS))
            path = write_film(minute, Path(folder) / "film.mp4", frames)
            reset_peak_memory("cpu")
            held = peak_memory("cpu")
            read = [read_film(path) for _ in range(repeats)]
            peak = peak_memory("cpu") - held
            predicted = None if through is None else through[0] * frames / through[1]
            too_long = predicted is not None and predicted > limit
            if not too_long:
                through = decode_through(path), frames
            rows.append(
                {
                    "film s": seconds,
                    "frames in it": frames,
                    "open s": statistics.median(opening for opening, _, _ in read),
                    "read s": statistics.median(reading for _, reading, _ in read),
                    "exact frames": f"{min(exact for _, _, exact in read)} of {FRAMES}",
                    "decode through s": None if too_long else through and through[0],
                    "predicted s": predicted if too_long else None,
                    "peak MiB": peak / 2**20,
                }
            )
    return rows


def write_film(minute: Path, path: Path, num_frames: int) -> Path:
    """Write a film of so many frames from the packets of a shorter one, which has no frames out of order."""
    import av

    with av.open(str(minute)) as source, av.open(str(path), "w") as container:
        stream = source.streams.video[0]
        written = container.add_stream_from_template(stream)
        packets = [(bytes(p), p.pts, p.is_keyframe) for p in source.demux(stream) if p.pts is not None]
        step, time_base = packets[1][1] - packets[0][1], stream.time_base
        assert time_base is not None
        for number in range(num_frames):
            data, _, is_key = packets[number % len(packets)]
            packet = av.Packet(data)
            packet.stream, packet.time_base = written, time_base
            packet.pts = packet.dts = number * step
            packet.is_keyframe = is_key
            container.mux(packet)
    return path


def spread(num_frames: int, count: int) -> list[int]:
    """Numbers of so many frames, evenly over a film."""
    return [int((number + 0.5) * num_frames / count) for number in range(count)]


def read_film(path: Path, count: int = FRAMES, period: int = MINUTE * VIDEO_FPS) -> tuple[float, float, int]:
    """Seconds of opening and of reading frames spread over it, and how many of these are the right ones.

    Args:
        period: Frames after which the numbers in them begin anew.
    """
    from longview.media.decoders.video import VideoReader

    start = time.perf_counter()
    with VideoReader(path) as reader:
        opened = time.perf_counter()
        wanted = spread(reader.num_frames, count)
        frames = list(reader.read(wanted))
    reading = time.perf_counter() - opened
    exact = [number_of(frame.image) == at % period for frame, at in zip(frames, wanted, strict=True)]
    return opened - start, reading, sum(exact)


def decode_through(path: Path, keep: Collection[int] = ()) -> float:
    """Seconds of decoding every frame, and of making pictures of some."""
    import av

    start = time.perf_counter()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        pictures = [frame.to_image() for number, frame in enumerate(container.decode(video=0)) if number in keep]
    seconds = time.perf_counter() - start
    assert len(pictures) == len(keep)
    return seconds


def write_numbered_video(path: Path, num_frames: int, seed: int, width: int = 320, height: int = 176) -> Path:
    """Write a video of numbered frames, with a key frame every 250, as encoders do."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=VIDEO_FPS, options={"preset": "ultrafast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        ground = np.full((height, width, 3), 30 + seed % 50, np.uint8)
        for number in range(num_frames):
            pixels = ground.copy()
            for bit in range(BITS):
                if number >> bit & 1:
                    pixels[16:64, bit * 16 : bit * 16 + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def number_of(image: Any) -> int:
    """The number of a frame of such a video."""
    return sum(1 << bit for bit in range(BITS) if image.getpixel((bit * 16 + 8, 40))[0] > 140)
