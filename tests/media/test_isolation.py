"""Decoding in child processes: the same pixels, limits that hold whatever a decoder does, no process left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from media_samples import encoded, gradient, number_of, numbered, one_clear_line
from PIL import Image
from test_malformed_pictures import SAMPLES, scan_bomb

from longview.errors import LongviewError, MediaError
from longview.media import open_media, open_medium, sniff
from longview.media.decoders import isolation
from longview.messages import Part
from longview.requests import Limits, MediaOptions

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux shows them")

ISOLATED = Limits(isolate=True)
FOREIGN: set[int] = set()
"""Processes of other tests that have ended, and that nobody has waited for."""


@pytest.fixture(autouse=True, scope="module")
def _no_worker_is_left():
    FOREIGN.update(pid for pid, state in children().items() if state == "Z")
    yield
    isolation.end_idle_workers()
    assert children() == {}


def children() -> dict[int, str]:
    """The state of each child of this process that is a worker: R, S, Z (a zombie), …"""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            is_worker = state == "Z" or b"longview.media.decoders.worker" in command
            if int(parent) == os.getpid() and is_worker and int(folder.name) not in FOREIGN:
                found[int(folder.name)] = state
    return found


def refusal(data, limits: Limits, kind: str = "image") -> str:
    with pytest.raises(MediaError) as caught:
        open_medium(Part(kind, source=data), limits=limits)
    return one_clear_line(caught.value)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_picture_is_the_same_in_a_child_process(name):
    for kind in ("image", "video"):
        here, there = (open_medium(Part(kind, source=SAMPLES[name]), limits=limits) for limits in (None, ISOLATED))
        for one, other in zip(here.frames, there.frames, strict=True):
            np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
            assert (one.index, one.seconds) == (other.index, other.seconds)
        assert (here.digest, here.warnings, here.duration) == (there.digest, there.warnings, there.duration)
    assert sniff(SAMPLES[name]) == sniff(SAMPLES[name], ISOLATED)


@pytest.mark.parametrize("name", ["constant.mp4", "variable.mkv", "mpeg4-reordered.avi", "vp8.webm", "turned-90.mp4"])
def test_a_video_is_the_same_in_a_child_process(videos, name):
    for source in (videos[name], videos[name].read_bytes()):
        for decode in (True, False):
            here, there = (
                open_media([Part("video", source=source)], MediaOptions(frames=5), limits, decode=decode)[0]
                for limits in (None, ISOLATED)
            )
            for one, other in zip(here.read(), there.read(), strict=True):
                np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
                assert (one.index, one.seconds) == (other.index, other.seconds)
            facts = ("name", "width", "height", "num_frames", "duration", "fps", "digest", "warnings")
            assert all(getattr(here, fact) == getattr(there, fact) for fact in facts)
            here.close()


def test_an_error_in_a_child_process_is_the_same_error(videos, tmp_path):
    whole = videos["constant.mp4"].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for kind, source in (("image", SAMPLES["PNG"][:50]), ("image", b"text" * 20), ("video", tmp_path / "cut.mp4")):
        messages = []
        for limits in (Limits(), ISOLATED):
            with pytest.raises(LongviewError) as caught:
                open_medium(Part(kind, source=source), limits=limits)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1]


def test_the_deadline_is_kept_whatever_a_decoder_does():
    bomb = scan_bomb(8000, 100)  # several times the deadline, on the fastest processor
    limits = Limits(isolate=True, decode_seconds=0.3, max_pixels=200_000_000)
    for source, kind in ((bomb, "image"), ([bomb], "video")):
        began = time.monotonic()
        assert "--decode-seconds" in refusal(source, limits, kind)
        assert time.monotonic() - began < 10, "a second after the deadline, and what a busy machine needs"
    assert "Z" not in children().values()
    assert open_medium(Part("image", source=SAMPLES["PNG"]), limits=ISOLATED).width == 16


def test_memory_is_bounded():
    large = encoded(Image.new("RGB", (6000, 6000)), "PNG")
    assert "--max-decoder-bytes" in refusal(large, Limits(isolate=True, max_decoder_bytes=32 << 20))
    assert open_medium(Part("image", source=large), limits=ISOLATED).width == 6000


def test_a_decoder_that_crashes_ends_its_process_only(monkeypatch):
    send = isolation._Worker.send

    def crash(worker, header, *arguments):
        send(worker, header, *arguments)
        if header["do"] == "picture":
            os.kill(worker._process.pid, signal.SIGSEGV)

    monkeypatch.setattr(isolation._Worker, "send", crash)
    assert "its decoder crashed" in refusal(scan_bomb(3000, 50), ISOLATED)
    monkeypatch.undo()
    assert "Z" not in children().values()
    assert open_medium(Part("image", source=SAMPLES["PNG"]), limits=ISOLATED).width == 16


def test_a_worker_that_ended_while_it_was_idle_is_replaced():
    open_medium(Part("image", source=SAMPLES["PNG"]), limits=ISOLATED)
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    while set(children().values()) - {"Z"}:
        time.sleep(0.01)
    assert open_medium(Part("image", source=SAMPLES["PNG"]), limits=ISOLATED).width == 16


@pytest.mark.parametrize(
    "reply",
    [
        {"width": 16, "height": 12, "warnings": [], "bytes": 1 << 40},
        {"width": 16, "height": 12, "warnings": [], "bytes": -1},
        {"width": 1 << 20, "height": 1 << 20, "warnings": [], "bytes": 0},
        {"width": 16, "height": 12, "warnings": [], "bytes": 0},
        {"error": "media", "text": 5, "bytes": 0},
        {"error": ["media"], "bytes": 0},
        {"width": "x", "height": None, "warnings": 3, "bytes": 576},
        {"bytes": 0},
        ["a list"],
        {},
    ],
)
def test_what_a_hostile_worker_replies_is_not_believed(reply, monkeypatch):
    script = (
        "import json, os, struct, sys\n"
        "def reply(header):\n    data = json.dumps(header).encode()\n"
        "    os.write(1, struct.pack('>I', len(data)) + data)\n"
        f"reply({{'bytes': 0}})\nos.read(0, 1)\nreply({reply!r})\nwhile os.read(0, 65536):\n    pass\n"
    )
    isolation.end_idle_workers()
    monkeypatch.setattr(isolation, "START", script)
    assert refusal(SAMPLES["PNG"], Limits(isolate=True, decode_seconds=5))
    isolation.end_idle_workers()


def test_many_threads_may_decode_in_child_processes(videos):
    failures = []

    def work(number: int) -> None:
        try:
            for turn in range(4):
                if (number + turn) % 3 == 0:
                    with pytest.raises(MediaError):
                        open_medium(Part("image", source=SAMPLES["JPEG"][:200]), limits=ISOLATED)
                elif (number + turn) % 3 == 1:
                    picture = encoded(Image.fromarray(numbered(number)))
                    medium = open_medium(Part("image", source=picture), limits=ISOLATED)
                    assert number_of(medium.frames[0].image) == number
                else:
                    medium = open_medium(Part("video", source=videos["group.mkv"]), MediaOptions(frames=3), ISOLATED)
                    assert [number_of(frame.image) for frame in medium.frames] == [10, 30, 50]
        except BaseException as error:  # noqa: BLE001 - collected, to fail the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(children()) <= isolation.MAX_WORKERS
    assert "Z" not in children().values()


def test_a_reading_that_is_abandoned_leaves_its_worker_free(videos):
    isolation.end_idle_workers()
    reader = isolation.IsolatedReader("video", videos["long-group.mp4"], ISOLATED, "long.mp4")
    before = children()
    for wanted in (range(100), range(1), [0, 7]):  # in the middle, and behind the last
        reading = reader.read(wanted)
        assert number_of(next(reading).image) == 0
        reading.close()
        assert children().keys() == before.keys()
    assert [number_of(frame.image) for frame in reader.read([5, 6])] == [5, 6]
    reader.close()
    forgotten = isolation.IsolatedReader("video", videos["long-group.mp4"], ISOLATED, "long.mp4")
    next(forgotten.read(range(100)))
    del forgotten
    gc.collect()
    assert children().keys() == before.keys()


def test_a_worker_that_does_not_stop_reading_is_ended(videos, monkeypatch):
    isolation.end_idle_workers()
    reader = isolation.IsolatedReader("video", videos["long-group.mp4"], ISOLATED, "long.mp4")
    monkeypatch.setattr(isolation._Worker, "send", lambda *_: None)  # it is not told
    monkeypatch.setattr(isolation, "STOP_SECONDS", 0.0)
    session = reader._session
    session.busy = True
    session.stop_reading(1 << 20)
    assert session.closed
    assert children() == {}


def test_so_many_workers_work_at_a_time(videos, monkeypatch):
    monkeypatch.setattr(isolation, "_places", threading.Semaphore(2))
    isolation.end_idle_workers()
    picture = encoded(Image.fromarray(numbered(1)))
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(6):
            open_medium(Part("image", source=picture), limits=ISOLATED)
            most = max(most, len(children()))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    first, second, third = (  # of one thread, which would wait for itself
        isolation.IsolatedReader("video", videos["group.mkv"], ISOLATED, "a.mkv") for _ in range(3)
    )
    for reader in (first, second, third):
        reader.close()


def test_the_time_that_a_caller_takes_is_not_decoding(videos):
    reader = isolation.IsolatedReader("video", videos["constant.mp4"], Limits(isolate=True, decode_seconds=1), "a.mp4")
    for frame in reader.read(range(0, 60, 20)):
        time.sleep(1.2)
        assert number_of(frame.image) == frame.index
    reader.close()


def test_workers_end_with_their_parent_and_its_forks_leave_them_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(gradient()))
    script = (
        "import os, sys\nfrom longview.media import open_medium\n"
        "from longview.media.decoders import isolation\nfrom longview.messages import Part\n"
        "from longview.requests import Limits\n"
        "look = lambda: open_medium(Part('image', source=sys.argv[1]), limits=Limits(isolate=True)).width\n"
        "look()\n(worker,) = isolation._idle\nprint(worker._process.pid, flush=True)\n"
        "child = os.fork()\n"
        "if child == 0:\n    assert isolation._idle == []\n    look()\n    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\nlook()\n(same,) = isolation._idle\nassert same is worker\n"
        "if sys.argv[2] == 'killed':\n    os.kill(os.getpid(), 9)\n"
    )
    for how, status in (("ended", 0), ("killed", -signal.SIGKILL)):
        ran = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "a.png"), how], capture_output=True, text=True, timeout=100
        )
        assert ran.returncode == status, ran.stderr
        assert ran.stderr == ""
        worker = Path("/proc") / ran.stdout.strip()
        until = time.monotonic() + 10
        while worker.exists() and "Z" not in (worker / "stat").read_text().rpartition(")")[2][:3]:
            assert time.monotonic() < until, "the worker has not noticed that its parent is gone"
            time.sleep(0.05)


def test_a_module_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    isolation.end_idle_workers()
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the current folder')")
    (tmp_path / "PIL.py").write_text("raise SystemExit('a module of the current folder')")
    monkeypatch.chdir(tmp_path)
    assert open_medium(Part("image", source=SAMPLES["PNG"]), limits=ISOLATED).width == 16
