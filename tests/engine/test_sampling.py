"""Choosing tokens: each setting does what it says, and says what it wants."""

from __future__ import annotations

import re

import pytest
import torch

from longview.engine.sampling import Sampler
from longview.errors import CheckpointError, RequestError
from longview.requests import SamplingParams
from longview.settings import parse

LOGITS = torch.tensor([0.1, 3.0, 2.0, 1.0, -1.0, 0.0])


def draws(count: int = 2000, token_ids: tuple[int, ...] = (), **settings) -> torch.Tensor:
    sampler = Sampler(SamplingParams(**{"seed": 1, **settings}))
    return torch.bincount(torch.tensor([sampler(LOGITS, token_ids) for _ in range(count)]), minlength=6) / count


def test_greedy_takes_the_likeliest():
    assert draws(5)[1] == 1


def test_sampling_follows_the_probabilities():
    expected = (LOGITS / 0.8).softmax(-1)
    torch.testing.assert_close(draws(20000, temperature=0.8), expected, atol=0.015, rtol=0)


def test_top_k_keeps_the_likeliest_and_their_proportions():
    found = draws(20000, temperature=1.0, top_k=2)
    torch.testing.assert_close(found[1:3], LOGITS[1:3].softmax(-1), atol=0.015, rtol=0)
    assert found.sum() - found[1:3].sum() == 0


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, [1]), (0.6, [1]), (0.7, [1, 2]), (0.9, [1, 2, 3])])
def test_top_p_keeps_the_fewest_tokens_that_reach_it_and_at_least_one(top_p, kept):
    assert draws(3000, temperature=1.0, top_p=top_p).nonzero().flatten().tolist() == kept


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_tokens_that_occur():
    sampler = Sampler(SamplingParams(repetition_penalty=2.0))
    assert sampler(LOGITS, [1]) == 2, "3.0 became 1.5, so 2.0 wins"
    assert sampler(torch.tensor([-1.0, -1.5, -9.0]), [0]) == 1, "-1.0 became -2.0"
    assert torch.equal(LOGITS, torch.tensor([0.1, 3.0, 2.0, 1.0, -1.0, 0.0])), "the model's logits are not touched"


def test_a_seed_fixes_the_choices_and_no_seed_does_not():
    def text(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler(LOGITS, []) for _ in range(40)]

    assert text(7) == text(7)
    assert text(7) != text(8)
    assert text(None) != text(None)


def test_the_smallest_temperature_is_greedy():
    assert draws(5, temperature=1e-44)[1] == 1


def test_min_p_drops_what_is_much_less_likely_than_the_likeliest():
    kept = (LOGITS.softmax(-1) >= 0.3 * LOGITS.softmax(-1).max()).nonzero().flatten().tolist()
    assert draws(3000, temperature=1.0, min_p=0.3).nonzero().flatten().tolist() == kept == [1, 2]


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all():
    for settings, chosen in (
        ({"presence_penalty": 0.9}, 1),  # 3.0 − 0.9 is still above 2.0
        ({"presence_penalty": 1.1}, 2),
        ({"frequency_penalty": 0.4}, 2),  # 3.0 − 3 · 0.4
    ):
        sampler = Sampler(SamplingParams(**settings))
        assert sampler(LOGITS, [2, 2, 1, 1, 1], num_generated=3) == chosen
        assert sampler(LOGITS, [1, 1, 1], num_generated=0) == 1


def test_an_answer_does_not_end_before_its_least_number_of_tokens():
    sampler = Sampler(SamplingParams(min_tokens=2), end_tokens=[1])
    assert [sampler(LOGITS, [0] * n, num_generated=n) for n in range(4)] == [2, 2, 1, 1]
    assert Sampler(SamplingParams(min_tokens=2))(LOGITS, []) == 1, "no token ends this one"


def test_log_probabilities_are_the_models_own_whatever_the_settings():
    sampler = Sampler(SamplingParams(logprobs=2, temperature=0.1, repetition_penalty=2.0))
    found = sampler.logprob(LOGITS, 3)
    expected = LOGITS.log_softmax(-1)
    assert found.logprob == pytest.approx(float(expected[3]))
    assert [token for token, _ in found.top] == [1, 2]
    assert found.top[0][1] == pytest.approx(float(expected[1]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_not_sampled_from(broken):
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        Sampler(SamplingParams())(torch.tensor([0.0, broken]), [])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; give a whole number at least 1"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5; give a whole number at least 1"),
        ({"temperature": -1}, "temperature is -1; give a number at least 0 and at most 100"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0; give a number above 0 and at most 1"),
        ({"top_k": True}, "top_k is True"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; give a number at least 0.1 and at most 10"),
        ({"stop": 5}, "stop is a list of non-empty strings, not 5"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": [""]}, "stop is a list of non-empty strings"),
        ({"min_p": 2}, "min_p is 2; give a number at least 0 and at most 1"),
        ({"min_tokens": 600}, "min_tokens is 600; give a whole number at least 0 and at most 512"),
        ({"presence_penalty": 3}, "presence_penalty is 3; give a number at least -2 and at most 2"),
        ({"logprobs": 21}, "logprobs is 21; give a whole number at least 0 and at most 20"),
        ({"regex": ""}, "regex is ''; give a non-empty string"),
        ({"regex": "a", "json_schema": "{}"}, "a regex or a json_schema, not both"),
        ({"tempature": 1}, "unknown setting 'tempature'; there are max_tokens, temperature"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_range(settings, complaint):
    with pytest.raises(RequestError, match=re.escape(complaint)):
        parse(SamplingParams, "params", settings, "setting")
