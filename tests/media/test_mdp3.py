"""MDP3 against its authors' selections, against plain loops, and for any number of frames."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from longview.media.mdp3 import greedy, mdp3, similarity

GOLDEN = Path(__file__).parents[1] / "golden" / "ovis2"
CASES = json.loads((GOLDEN / "mdp3.json").read_text())
EMBEDDINGS = load_file(GOLDEN / "mdp3.safetensors")


def kernel(features) -> tuple[np.ndarray, np.ndarray]:
    frames, question = EMBEDDINGS[f"frames_{features}"], EMBEDDINGS[f"query_{features}"]
    return similarity(frames, frames), similarity(frames, question)[:, 0]


def named(case: dict) -> str:
    fields = ("features", "k", "segment_size", "condition_size", "lamda")
    return "-".join(str(case[field]) for field in fields)


@pytest.mark.parametrize("case", CASES["cases"], ids=named)
def test_the_frames_are_those_the_authors_choose(case):
    frames, question = kernel(case["features"])
    segment = None if case["segment_size"] == -1 else case["segment_size"]
    found = mdp3(frames, question, case["k"], segment, case["condition_size"], case["lamda"])
    assert found == case["selected"]


@pytest.mark.parametrize("case", [c for c in CASES["cases"] if "greedy_scores" in c], ids=named)
def test_frames_are_added_in_the_authors_order_with_their_scores(case):
    frames, question = kernel(case["features"])
    relevance = 2 / case["lamda"] * np.log(question)
    picks, scores = greedy(frames, relevance, np.arange(case["n"]), [[]], case["k"])
    assert picks[0].tolist() == case["greedy_choice_order"]
    np.testing.assert_allclose(scores[0], case["greedy_scores"][1:], atol=1e-3)


def test_the_similarity_is_the_authors():
    everything = np.concatenate([EMBEDDINGS["query_0"], EMBEDDINGS["frames_0"]])
    np.testing.assert_allclose(similarity(everything, everything), EMBEDDINGS["kernel_0"], atol=1e-6)


def test_a_video_shown_twice_gives_the_frames_the_authors_choose():
    frames = np.concatenate([EMBEDDINGS["frames_ragged"][:20]] * 2)
    question = similarity(frames, EMBEDDINGS["query_ragged"])[:, 0]
    (expected,) = (value for name, value in CASES["notes"].items() if name.startswith("duplicated_frames"))
    assert mdp3(similarity(frames, frames), question, 8) == expected


# ── plain loops, from the definition ─────────────────────────────────────────────────────────────────────────────────


def plain_greedy(kernel, question, candidates, given_frames, steps, weight):
    """As the authors do it: for each step, for each candidate, a triangular system."""
    items, lower, base = [], np.zeros((0, 0)), 0.0

    def grown(item):
        column = kernel[items, item]
        row = np.linalg.solve(lower, column) if items else np.zeros(0)
        corner = np.sqrt(max(abs(kernel[item, item] - row @ row), 1e-12))
        return row, corner

    def add(item, row, corner):
        nonlocal lower
        lower = np.block([[lower, np.zeros((len(items), 1))], [row[None], np.array([[corner]])]])
        items.append(item)

    for item in given_frames:
        row, corner = grown(item)
        base += 2 / weight * np.log(question[item]) + 2 * np.log(corner)
        add(item, row, corner)
    order, scores = [], []
    for _ in range(steps):
        best = None
        for item in candidates:
            if item in order:
                continue
            row, corner = grown(item)
            score = base + 2 / weight * np.log(question[item]) + 2 * np.log(corner)
            if best is None or score > best[0]:
                best = (score, item, row, corner)
        base, item, row, corner = best
        add(item, row, corner)
        order.append(item)
        scores.append(base)
    return order, scores


def plain(kernel, question, count, segment=None, condition=1, weight=0.2):
    n = len(kernel)
    if n <= count:
        return list(range(n))
    size = segment or n
    values, traces = {0: 0.0}, {0: []}
    for begin in range(0, n, size):
        candidates = list(range(begin, min(begin + size, n)))
        new_values, new_traces = {0: 0.0}, {0: []}
        for a in sorted(traces):
            steps = min(count - a, len(candidates))
            given_frames = traces[a][-condition:] if condition else []
            order, scores = plain_greedy(kernel, question, candidates, given_frames, steps, weight)
            for b in range(steps + 1):
                value = values[a] + (scores[b - 1] if b else 0.0)
                if value > new_values.get(a + b, -(2.0**31)):
                    new_values[a + b], new_traces[a + b] = value, traces[a] + sorted(order[:b])
        values, traces = new_values, new_traces
    return traces[count]


def walk(n: int, seed: int, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that change slowly, as a film's do; the question is kernel one of them."""
    random = np.random.default_rng(seed)
    frames = random.normal(size=(n, width)).cumsum(0) + random.normal(size=(n, width))
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    return similarity(frames, frames), similarity(frames, frames[n // 2])[:, 0]


problems = st.tuples(
    st.integers(1, 40), st.integers(1, 9), st.none() | st.integers(1, 45), st.integers(0, 3), st.integers(0, 10**6)
)


@given(problems)
def test_any_number_of_frames_gives_as_many_as_asked_in_order_and_those_of_the_plain_loops(problem):
    n, count, segment, condition, seed = problem
    frames, question = walk(n, seed)
    found = mdp3(frames, question, count, segment, condition)
    assert found == sorted(set(found))
    assert len(found) == min(n, count)
    assert found == [] or (found[0] >= 0 and found[-1] < n)
    assert found == plain(frames, question, count, segment, condition)


@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 10**6))
def test_in_one_segment_the_order_of_the_frames_does_not_matter(n, count, seed):
    frames, question = walk(n, seed)
    order = np.random.default_rng(seed).permutation(n)
    shuffled = mdp3(frames[np.ix_(order, order)], question[order], count)
    assert sorted(order[shuffled].tolist()) == mdp3(frames, question, count)


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 10**6))
def test_a_segment_as_long_as_the_video_is_no_segment(n, count, seed):
    frames, question = walk(n, seed)
    assert mdp3(frames, question, count, segment=n) == mdp3(frames, question, count)
    assert mdp3(frames, question, count, segment=n + 7) == mdp3(frames, question, count)


