"""Animations (GIF, WebP, PNG) as videos."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate

from PIL import Image

from longview.errors import MediaError
from longview.media.decoders.headers import read_header
from longview.media.decoders.pillow import check_size, is_animation, load_image, open_image, to_upright
from longview.media.errors import DAMAGED, decoder_errors, format_bytes, over_limit
from longview.media.formats import HEAD, image_format_of
from longview.media.medium import Frame, FrameTransform
from longview.messages import Progress
from longview.requests import Limits


def is_animated(data: bytes) -> bool:
    """Whether a picture file holds several frames that are shown in turn. Checks nothing else."""
    form = image_format_of(data[:HEAD])
    try:
        header = read_header(data, form, "the picture")
        if form == "GIF":  # Pillow would allocate the first frame, whatever size it claims
            return len(header.seconds) > 1
        with decoder_errors("the picture"), Image.open(io.BytesIO(data), formats=[form] if form else []) as image:
            return is_animation(image, header)
    except MediaError:  # whoever opens it next gets this error, with the file's name
        return False


class AnimationReader:
    """A `FrameReader` of a GIF, WebP or PNG animation, or of a still picture as a video of one frame.

    Raises:
        MediaError: truncated, damaged, over a limit, or past the decoding deadline.
    """

    def __init__(self, data: bytes, name: str, limits: Limits) -> None:
        self.name = name
        self.warnings: list[str] = []
        self._limits = limits
        self._data = data
        self._deadline = time.monotonic() + limits.decode_seconds
        self._was_read = False
        image, header = open_image(data, name, limits)
        stored = [0.0]
        if is_animation(image, header):
            if not (header.complete and header.seconds):
                raise MediaError(f"{name} {DAMAGED}")
            stored = header.seconds
        self.width, self.height = to_upright(load_image(image, name), name).size
        *self.seconds, self.duration = accumulate((lasts or 0.1 for lasts in stored), initial=0.0)  # as browsers do
        self.num_frames = len(stored)
        self.fps = self.num_frames / self.duration
        if self.num_frames == 1:
            self.warnings.append(f"{name} is a still picture, used as a video of one frame")

    def read(
        self, indices: Sequence[int], progress: Progress | None = None, transform: FrameTransform | None = None
    ) -> Iterator[Frame]:
        """Yield exactly the frames at `indices`, which ascend and may repeat.

        Each frame is painted over those before it, so all up to the last one are decoded, and counted as such.
        """
        if not len(indices):
            return
        if self._was_read:  # the time since the first reading was the caller's
            self._deadline = time.monotonic() + self._limits.decode_seconds
        self._was_read = True
        decoded = (indices[-1] + 1) * self.width * self.height * 3
        if decoded > self._limits.max_decoded_bytes:
            found = (
                f"needs {indices[-1] + 1:,} frames of {self.width:,}×{self.height:,} pixels decoded in a row, "
                f"{format_bytes(decoded)}, to show those asked for"
            )
            raise over_limit(self.name, found, self._limits, "max_decoded_bytes")
        done = 0
        for index, image in enumerate(self._frames()):
            if index != indices[done]:
                continue
            upright = to_upright(image, self.name, copy=True)
            begin = time.monotonic()
            while done < len(indices) and indices[done] == index:
                yield Frame(transform(upright) if transform else upright, index, self.seconds[index])
                done += 1
            self._deadline += time.monotonic() - begin  # the time that the caller takes is not decoding
            if progress:
                progress(done, len(indices), self.name)
            if done == len(indices):
                return
        if done < len(indices):
            raise MediaError(f"{self.name} {DAMAGED}")

    def close(self) -> None:
        """Nothing is open."""

    def _frames(self) -> Iterator[Image.Image]:
        image, header = open_image(self._data, self.name, self._limits)
        while True:
            yield load_image(image, self.name)
            if time.monotonic() > self._deadline:
                raise over_limit(self.name, "takes too long to decode", self._limits, "decode_seconds")
            if not is_animation(image, header):
                return
            with decoder_errors(self.name):
                try:
                    image.seek(image.tell() + 1)
                except EOFError:
                    return
            check_size(*image.size, self.name, self._limits)
