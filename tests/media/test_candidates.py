"""Selection by relevance through `open_medium`: candidates, golden selections, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from media_samples import encoded, number_of, numbered, one_clear_line, write_video
from PIL import Image
from safetensors.numpy import load_file

from longview.errors import MediaError, RequestError
from longview.media import RelevanceQuery, open_media, open_medium
from longview.media.mdp3 import similarity
from longview.messages import Part
from longview.requests import Limits, MediaOptions

GOLDEN = Path(__file__).parents[1] / "golden" / "ovis2"
CASES = [
    case
    for case in json.loads((GOLDEN / "mdp3.json").read_text())["cases"]
    if case["segment_size"] == -1 and case["lamda"] == 0.2 and case["condition_size"] == 1
]
EMBEDDINGS = load_file(GOLDEN / "mdp3.safetensors")


class ScriptedEmbed:
    """An `Embed` that reads every candidate and returns what it was given."""

    def __init__(self, frames=None, question=None):
        self.answers = frames, question
        self.seen: list[int] = []
        self.sizes: set[tuple[int, int]] = set()

    def __call__(self, candidates, question):
        self.digest = candidates.digest
        self.indices = candidates.indices
        for frame in candidates.read(candidates.indices, lambda image: image.resize((32, 8), 0)):
            self.seen.append(frame.index)
            self.sizes.add(frame.image.size)
        frames, question = self.answers
        n = len(candidates.indices)
        return np.eye(n) if frames is None else frames, np.eye(n)[:1] if question is None else question


def choose(source, embed, question="What?", limits=None, progress=None, **options):
    relevance_query = RelevanceQuery(question, embed)
    return open_medium(
        Part("video", source=source),
        MediaOptions(select="mdp3", **options),
        limits,
        progress,
        relevance_query=relevance_query,
    )


def indices(medium) -> list[int]:
    return [frame.index for frame in medium.frames]


@pytest.fixture(scope="module")
def long_film(tmp_path_factory) -> Path:
    """A hundred seconds, three frames a second."""
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames=300, rate=3, gop=30)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['features']}-{case['k']}")
def test_the_frames_chosen_from_a_video_are_the_authors_selection(case, long_film):
    embed = ScriptedEmbed(EMBEDDINGS[f"frames_{case['features']}"], EMBEDDINGS[f"query_{case['features']}"])
    medium = choose(long_film, embed, frames=case["k"], candidates=case["n"], fps=2)
    assert len(embed.indices) == case["n"]
    assert indices(medium) == [embed.indices[i] for i in case["selected"]]
    assert [number_of(frame.image) for frame in medium.frames] == indices(medium)
    assert medium.frames[0].image.size == (320, 176)  # the chosen ones are whole, the candidates were small
    assert embed.sizes == {(32, 8)}


def test_candidates_are_one_a_second_and_at_most_the_number_given(long_film):
    embed = ScriptedEmbed()
    choose(long_film, embed)
    assert embed.seen == embed.indices == list(range(0, 300, 3))
    choose(long_film, fewer := ScriptedEmbed(), fps=0.5)
    assert fewer.indices == list(range(0, 300, 6))
    choose(long_film, capped := ScriptedEmbed(), candidates=20)
    assert len(capped.indices) == 20
    choose(long_film, part := ScriptedEmbed(), start=50, end=60)
    assert part.indices == list(range(150, 180, 3))
    assert part.digest == embed.digest


def test_the_relevance_of_every_candidate_is_told(long_film):
    frames = np.random.default_rng(0).normal(size=(100, 8))
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    medium = choose(long_film, ScriptedEmbed(frames, frames[40:41]), frames=4)
    assert 120 in indices(medium)
    assert medium.relevance.indices == list(range(0, 300, 3))
    assert medium.relevance.seconds == pytest.approx(list(range(100)))
    assert medium.relevance.values == similarity(frames, frames[40])[:, 0].tolist()
    assert int(np.argmax(medium.relevance.values)) == 40


def test_the_published_query_holds_an_image_for_each_candidate(long_film):
    case = json.loads((GOLDEN / "mdp3.json").read_text())["conversation_rewrite"][0]
    assert RelevanceQuery("What is in the video?", ScriptedEmbed(), published=True).text(12) == case["encoder_text"]
    asked = []

    class Embed(ScriptedEmbed):
        def __call__(self, candidates, question):
            asked.append(question)
            return super().__call__(candidates, question)

    for published in (False, True):
        query = RelevanceQuery("What?", Embed(), published)
        open_medium(Part("video", source=long_film), MediaOptions(select="mdp3", fps=0.1), relevance_query=query)
    assert asked == ["What?", "<image>\n" * 10 + "What?"]


def test_another_sampler_is_unaffected_by_the_question_and_the_relevance_is_there_too(long_film):
    options = MediaOptions(select="uniform", frames=5, start=20, end=40)
    plain = open_medium(Part("video", source=long_film), options)
    looked = open_medium(
        Part("video", source=long_film), options, relevance_query=RelevanceQuery("What?", embed := ScriptedEmbed())
    )
    assert indices(looked) == indices(plain)
    assert plain.relevance is None
    assert looked.relevance.indices == embed.indices == sorted({*range(60, 120, 3), *indices(plain)})


def test_a_list_of_pictures_is_chosen_from_too():
    pictures = [encoded(Image.fromarray(numbered(n)), "JPEG") for n in range(12)]
    frames = np.repeat(np.eye(4), 3, axis=0)
    medium = choose(pictures, ScriptedEmbed(frames, frames[7:8]), frames=4)
    assert len(indices(medium)) == 4
    assert {i // 3 for i in indices(medium)} == {0, 1, 2, 3}
    assert medium.relevance.seconds is None


def test_too_few_candidates_are_all_used_with_a_warning(videos):
    medium = choose(videos["constant.mp4"], ScriptedEmbed(), frames=8)
    assert indices(medium) == [0, 24, 48]
    assert "only 3 candidates for 8 frames" in medium.warnings[0]
    assert choose(videos["constant.mp4"], ScriptedEmbed()).warnings == ()


def test_progress_is_told_for_the_candidates(long_film):
    reported = []
    choose(long_film, ScriptedEmbed(), frames=2, progress=lambda *step: reported.append(step))
    assert (100, 100, "looking through film.mp4") in reported
    assert reported[-1] == (2, 2, "film.mp4")


def test_the_time_to_embed_candidates_does_not_count_as_decoding(long_film):
    class Slow(ScriptedEmbed):
        def __call__(self, candidates, question):
            for _ in candidates.read(candidates.indices, lambda image: image):
                time.sleep(0.05)
            return np.eye(4), np.eye(4)[:1]

    limits = Limits(decode_seconds=2.0)
    reads = choose(long_film, Slow(), candidates=4, frames=2, limits=limits)
    assert len(reads.frames) == 2
    with pytest.raises(MediaError, match="too long to decode"):
        choose(long_film, ScriptedEmbed(), limits=Limits(decode_seconds=0.001))


def test_only_pictures_are_refused():
    part = Part("image", source=Image.new("RGB", (8, 8)))
    with pytest.raises(RequestError) as caught:
        open_media([part], MediaOptions(select="mdp3"), relevance_query=RelevanceQuery("What?", ScriptedEmbed()))
    assert "only pictures" in one_clear_line(caught.value)


def test_no_question_is_refused(long_film):
    with pytest.raises(RequestError, match="ask one"):
        RelevanceQuery(" \n", ScriptedEmbed())
    with pytest.raises(RequestError) as caught:
        open_medium(Part("video", source=long_film), MediaOptions(select="mdp3"))
    assert "needs a question" in one_clear_line(caught.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"candidates": 8}, "means nothing without select"),
        ({"select": "uniform", "candidates": 8}, "candidates means nothing to select 'uniform'"),
        ({"select": "mdp3", "candidates": 0}, "candidates is 0"),
        ({"select": "mdp3", "candidates": 10**6}, "candidates is 1000000"),
        ({"select": "mdp3", "candidates": 2.5}, "candidates is 2.5"),
        ({"select": "mdp3", "candidates": 8, "frames": 9}, "frames is 9, to be chosen among candidates 8"),
        ({"select": "mpd3"}, "did you mean 'mdp3'"),
        ({"select": "mdp3", "relevance_query": "publish"}, "did you mean 'published'"),
        ({"select": "uniform", "relevance_query": "question"}, "relevance_query means nothing without select mdp3"),
        ({"relevance_query": "published"}, "relevance_query means nothing without select mdp3"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, complaint):
    with pytest.raises(RequestError) as caught:
        MediaOptions(**options)
    assert complaint in one_clear_line(caught.value)
