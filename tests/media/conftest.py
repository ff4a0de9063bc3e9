"""The videos that the tests of this folder share, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from media_samples import TURNS, VIDEOS, rotated, write_video


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each video by file name; frame n shows the number n."""
    folder = tmp_path_factory.mktemp("videos")
    made = {name: write_video(folder / name, **how) for name, how in VIDEOS.items()}
    for name, degrees in TURNS.items():
        made[name] = folder / name
        made[name].write_bytes(rotated(made["constant.mp4"].read_bytes(), degrees))
    return made