def test_a_moment_that_answers_the_question_is_chosen_however_short_it_is():
    random = np.random.default_rng(0)
    scene, needle = np.eye(8)[0], np.eye(8)[1]
    frames = np.tile(scene, (1024, 1)) + 0.05 * random.normal(size=(1024, 8))
    frames[700:704] = needle + 0.05 * random.normal(size=(4, 8))
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    similar, question = similarity(frames, frames), similarity(frames, needle)[:, 0]
    for segment in (None, 32, 100):
        assert set(mdp3(similar, question, 8, segment)) & set(range(700, 704))


def test_of_repeated_frames_one_is_enough():
    frames = np.repeat(np.eye(6), 5, axis=0)
    found = mdp3(similarity(frames, frames), np.ones(30), 6)
    assert found == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("segment", [None, 32, 128])
def test_a_thousand_candidates_take_well_under_a_second_on_one_core(segment):
    frames, question = walk(1024, seed=0, width=64)
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        mdp3(frames, question, 32, segment)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("segment", [None, pytest.param(32, marks=pytest.mark.slow)])
def test_plain_loops_choose_the_same_and_take_twenty_times_as_long(capsys, segment):
    frames, question = walk(1024, seed=0, width=64)
    begin = time.perf_counter()
    expected = plain(frames, question, 32, segment)
    loops = time.perf_counter() - begin
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        assert mdp3(frames, question, 32, segment) == expected
        seconds.append(time.perf_counter() - begin)
    with capsys.disabled():
        print(f"\n1024 frames to 32, segment {segment}: {min(seconds):.3f} s; plain loops {loops:.1f} s")
    assert loops > 20 * min(seconds)
