"""Message parts become media, under one set of options and limits."""

from __future__ import annotations

import base64
import hashlib
import itertools
import time

import numpy as np
import pytest
from media_samples import encoded, gradient, number_of, numbered, one_clear_line
from PIL import Image

from longview.errors import LongviewError, MediaError, RequestError
from longview.media import Medium, RelevanceQuery, open_media, open_medium, sniff
from longview.media.decoders.pictures import framed_digest
from longview.media.select import SAMPLERS
from longview.messages import Part
from longview.requests import FRAME_SAMPLERS, Limits, MediaOptions


def video(source, options: MediaOptions | None = None, limits: Limits | None = None, **how) -> Medium:
    return open_medium(Part("video", source=source), options, limits, **how)


def shown(medium: Medium) -> list[int]:
    """The numbers that the frames carry; they are their indices."""
    numbers = [number_of(frame.image) for frame in medium.frames]
    assert numbers == [frame.index for frame in medium.frames]
    return numbers


def refusal(source, options: MediaOptions | None = None, limits: Limits | None = None, kind: str = "video") -> str:
    with pytest.raises(LongviewError) as caught:
        open_medium(Part(kind, source=source), options, limits)  # type: ignore[arg-type]
    return one_clear_line(caught.value)


def pictures(count: int) -> list[bytes]:
    return [encoded(Image.fromarray(numbered(n)), "JPEG") for n in range(count)]


def test_a_video_knows_what_it_is(videos):
    path = videos["constant.mp4"]
    medium = video(str(path), MediaOptions(frames=4))
    assert (medium.kind, medium.name, medium.width, medium.height) == ("video", "constant.mp4", 320, 176)
    assert (medium.num_frames, medium.fps, medium.duration) == (60, 24, pytest.approx(2.5))
    assert medium.digest == hashlib.sha256(path.read_bytes()).hexdigest() == video(path.read_bytes()).digest
    assert shown(medium) == [7, 22, 37, 52]
    assert [frame.seconds for frame in medium.frames] == pytest.approx([7 / 24, 22 / 24, 37 / 24, 52 / 24])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (MediaOptions(), [1, 5, 9, 13, 16, 20, 24, 28, 31, 35, 39, 43, 46, 50, 54, 58]),
        (MediaOptions(frames=2), [15, 45]),
        (MediaOptions(frames=99), list(range(60))),
        (MediaOptions(fps=2), [0, 12, 24, 36, 48]),
        (MediaOptions(fps=2, frames=2), [12, 36]),
        (MediaOptions(select="owl3"), [0, 24, 48]),
        (MediaOptions(select="owl3", frames=2), [0, 24]),
        (MediaOptions(select="owl3", fps=4), list(range(0, 60, 6))),
        (MediaOptions(select="owl3-middle", frames=3), [9, 29, 49]),
        (MediaOptions(select="ovis2"), [2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57]),
        (MediaOptions(select="ovis2-server", frames=4), [7, 22, 37, 52]),
        (MediaOptions(start=1, end=1.25), list(range(24, 30))),
        (MediaOptions(start=1.01, end=1.02), [24]),
        (MediaOptions(start=1, fps=1), [24, 48]),
        (MediaOptions(end=0.001), [0]),
    ],
)
def test_options_choose_the_frames(videos, options, expected):
    picked = shown(video(videos["constant.mp4"], options))
    if options == MediaOptions(select="owl3", frames=2):
        expected = [0, 48]  # the middles of two spans of [0, 24, 48]
    assert picked == expected


def test_a_family_fills_in_what_the_options_leave_open(videos):
    family = MediaOptions(select="ovis2", frames=3)
    path = videos["constant.mp4"]
    assert shown(video(path, default=family)) == [10, 30, 50]
    assert shown(video(path, MediaOptions(frames=2), default=family)) == [15, 45]
    assert shown(video(path, MediaOptions(fps=1), default=family)) == [0, 24, 48]
    assert len(video(path, MediaOptions(select="uniform"), default=family).frames) == 16


