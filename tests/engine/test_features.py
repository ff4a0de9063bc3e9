"""Feature cache, video cache and prefetcher: keys without collisions, bounded memory, files whole or absent."""

from __future__ import annotations

import os
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import noise
from tolerances import SAME_MATHS

import longview
from longview.engine import Budget, Engine, features
from longview.engine.features import FeatureCache, VideoCache, digest_of, feature_key, model_digest
from longview.engine.prepare import parse_request, prepare
from longview.errors import MediaError, RequestError
from longview.media import open_media
from longview.media.decoders.video import VideoReader
from longview.media.medium import UNDECODED
from longview.requests import Limits, MediaOptions
from longview.world.render import write_clip
from longview.world.scenes import draw_clip

fields = st.lists(st.one_of(st.binary(max_size=4), st.integers(0, 9), st.text("ab", max_size=3)), max_size=4)


@given(fields, fields)
def test_different_fields_have_different_digests(one, other):
    alike = [*map(type, one), *one] == [*map(type, other), *other]
    assert (digest_of(*one) == digest_of(*other)) == alike


def test_a_feature_key_tells_media_frames_and_preprocessing_apart(tiny):
    _, processor = tiny
    wide = noise(1, 60, 20)
    high = Image.frombytes("RGB", (20, 60), wide.tobytes())  # the same bytes in another shape
    sources = [longview.image(wide), longview.image(high), longview.image(wide.convert("L"))]
    sources += [longview.video([wide, high]), longview.video([high, wide])]
    media = open_media(sources)
    inputs = processor.prepare([longview.ask("?", *sources)], media)
    alone = processor.prepare([longview.ask("?", sources[0])], media[:1])
    keys = [feature_key("a", media[encoder_input.medium], encoder_input) for encoder_input in inputs.encoder_inputs]
    assert len(set(keys)) == len(inputs.encoder_inputs)
    same = alone.encoder_inputs[0].settings == inputs.encoder_inputs[0].settings
    assert (feature_key("a", media[0], alone.encoder_inputs[0]) == keys[0]) == same
    assert feature_key("b", media[0], inputs.encoder_inputs[0]) != keys[0]


def test_the_least_recently_used_features_are_dropped():
    cache = FeatureCache(max_bytes=4 * 40)
    for number in range(6):
        cache.put(str(number), torch.full((10,), float(number)))
        cache.get("0")
    assert cache.nbytes == 160
    kept = [str(number) for number in range(6) if cache.get(str(number)) is not None]
    assert kept == ["0", "3", "4", "5"]
    cache.put("0", torch.zeros(10))
    assert cache.nbytes == 160, "a key counts once"
    cache.put("too large", torch.zeros(100))
    assert cache.get("too large") is None
    assert len(cache) == 4


def test_features_outlive_the_program_on_disk(tiny, tmp_path, monkeypatch):
    question, budget = [longview.ask("What?", longview.image(noise(1)))], Budget(feature_folder=tmp_path / "kept")
    first = Engine(*tiny, budget=budget).answer(question, max_tokens=5)
    again = Engine(*tiny, budget=budget)
    monkeypatch.setattr(again.model, "encode", lambda **_: pytest.fail("it has been encoded before"))
    assert again.answer(question, max_tokens=5).tokens == first.tokens


def test_other_weights_have_another_digest(tiny):
    model, _ = tiny
    before = model_digest(model)
    parameter = next(p for name, p in model.named_parameters() if "vision" in name or "visual" in name)
    with torch.no_grad():
        parameter.view(-1)[0] += 1
        assert model_digest(model) != before
        parameter.view(-1)[0] -= 1


def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path):
    cache = FeatureCache(0, tmp_path)
    cache.put("a", torch.arange(4.0))
    assert torch.equal(cache.get("a"), torch.arange(4.0))
    (path,) = tmp_path.iterdir()  # nothing unfinished is left
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    other_shape = whole.replace(b'"shape":[4]', b'"shape":[1]').replace(b"[0,16]", b"[0,04]")
    for damaged in (whole[:-3], bytes(flipped), other_shape, b"", b"\xff" * 40):
        path.write_bytes(damaged)
        assert cache.get("a") is None
        assert not path.exists(), "and it is deleted"
    cache.put("a", torch.arange(4.0))
    os.replace(path, path.with_name(f"{digest_of('b')}.safetensors"))
    assert cache.get("b") is None, "features of another picture"


def test_what_is_cut_short_while_it_is_used_changes_nothing(tmp_path):
    cache = FeatureCache(0, tmp_path)
    cache.put("a", torch.arange(4096.0))
    found = cache.get("a")
    (path,) = tmp_path.iterdir()
    os.truncate(path, 10)
    assert torch.equal(found, torch.arange(4096.0))


