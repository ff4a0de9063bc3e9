"""The moments that were found as files of their own, cut without encoding again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longview.errors import RequestError
from longview.index.moments import Found
from longview.media.decoders.video import VideoReader
from longview.requests import Limits


def write_clips(found: Sequence[Found], folder: Path, limits: Limits | None = None) -> list[Path]:
    """Cut each moment out of its video, from the key frame before it; names tell rank, file and second.

    Raises:
        RequestError: the folder cannot be written to.
        MediaError: a video cannot be read, or has no times to cut by.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made ({error.strerror}); choose another folder") from None
    written = []
    for rank, each in enumerate(found, 1):
        if each.kind == "moment" and each.begin is not None and each.end is not None:
            path = Path(each.path)
            target = folder / f"{rank:02d}-{path.stem}-{int(each.begin)}s{path.suffix.lower()}"
            with VideoReader(path, limits) as reader:
                reader.write_clip(target, each.begin, each.end)
            written.append(target)
    return written
