"""Files that are there whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write a file through a temporary one in its folder and a rename, so that nobody meets half of it.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    path = path.resolve()  # through a link, as `open` writes
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        with open(unfinished, "xb") as file:  # with the mode that the umask says
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
