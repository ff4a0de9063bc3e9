"""Pictures from any source before decoding, and lists of pictures used as a video."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from longview.errors import MediaError, RequestError
from longview.media.decoders.isolation import read_picture_isolated
from longview.media.decoders.pillow import check_size, orientation_of, read_picture, to_rgb, to_upright
from longview.media.errors import decoder_errors, over_limit
from longview.media.fetch import fetch, read_file
from longview.media.medium import Frame, FrameTransform
from longview.messages import Progress, Source
from longview.requests import Limits
from longview.wording import counted

JPEG_LIST = "data:video/jpeg"
"""How a data URI begins that holds a video as JPEG frames, separated by commas."""

CLOSED = "cannot be decoded: it is closed, truncated or damaged; open it again"
_LOAD_LOCK = threading.Lock()
"""Pillow decodes an image when it is first used; several threads may be given the same one."""


@dataclass(frozen=True)
class PictureSource:
    """A picture before decoding: encoded bytes, or the caller's own Pillow image."""

    source: bytes | Image.Image
    name: str

    @classmethod
    def of(cls, source: Source | None, limits: Limits) -> PictureSource:
        if isinstance(source, Image.Image):
            with decoder_errors("the picture", CLOSED), _LOAD_LOCK:
                check_size(*source.size, "the picture", limits)
                source.load()
            return cls(source, "picture")
        if not isinstance(source, (str, Path, bytes)):
            kind = type(source).__name__
            raise RequestError(f"a picture cannot be read from {kind}; give a path, a URL, bytes or a Pillow image")
        fetched = fetch(source, limits, "max_image_bytes")
        data = fetched.data if isinstance(fetched.data, bytes) else read_file(fetched.data, fetched.name, limits)
        return cls(data, fetched.name)

    def digest(self) -> str:
        """SHA-256 in hex: of the encoded bytes; of mode, size, orientation and RGB pixels of a Pillow image."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        image = self.source
        shape = f"{image.mode} {image.width} {image.height} {orientation_of(image)}"
        # What is decoded, not what it is decoded from: a palette has a mode of its own, and more may come.
        pixels = to_rgb(image, self.name)
        with decoder_errors(self.name):
            return framed_digest(b"pillow", shape.encode(), pixels.tobytes())

    def decode(self, limits: Limits) -> tuple[Image.Image, list[str]]:
        """Return the upright RGB picture and the warnings to show."""
        if isinstance(self.source, bytes):
            read = read_picture_isolated if limits.isolate else read_picture
            return read(self.source, self.name, limits)
        return to_upright(self.source, self.name), []


def framed_digest(*fields: bytes) -> str:
    """SHA-256 in hex over fields of which none can flow into the next: each is preceded by its length."""
    digest = hashlib.sha256()
    for field in fields:
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.hexdigest()


class PictureList:
    """A list of pictures as a video: a `FrameReader` without times. Each is decoded when it is read."""

    seconds: None = None
    duration: None = None
    fps: None = None

    def __init__(self, sources: Sequence[Source], limits: Limits) -> None:
        self.name = counted(len(sources), "picture")
        self.limits = limits
        self.warnings: list[str] = []
        self.num_frames = len(sources)
        if not sources:
            raise RequestError("a video given as a list of pictures needs at least one picture")
        if len(sources) > limits.max_frames:
            raise over_limit("a video", f"is given as a list of {len(sources):,} pictures", limits, "max_frames")
        self._pictures: list[PictureSource] = []
        held = 0
        for source in sources:
            self._pictures.append(PictureSource.of(source, limits))
            encoded = self._pictures[-1].source
            held += len(encoded) if isinstance(encoded, bytes) else 0
            if held > limits.max_video_bytes:
                raise over_limit(self.name, f"hold {held:,} bytes or more together", limits, "max_video_bytes")
        self.width, self.height = self._pictures[0].decode(limits)[0].size

    def digest(self) -> str:
        """SHA-256 in hex over the digests of the pictures, in order."""
        return framed_digest(b"frames", *(bytes.fromhex(picture.digest()) for picture in self._pictures))

    @classmethod
    def of_data_uri(cls, uri: str, limits: Limits) -> PictureList:
        """Read a `data:video/jpeg;base64,…,…` address. The frames are counted before one is decoded."""
        header, _, body = uri.partition(",")
        if not header.lower().endswith(";base64"):
            raise MediaError("a video/jpeg data URI must be base64: data:video/jpeg;base64,<frame>,<frame>,…")
        count = body.count(",") + 1
        if count > limits.max_frames:
            raise over_limit("the video/jpeg data URI", f"holds {count:,} frames", limits, "max_frames")
        return cls([f"data:image/jpeg;base64,{frame}" for frame in body.split(",")], limits)

    def read(
        self, indices: Sequence[int], progress: Progress | None = None, transform: FrameTransform | None = None
    ) -> Iterator[Frame]:
        """Yield the pictures at `indices`, which may repeat."""
        for done, index in enumerate(indices, 1):
            image, warnings = self._pictures[index].decode(self.limits)
            self.warnings += [warning for warning in warnings if warning not in self.warnings]
            yield Frame(transform(image) if transform else image, index, None)
            if progress:
                progress(done, len(indices), self.name)

    def close(self) -> None:
        """Nothing is open."""