def test_a_pipe_is_not_waited_for_and_what_was_left_unfinished_is_deleted(tmp_path):
    os.mkfifo(tmp_path / f"{digest_of('a')}.safetensors")
    (tmp_path / "mine.txt").write_text("x")
    for name, age in (("old", 2 * 3600), ("new", 0)):
        (tmp_path / f".unfinished-{name}").write_bytes(b"x" * 1000)
        os.utime(tmp_path / f".unfinished-{name}", (time.time() - age,) * 2)
    cache = FeatureCache(0, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-new", "mine.txt"]
    os.mkfifo(tmp_path / f"{digest_of('a')}.safetensors")
    assert cache.get("a") is None
    cache.put("a", torch.arange(4.0))
    assert torch.equal(cache.get("a"), torch.arange(4.0))


def test_files_have_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        FeatureCache(0, tmp_path).put("a", torch.arange(4.0))
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644


def test_files_stay_within_their_bytes_and_the_oldest_are_deleted(tmp_path):
    cache = FeatureCache(0, tmp_path, max_disk_bytes=6000)
    for number in range(8):
        cache.put(f"{number}", torch.zeros(250))
        path = tmp_path / f"{digest_of(str(number))}.safetensors"
        os.utime(path, (number, number))
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert sum(sizes) <= 6000 + max(sizes)
    assert cache.get("7") is not None
    assert cache.get("0") is None


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RequestError, match="give a folder that can be written"):
        FeatureCache(0, tmp_path / "file")


# ── videos ──


@pytest.fixture
def clip(tmp_path):
    return write_clip(draw_clip(random.Random(1)), tmp_path / "clip.mp4")


def test_frames_that_are_decoded_later_are_the_same_frames(clip):
    now, later = (open_media([longview.video(clip)], decode=decode)[0] for decode in (True, False))
    assert all(frame.image is UNDECODED for frame in later.frames)
    for _ in range(2):  # the second time the file is opened again
        for one, other in zip(now.frames, later.read(), strict=True):
            assert (one.index, one.seconds) == (other.index, other.seconds)
            assert one.image.tobytes() == other.image.tobytes()
    (last,) = later.read([len(now.frames) - 1])
    assert last.image.tobytes() == now.frames[-1].image.tobytes()
    assert list(now.read([1])) == [now.frames[1]]
    later.close()


def test_a_second_question_about_a_clip_opens_and_encodes_nothing(tiny, clip, monkeypatch):
    engine = Engine(*tiny)
    first = engine.answer([longview.ask("What happens in it?", longview.video(clip))], max_tokens=2)
    monkeypatch.setattr(VideoReader, "__init__", lambda *_, **__: pytest.fail("the clip was opened"))
    monkeypatch.setattr(engine.model, "encode", lambda **_: pytest.fail("a picture was encoded"))
    second = engine.answer([longview.ask("Who is in it?", longview.video(clip))], max_tokens=2)
    assert second.receipt.frames == first.receipt.frames
    usage = second.receipt.usage
    assert usage.prompt_tokens - usage.cached_tokens < 40, "only the question is prefilled"
    monkeypatch.undo()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(clip, "GIF")
    third = engine.answer([longview.ask("Who is in it?", longview.video(clip))], max_tokens=2)
    assert len(third.receipt.frames) < len(first.receipt.frames), "a file that has changed is another video"


def test_other_frames_of_a_clip_are_other_pictures(tiny, clip):
    engine, whole = Engine(*tiny), Engine(*tiny)
    question = [longview.ask("What happens?", longview.video(clip))]
    settings = {"max_tokens": 3, "logprobs": 0}
    engine.answer(question, media={"frames": 2}, **settings)
    again = engine.answer(question, media={"frames": 3}, **settings)
    assert [f.index for f in again.receipt.frames] == sorted({f.index for f in again.receipt.frames})
    fresh = whole.answer(question, media={"frames": 3}, **settings)
    assert again.tokens == fresh.tokens
    found, expected = ([each.logprob for each in answer.logprobs] for answer in (again, fresh))
    assert found == pytest.approx(expected, abs=SAME_MATHS)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_prefetcher_is_at_most_so_many_frames_ahead(tiny, monkeypatch, threads):
    monkeypatch.setattr(features, "MAX_PREFETCHED", 3)
    monkeypatch.setattr(features, "PIXEL_THREADS", threads)
    read = []
    frames = [noise(seed) for seed in range(12)]
    medium = open_media([longview.video(frames)])[0]
    inputs = tiny[1].prepare([longview.ask("?", longview.video(frames))], [medium])
    iterate_frames = inputs.iterate_frames
    monkeypatch.setattr(
        inputs,
        "iterate_frames",
        lambda encoder_inputs: (read.append(1) or each for each in iterate_frames(encoder_inputs)),
    )
    ready = threading.Semaphore(0)
    prefetcher = features.Prefetcher(inputs, inputs.encoder_inputs, ready.release)
    taken = []
    while len(taken) < 12:
        assert ready.acquire(timeout=10)
        taken.append(prefetcher.take())
        assert len(read) <= len(taken) + 3 + threads, "those that are being made, and those that wait"
    assert [encoder_input.frame for encoder_input, _ in taken] == list(range(12))
    for encoder_input, pixels in taken:
        expected = encoder_input.pixels(frames[encoder_input.frame])
        assert all(torch.equal(pixels[name], expected[name]) for name in expected)


