"""An index holds what its folders hold, through changes and kills, and finds it again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.errors import RequestError
from longview.index import index as module
from longview.index.index import Index, update_index
from longview.index.moments import FUSION
from longview.index.settings import FindOptions, IndexOptions
from longview.world.render import _write_frames

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230), "white": (240, 240, 240)}
ROOT = Path(__file__).parents[2]


class Colours:
    """As `Similarity`: the vector of a picture is its mean colour, and of a text that of the colours it names."""

    width = 16

    def resized(self, image):
        return image.resize((8, 8))

    def images(self, images):
        found = [self._unit(np.asarray(image, np.float32).mean((0, 1))) for image in images]
        return np.stack(found) if found else np.zeros((0, self.width), np.float32)

    def passage(self, text):
        named = [np.array(rgb, np.float32) for name, rgb in COLOURS.items() if name in text]
        return self._unit(np.mean(named, 0) if named else np.ones(3))

    def _unit(self, rgb):
        vector = np.zeros(self.width, np.float32)
        vector[:3] = rgb
        vector[3] = 1
        return vector / np.linalg.norm(vector)


def film(path: Path, *shots: tuple[str, int]) -> Path:
    """A film of plain shots: colour and seconds."""
    plain = [(Image.new("RGB", (64, 64), COLOURS[colour]), 4 * seconds) for colour, seconds in shots]
    return _write_frames(plain, path, 4)


@pytest.fixture
def folder(tmp_path) -> Path:
    films = tmp_path / "films"
    (films / "deep").mkdir(parents=True)
    film(films / "a.mp4", ("white", 4), ("red", 3), ("white", 5))
    film(films / "deep" / "b.mp4", ("blue", 6), ("green", 2))
    Image.new("RGB", (40, 30), COLOURS["green"]).save(films / "leaf.png")
    (films / "notes.txt").write_text("not indexed")
    return films


def update(tmp_path, *paths, **options):
    return update_index(tmp_path / "index", paths, Colours(), "colours", IndexOptions(**options))


def find(tmp_path, text=None, image=None, **options):
    return Index(tmp_path / "index", Colours()).find(text, image, FindOptions(**options))[0]


def test_a_moment_is_found_with_its_file_and_seconds(tmp_path, folder):
    summary = update(tmp_path, folder)
    assert (summary.added, summary.failed) == (3, {})
    best = find(tmp_path, "red")[0]
    assert (Path(best.path), best.kind, best.begin, best.end) == (folder / "a.mp4", "moment", 4, 7)
    first, second = find(tmp_path, "green")[:2]
    assert {Path(first.path).name, Path(second.path).name} == {"leaf.png", "b.mp4"}
    assert {first.kind, second.kind} == {"picture", "moment"}


def test_frames_like_the_one_before_are_left_out_and_shots_are_told_apart(tmp_path, folder):
    update(tmp_path, folder, shot=0.9)
    index = Index(tmp_path / "index", Colours())
    digest = index.files.by_path[str(folder / "a.mp4")].digest
    kept = [(item.seconds, item.until, item.shot) for item in index.store.of_file(digest)]
    assert kept == [(0, 4, 0), (4, 7, 1), (7, 12, 2)]
    update_index(tmp_path / "one", [folder], Colours(), "colours", IndexOptions(duplicate=0))
    assert [item.until for item in Index(tmp_path / "one", Colours()).store.of_file(digest)] == [12]


def test_a_picture_finds_what_is_like_it_and_both_together_are_fused(tmp_path, folder):
    update(tmp_path, folder)
    blue = Image.new("RGB", (9, 9), COLOURS["blue"])
    assert find(tmp_path, image=blue)[0].begin == 0
    both = find(tmp_path, "blue", blue)[0]
    assert (Path(both.path).name, both.begin) == ("b.mp4", 0)
    assert both.score == pytest.approx(2 / (FUSION + 1)), "the sum of reciprocal ranks"


def test_unchanged_files_are_not_read_again(tmp_path, folder, monkeypatch):
    update(tmp_path, folder)
    monkeypatch.setattr("longview.index.read.digest_of", lambda _: pytest.fail("nothing has changed"))
    summary = update(tmp_path, folder)
    assert (summary.unchanged, summary.added, summary.items) == (3, 0, 6)


def test_changed_moved_copied_and_deleted_files_are_followed(tmp_path, folder, monkeypatch):
    update(tmp_path, folder)
    film(folder / "a.mp4", ("blue", 3))
    os.utime(folder / "a.mp4", (1, 1))
    shutil.move(folder / "deep" / "b.mp4", folder / "c.mp4")
    shutil.copy(folder / "leaf.png", folder / "copy.png")
    summary = update(tmp_path, folder)
    assert (summary.added, summary.moved, summary.removed, summary.unchanged) == (1, 2, 1, 1)
    assert not any(each.score > 0.99 for each in find(tmp_path, "red"))
    assert find(tmp_path, "green")[0].path in {str(folder / "c.mp4"), str(folder / "leaf.png")}
    (folder / "leaf.png").unlink()
    update(tmp_path, folder)
    assert str(folder / "copy.png") in {each.path for each in find(tmp_path, "green")}, "a copy of it is still there"
    (folder / "copy.png").unlink()
    summary = update(tmp_path, folder)
    assert (summary.removed, summary.items) == (1, 3)


def test_a_file_that_vanished_is_told_and_the_rest_is_found(tmp_path, folder):
    update(tmp_path, folder)
    (folder / "leaf.png").unlink()
    found, warnings = Index(tmp_path / "index", Colours()).find("green")
    assert {Path(each.path).name for each in found} == {"a.mp4", "b.mp4"}
    assert warnings == [f"{folder / 'leaf.png'} is in the index, and no longer there; index its folder again"]


def test_a_broken_file_is_left_out_and_told(tmp_path, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0nothing")
    data = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    summary = update(tmp_path, folder)
    assert {Path(path).name for path in summary.failed} == {"broken.jpg", "cut.mp4"}
    assert summary.added == 3
    again = update(tmp_path, folder)
    assert (again.failed, again.unchanged) == ({}, 5), "until they change"


def test_passages_are_found_by_their_text_and_by_their_pictures(tmp_path, folder):
    Image.new("RGB", (20, 20), COLOURS["red"]).save(tmp_path / "apple.png")
    rows = [{"text": "blue is the sky", "source": "sky.org"}, {"image": "apple.png", "text": "an apple"}]
    (tmp_path / "knowledge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    update(tmp_path, tmp_path / "knowledge.jsonl")
    by_text = find(tmp_path, "blue")[0]
    assert (by_text.kind, by_text.text, by_text.source, by_text.place) == ("passage", "blue is the sky", "sky.org", 0)
    by_picture = find(tmp_path, image=Image.new("RGB", (5, 5), COLOURS["red"]))[0]
    assert (by_picture.text, by_picture.place) == ("an apple", 1)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("nothing", "is no passage"),
        ('{"texts": "x"}', "has no 'texts'"),
        ('{"source": "x"}', "needs a text"),
        ('{"image": 3}', "needs a text, or an image"),
        ('{"image": "gone.png"}', "gone.png"),
    ],
)
def test_a_line_that_is_no_passage_is_told(tmp_path, row, reason):
    (tmp_path / "knowledge.jsonl").write_text('{"text": "fine"}\n' + row + "\n")
    (told,) = update(tmp_path, tmp_path / "knowledge.jsonl").failed.values()
    assert reason in told


def test_filters_choose_files(tmp_path, folder):
    update(tmp_path, folder)
    os.utime(folder / "leaf.png", (1, 1))
    update(tmp_path, folder)

    def names(**options):
        return {Path(each.path).name for each in find(tmp_path, "green", **options)}

    assert names() == {"a.mp4", "b.mp4", "leaf.png"}
    assert names(under=str(folder / "deep")) == {"b.mp4"}
    assert names(min_duration=9) == {"a.mp4"}
    assert names(max_duration=9) == {"b.mp4"}
    assert names(before="2000-01-01") == {"leaf.png"}
    assert names(after="2000-01-01") == {"a.mp4", "b.mp4"}
    with pytest.raises(RequestError, match="'soon' is no day"):
        names(after="soon")


def test_another_model_is_refused_with_both_names(tmp_path, folder):
    update(tmp_path, folder)
    with pytest.raises(RequestError, match="was begun with model 'colours', not 'other'"):
        update_index(tmp_path / "index", [folder], Colours(), "other")


def test_what_is_no_index_and_no_folder_is_told(tmp_path, folder):
    with pytest.raises(RequestError, match="is no index; make one with"):
        Index(tmp_path / "nothing")
    with pytest.raises(RequestError, match="does not exist"):
        update(tmp_path, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no picture, video or passages"):
        update(tmp_path, tmp_path / "empty")
    assert not (tmp_path / "index").exists()
    update(tmp_path, folder)
    with pytest.raises(RequestError, match="nothing to look for"):
        find(tmp_path, "  ")


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path, folder):
    update(tmp_path, folder)
    catalogue = module.Catalogue(tmp_path / "index", Index(tmp_path / "index", Colours()).job)
    with pytest.raises(RequestError, match="another process is writing"):
        update(tmp_path, folder)
    assert find(tmp_path, "red")
    catalogue.close()


class Killed(BaseException):
    """The process ends here."""


def test_a_run_that_ends_at_any_moment_goes_on_to_the_same_index(tmp_path, folder, monkeypatch):
    """What is on the disk after each write to the journal and to the database, and between them."""
    left = 0

    def ending(function):
        def ends(*arguments):
            nonlocal left
            for moment in ("before", "after"):
                left -= 1
                if left == 0:
                    raise Killed
                if moment == "before":
                    function(*arguments)

        return ends

    def contents(root):
        index = Index(root / "index", Colours())
        items = {
            Path(record.path).name: [(item.place, item.until) for item in index.store.of_file(record.digest)]
            for record in index.files
        }
        return items, len(index.store)

    update(tmp_path, folder)
    expected = contents(tmp_path)
    monkeypatch.setattr(module, "FLUSH_ITEMS", 2)
    for moment in range(1, 100):
        root = tmp_path / str(moment)
        with monkeypatch.context() as patched:
            for where, name in ((module.Catalogue, "_write"), (module.Store, "add"), (module.Store, "remove")):
                patched.setattr(where, name, ending(getattr(where, name)))
            left = moment
            try:
                update(root, folder)
            except Killed:
                pass
            else:
                assert moment > 10
                return
        update(root, folder)
        assert contents(root) == expected, moment
    pytest.fail("it was never finished")


def test_a_killed_process_leaves_an_index_that_goes_on(tmp_path, folder):
    program = "import os, signal, sys; from pathlib import Path; import test_index as t; "
    program += "t.module.Store.add = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
    program += "t.update(Path(sys.argv[1]), Path(sys.argv[2]))"
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": places}
    command = [sys.executable, "-c", program, str(tmp_path), str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert update(tmp_path, folder).added == 3
    assert find(tmp_path, "red")[0].begin == 4
