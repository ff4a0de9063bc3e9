"""Tell pictures from videos by content, for the command line, which is given files without a type."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from longview.errors import MediaError
from longview.media.decoders.animation import is_animated
from longview.media.decoders.isolation import is_animated_isolated
from longview.media.fetch import fetch, read_file
from longview.media.formats import HEAD, SUPPORTED, container_of, foreign_format_of, image_format_of, read_head
from longview.requests import Limits


def sniff(source: str | Path | bytes, limits: Limits | None = None) -> Literal["image", "video"]:
    """Tell a picture from a video by content. An animated GIF, WebP or PNG is a video.

    A file is read from its start, a URL only as far as needed.

    Raises:
        MediaError: it cannot be fetched, or is neither.
    """
    limits = limits or Limits()
    fetched = fetch(source, limits, "max_video_bytes", first=HEAD)
    data, name = fetched.data, fetched.name
    head = data[:HEAD] if isinstance(data, bytes) else read_head(data, name)
    if container_of(head):
        return "video"
    form = image_format_of(head)
    if form is None:
        raise MediaError(f"{name} is {foreign_format_of(head)}; expected {SUPPORTED}")
    if form not in ("GIF", "WEBP", "PNG"):
        return "image"
    if isinstance(data, Path):
        data = read_file(data, name, limits)
    elif isinstance(source, str):
        data = fetch(source, limits, "max_image_bytes").data
    assert isinstance(data, bytes)
    animated = is_animated_isolated(data, limits) if limits.isolate else is_animated(data)
    return "video" if animated else "image"
