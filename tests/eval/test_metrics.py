"""The published benchmarks' way to put questions and read answers, against what their scripts gave."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from longview.eval import metrics

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mgm" / "eval.json").read_text())


@pytest.mark.parametrize("answer", GOLDEN["textvqa_normalise"])
def test_an_answer_is_normalised_as_vqas_evaluation_does(answer):
    assert metrics.vqa_normalised(answer) == GOLDEN["textvqa_normalise"][answer]


def test_an_answer_is_worth_what_people_agree_on():
    people = GOLDEN["textvqa_scores"]["answers"]
    assert metrics.vqa_scores(people) == pytest.approx(GOLDEN["textvqa_scores"]["scores"])
    given = GOLDEN["textvqa_acc"]
    found = [metrics.vqa_score(answer, people) for answer in given["preds"]]
    assert sum(found) / len(found) == pytest.approx(given["accuracy"])


@pytest.mark.parametrize("prompt", GOLDEN["textvqa_prompt"])
def test_textvqas_questions_are_found_in_their_prompts(prompt):
    assert metrics.textvqa_key(prompt) == GOLDEN["textvqa_prompt"][prompt]


@pytest.mark.parametrize(("answer", "letter"), GOLDEN["mmmu_mc"]["cases"])
def test_the_option_that_an_answer_chooses_is_found(answer, letter):
    chance = random.Random(GOLDEN["mmmu_mc"]["seed_before_each"])
    assert metrics.mmmu_choice(answer, GOLDEN["mmmu_mc"]["index2ans"], chance) == letter


@pytest.mark.parametrize(("answer", "values"), GOLDEN["mmmu_open"])
def test_what_an_open_answer_may_mean_is_found(answer, values):
    assert sorted(map(str, metrics.mmmu_values(answer))) == values


@pytest.mark.parametrize(("gold", "answer", "right"), GOLDEN["mmmu_eval_open"])
def test_an_open_answer_is_right_where_it_means_the_right_thing(gold, answer, right):
    assert metrics.mmmu_is_right(answer, gold) == right


@pytest.mark.parametrize(("sample", "prompt"), GOLDEN["mmmu_prompt"])
def test_mmmus_questions_are_put_as_published(sample, prompt):
    assert metrics.mmmu_prompt(sample) == prompt


@pytest.mark.parametrize(("given", "expected"), GOLDEN["mathvista_normalise"])
def test_what_was_found_takes_the_form_of_mathvistas_answers(given, expected):
    assert metrics.mathvista_normalised(*given) == expected


@pytest.mark.parametrize(("problem", "query"), GOLDEN["mathvista_query"])
def test_mathvistas_problems_are_put_as_published(problem, query):
    assert metrics.mathvista_query(problem) == query


def test_yes_and_no_are_read_and_counted_as_pope_does():
    given = GOLDEN["pope"]
    assert [("no", "yes")[metrics.says_yes(answer)] for answer in given["answers"]] == given["mapped"]
    *_, last = given["stdout"].strip().splitlines()
    found = metrics.pope_scores(given["answers"], given["labels"])
    order = ("f1", "accuracy", "precision", "recall", "yes")
    assert [round(found[name], 3) for name in order] == [float(number) for number in last.split(", ")]


@pytest.mark.parametrize(("one", "other", "steps"), [("", "abc", 3), ("kitten", "sitting", 3), ("8/1", "8/11", 1)])
def test_the_distance_of_two_texts_counts_letters(one, other, steps):
    assert metrics.distance(one, other) == metrics.distance(other, one) == steps


def test_a_model_that_denies_everything_has_no_precision_to_divide_by():
    assert metrics.pope_scores(["No"], ["yes"]) == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes": 0}