@pytest.mark.parametrize("threads", [1, 4])
def test_pixels_that_cannot_be_made_are_an_error_after_those_before_them(tiny, monkeypatch, threads):
    monkeypatch.setattr(features, "PIXEL_THREADS", threads)
    frames = [noise(seed) for seed in range(8)]
    medium = open_media([longview.video(frames)])[0]
    inputs = tiny[1].prepare([longview.ask("?", longview.video(frames))], [medium])

    def broken(image):
        raise ValueError("no pixels")

    encoder_inputs = [replace(each, pixels=broken) if each.frame == 5 else each for each in inputs.encoder_inputs]
    ready = threading.Semaphore(0)
    prefetcher = features.Prefetcher(inputs, encoder_inputs, ready.release)
    for number in range(5):
        assert ready.acquire(timeout=10)
        assert prefetcher.take()[0].frame == number
    assert ready.acquire(timeout=10)
    with pytest.raises(ValueError, match="no pixels"):
        prefetcher.take()


def test_a_prefetcher_that_is_stopped_closes_its_media(tiny, clip, monkeypatch):
    monkeypatch.setattr(features, "MAX_PREFETCHED", 1)
    medium = open_media([longview.video(clip)], decode=False)[0]
    closed = threading.Event()
    monkeypatch.setattr(VideoReader, "close", lambda reader, close=VideoReader.close: (close(reader), closed.set()))
    inputs = tiny[1].prepare([longview.ask("?", longview.video(clip))], [medium])
    prefetcher = features.Prefetcher(inputs, inputs.encoder_inputs, lambda: None)
    prefetcher.stop()
    assert closed.wait(10)


def test_the_video_cache_tells_options_apart(clip):
    cache = VideoCache(max_videos=2)
    part, limits = longview.video(clip), Limits()

    def opened(**options):
        return cache.open_media([part], MediaOptions(**options), limits, None, MediaOptions(select="uniform"))[0]

    assert opened(frames=2) is opened(frames=2)
    assert len(opened(frames=3).frames) == 3
    assert len(opened(frames=4).frames) == 4
    two = opened(frames=2)
    assert two is opened(frames=2)
    picture = [longview.image(noise(1))]
    assert len(cache.open_media(picture, MediaOptions(), limits, None, MediaOptions())) == 1


def times_open(path: Path) -> int:
    """How often this process has a file open."""
    links = [link for link in Path("/proc/self/fd").glob("*") if link.is_symlink()]
    return sum(os.readlink(link) == str(path) for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
def test_requests_that_are_refused_or_cancelled_keep_no_video_open(tiny, clip):
    engine = Engine(*tiny)
    question = [longview.ask("What happens?" * 3000, longview.video(clip))]
    with pytest.raises(RequestError, match="tokens long"):
        engine.answer(question, media={"frames": 2}, max_tokens=1)
    assert len(engine.video_cache._videos) == 1
    assert times_open(clip) == 0
    parsed = parse_request(engine, [longview.ask("?", longview.video(clip))], {"media": {"frames": 3}}, (), None)
    (request,) = prepare(engine, parsed)
    assert times_open(clip) == 1
    request.release()
    assert times_open(clip) == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux shows them")
def test_media_that_are_dropped_from_the_cache_or_opened_beside_a_bad_one_are_closed(clip, tmp_path):
    videos = VideoCache(max_videos=2)
    for frames in (2, 3, 4, 5):
        videos.open_media([longview.video(clip)], MediaOptions(frames=frames), Limits(), None, MediaOptions())
    assert times_open(clip) == 2
    missing = longview.video(tmp_path / "missing.mp4")
    errors = []  # whose tracebacks would keep the media alive
    for parts in ([missing, longview.video(clip)], [longview.video(clip), missing]):
        with pytest.raises(MediaError) as caught:
            open_media(parts, decode=False)
        errors.append(caught.value)
    assert times_open(clip) == 2