def test_sampling_by_time_follows_the_clock_of_a_variable_video(videos):
    medium = video(videos["variable.mp4"], MediaOptions(fps=1))
    gaps = np.diff([frame.seconds for frame in medium.frames])
    assert (np.abs(gaps - 1) < 0.45).all()


@pytest.mark.parametrize(
    "options",
    [
        {"frames": 0}, {"frames": -1}, {"frames": 1.5}, {"frames": True}, {"frames": "8"}, {"fps": 0}, {"fps": -1},
        {"fps": float("nan")}, {"fps": float("inf")}, {"fps": "1"}, {"start": -1}, {"start": 2, "end": 1},
        {"start": 1, "end": 1}, {"end": 0}, {"end": float("nan")}, {"select": "unifrom"}, {"select": ""},
        {"select": 3}, {"fps": 1, "select": "uniform"}, {"fps": 1, "select": "ovis2"},
        {"fps": 2, "select": "owl3-middle"},
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused_in_one_line(options):
    with pytest.raises(RequestError) as caught:
        MediaOptions(**options)
    message = one_clear_line(caught.value)
    assert any(name in message for name in options)


def test_an_unknown_sampler_gets_the_nearest_known_name():
    with pytest.raises(RequestError, match="did you mean 'uniform'"):
        MediaOptions(select="unifrom")
    with pytest.raises(RequestError, match="did you mean 'owl3-middle'"):
        MediaOptions(select="owl3_middle")


@pytest.mark.parametrize("limits", [{"max_pixels": 0}, {"max_frames": -1}, {"decode_seconds": 0}, {"max_pixels": "9"}])
def test_limits_that_make_no_sense_are_refused(limits):
    with pytest.raises(RequestError) as caught:
        Limits(**limits)
    one_clear_line(caught.value)


def test_a_clip_past_the_end_is_refused(videos):
    message = refusal(videos["constant.mp4"], MediaOptions(start=9))
    assert "2.50 s" in message
    assert "start" in message


def test_the_frame_limit_refuses_an_explicit_number_and_thins_out_a_default(videos):
    path = videos["constant.mp4"]
    assert len(video(path, MediaOptions(frames=10), Limits(max_frames=10)).frames) == 10
    message = refusal(path, MediaOptions(frames=11), Limits(max_frames=10))
    assert "--max-frames" in message
    assert "11" in message
    assert "10" in message
    thinned = video(path, MediaOptions(fps=24), Limits(max_frames=10))
    assert len(thinned.frames) == 10
    assert "--max-frames" in thinned.warnings[0]
    assert video(path, MediaOptions(fps=4), Limits(max_frames=10)).warnings == ()
    family = video(path, None, Limits(max_frames=10), default=MediaOptions(select="uniform", frames=50))
    assert len(family.frames) == 10
    assert "--max-frames" in family.warnings[0]


@pytest.mark.parametrize("select", ["uniform", "owl3", "ovis2", "fps"])
def test_the_frame_limit_counts_what_will_be_shown_and_not_what_was_asked_for(videos, select):
    path = videos["constant.mp4"]
    there = len(video(path, MediaOptions(select=select, frames=400)).frames)
    limits = Limits(max_frames=there)
    found = video(path, MediaOptions(select=select, frames=10**9), limits)
    assert (len(found.frames), found.warnings) == (there, ())
    message = refusal(path, MediaOptions(select=select, frames=10**9), Limits(max_frames=there - 1))
    assert f"would be shown in {there:,} frames" in message


def test_a_sampler_that_repeats_frames_is_held_to_the_limit(videos):
    path = videos["constant.mp4"]
    assert "--max-frames" in refusal(path, MediaOptions(select="owl3-middle", frames=10**9), Limits(max_frames=500))


def test_decoded_bytes_are_counted_over_all_media(videos):
    one = 320 * 176 * 3
    parts = [Part("video", source=videos["constant.mp4"]), Part("image", source=Image.new("RGB", (320, 176)))]
    options = MediaOptions(frames=3)
    assert len(open_media(parts, options, Limits(max_decoded_bytes=4 * one))) == 2
    with pytest.raises(MediaError, match="--max-decoded-bytes"):
        open_media(parts, options, Limits(max_decoded_bytes=4 * one - 1))


# Lists of pictures


def test_a_list_of_pictures_is_a_video_without_times(tmp_path):
    jpegs = pictures(5)
    (tmp_path / "2.jpg").write_bytes(jpegs[2])
    sources = [
        jpegs[0],
        Image.fromarray(numbered(1)),
        tmp_path / "2.jpg",
        f"data:image/jpeg;base64,{base64.b64encode(jpegs[3]).decode()}",
        jpegs[4],
    ]
    medium = video(sources)
    assert shown(medium) == [0, 1, 2, 3, 4]
    assert {frame.seconds for frame in medium.frames} == {None}
    assert (medium.num_frames, medium.fps, medium.duration) == (5, None, None)


def test_all_pictures_of_a_list_are_used_by_default():
    jpegs = pictures(20)
    family = MediaOptions(select="owl3", frames=4)
    assert shown(video(jpegs, default=family)) == list(range(20))
    assert shown(video(jpegs, MediaOptions(frames=4), default=family)) == [2, 7, 12, 17]
    assert shown(video(jpegs, MediaOptions(select="ovis2", frames=4))) == [2, 7, 12, 17]
    for options in (MediaOptions(fps=1), MediaOptions(start=1), MediaOptions(end=1)):
        assert "needs a video with times" in refusal(jpegs, options)


def test_a_list_is_counted_before_it_is_decoded():
    jpegs = pictures(3)
    assert len(video(jpegs, limits=Limits(max_frames=3)).frames) == 3
    assert "--max-frames" in refusal([*jpegs, b"junk"], limits=Limits(max_frames=3))
    assert "at least one" in refusal([])
    assert "--max-video-bytes" in refusal(jpegs, limits=Limits(max_video_bytes=len(jpegs[0]) * 2))


def test_a_jpeg_list_in_a_data_uri_is_a_video():
    frames = [base64.b64encode(data).decode() for data in pictures(4)]
    uri = "data:video/jpeg;base64," + ",".join(frames)
    assert shown(video(uri)) == [0, 1, 2, 3]
    assert shown(video(uri, MediaOptions(frames=2))) == [1, 3]
    assert video(uri).digest == video(pictures(4)).digest


def test_the_frames_of_a_jpeg_list_are_counted_before_one_is_decoded():
    started = time.monotonic()
    assert "--max-frames" in refusal("data:video/jpeg;base64," + "AAAA," * 2_000_000)
    assert time.monotonic() - started < 2
    assert "must be base64" in refusal("data:video/jpeg,abc")
    assert "truncated or damaged" in refusal("data:video/jpeg;base64,/9j/AAAA,/9j/AAAA")


def test_digests_of_lists_and_images_never_collide():
    black = [Image.new("RGB", size) for size in ((4, 6), (6, 4), (2, 12), (12, 2))]
    black += [Image.new("RGBA", (4, 6)), Image.new("L", (4, 18)), Image.new("L", (12, 6))]
    turned = Image.new("RGB", (4, 6))
    turned.getexif()[0x0112] = 3
    other_palette = Image.new("P", (4, 6))
    other_palette.putpalette([1, 2, 3])
    stills = [*black, turned, Image.new("P", (4, 6)), other_palette]
    digests = [open_medium(Part("image", source=image)).digest for image in stills]
    assert len(set(digests)) == len(digests)
    a, b, c = pictures(3)
    groupings = [[a], [a, b], [a, b, c], [b, a, c], [a, a], [a, a, a]]
    digests += [video(grouping).digest for grouping in groupings]
    assert len(set(digests)) == len(digests)
    for first, second in itertools.pairwise(groupings):
        assert video(first).digest != video(second).digest


def test_fields_of_a_digest_are_framed():
    fields = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc")]
    assert len({framed_digest(*parts) for parts in fields}) == len(fields)


# Several media


def test_several_media_keep_their_order(videos):
    parts = [Part("image", source=data) for data in pictures(12)]
    parts.insert(3, Part("video", source=videos["constant.mp4"]))
    media = open_media(parts, MediaOptions(frames=2))
    assert [medium.kind for medium in media] == ["image"] * 3 + ["video"] + ["image"] * 9
    numbers = [number_of(medium.frames[0].image) for medium in media]
    assert numbers == [0, 1, 2, 15, *range(3, 12)]
    assert open_media([]) == []


def test_the_first_failure_in_order_is_the_one_reported(tmp_path):
    good = Part("image", source=gradient())
    parts = [good, Part("image", source=tmp_path / "first.png"), good, Part("image", source=tmp_path / "second.png")]
    with pytest.raises(MediaError, match=r"first\.png"):
        open_media(parts)


def test_progress_covers_every_medium_and_is_called_by_one_thread_at_a_time(videos):
    reported = []
    inside = []

    def progress(done: int, total: int, label: str) -> None:
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.001)
        reported.append((done, total, label))
        inside.pop()

    parts = [Part("video", source=videos[name]) for name in ("constant.mp4", "group.mkv")]
    open_media([*parts, Part("image", source=gradient())], MediaOptions(frames=8), progress=progress)
    assert {label: max(d for d, _, name in reported if name == label) for _, _, label in reported} == {
        "constant.mp4": 8,
        "group.mkv": 8,
        "picture": 1,
    }


def test_text_parts_and_odd_sources_are_refused():
    with pytest.raises(RequestError, match="text part"):
        open_medium(Part("text", text="hello"))
    for kind in ("image", "video"):
        for source in (None, 3, {"url": "x"}, 1.5):
            assert "cannot be read from" in refusal(source, kind=kind)
    assert "cannot be read from list" in refusal([gradient()], kind="image")


@pytest.mark.parametrize("name", ["constant.mp4", "film.mov", "group.mkv", "vp9.webm", "mpeg4.avi"])
def test_a_video_is_recognised_by_its_content(videos, name, tmp_path):
    (tmp_path / "picture.png").write_bytes(videos[name].read_bytes())
    assert sniff(tmp_path / "picture.png") == sniff(str(videos[name])) == sniff(videos[name].read_bytes()) == "video"
    assert len(video(tmp_path / "picture.png", MediaOptions(frames=2)).frames) == 2


def test_every_sampler_is_reachable_by_its_name(videos):
    assert set(SAMPLERS) == set(FRAME_SAMPLERS)
    for name in SAMPLERS:
        options = MediaOptions(select=name)
        relevance_query = (
            RelevanceQuery("What?", lambda candidates, _: (np.eye(len(candidates.indices)),) * 2)
            if options.by_content
            else None
        )
        assert shown(video(videos["constant.mp4"], options, relevance_query=relevance_query))


def test_frames_that_are_named_by_number_are_those_that_are_used(videos):
    film = videos["constant.mp4"]
    count = video(film).num_frames
    assert shown(video(film, MediaOptions(indices=[7, 2, 2]))) == [2, 7]
    assert [frame.index for frame in video(pictures(5), MediaOptions(indices=[4])).frames] == [4]
    assert f"indices names frame {count}, and" in refusal(film, MediaOptions(indices=[3, count]))
    assert "3 frames" in refusal(film, MediaOptions(indices=[1, 2, 3]), Limits(max_frames=2))
    with pytest.raises(RequestError, match="so frames means nothing"):
        MediaOptions(indices=[1], frames=2)
    with pytest.raises(RequestError, match="indices is empty"):
        MediaOptions(indices=[])
