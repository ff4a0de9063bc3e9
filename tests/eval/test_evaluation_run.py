"""A run of a task: the journal, going on after a kill, limits, files, comparison."""

from __future__ import annotations

import json

import pytest
from evaluations import Scripted, measure, mmbench_rows, oracle, write_tsv

from longview.errors import RequestError
from longview.eval.compare import changed, compare, mcnemar
from longview.eval.results import read_result
from longview.eval.tasks import Options, find_task
from longview.eval.world import case_messages, draw_cases
from longview.messages import Message


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_tsv(folder / "MMBench_DEV_EN.tsv", mmbench_rows(8))
    return folder


def often_wrong(item):
    return oracle(item) if int(item.unit) % 3 else "B"


NUMBERS = ("score", "low", "high", "questions", "answers", "unparsed", "more", "by", "failed", "of", "guessing")


def numbers(result) -> dict:
    return {name: result.numbers[name] for name in NUMBERS}


class Killed(BaseException):
    """As SIGKILL: nothing is cleaned up after it that matters."""


@pytest.mark.parametrize("at", [0, 1, 13, 28])
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_numbers(data, tmp_path, at):
    whole = measure("mmbench_en", often_wrong, data, tmp_path / "whole")

    def until_killed(item):
        if len(scripted.asked) > at:
            raise Killed
        return often_wrong(item)

    scripted = Scripted(until_killed)
    with pytest.raises(Killed):
        measure("mmbench_en", scripted, data, tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    with (tmp_path / "killed" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"id": "half a li')
    again = Scripted(often_wrong)
    found = measure("mmbench_en", again, data, tmp_path / "killed")
    assert len(again.asked) == whole.numbers["answers"] - at
    assert numbers(found) == numbers(whole)
    assert found.samples == whole.samples
    both = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("whole", "killed")]
    assert both[0] == both[1]


def test_a_finished_run_asks_nothing_again_and_a_failed_answer_is_asked_again(data, tmp_path):
    def fails(item):
        if item.id == "242/1":
            raise RequestError("it would not say")
        return oracle(item)

    first = measure("mmbench_en", fails, data, tmp_path / "run")
    assert first.numbers["failed"] == 1
    assert first.numbers["score"] == 87.5
    again = Scripted(oracle)
    second = measure("mmbench_en", again, data, tmp_path / "run")
    assert again.asked == ["242/1"]
    assert (second.numbers["failed"], second.numbers["score"]) == (0, 100)
    third = Scripted(oracle)
    assert numbers(measure("mmbench_en", third, data, tmp_path / "run")) == numbers(second)
    assert third.asked == []


def test_another_job_does_not_go_on_in_a_folder(data, tmp_path):
    measure("mmbench_en", oracle, data, tmp_path / "run")
    with pytest.raises(RequestError, match="begun with protocol 'owl3', not 'mgm'"):
        measure("mmbench_en", oracle, data, tmp_path / "run", protocol="mgm")
    with pytest.raises(RequestError, match="begun with model 'scripted', not 'another'"):
        measure("mmbench_en", Scripted(oracle, "another"), data, tmp_path / "run")
    write_tsv(data / "MMBench_DEV_EN.tsv", mmbench_rows(8, seed=1))
    with pytest.raises(RequestError, match="begun with questions"):
        measure("mmbench_en", oracle, data, tmp_path / "run")


def test_a_limit_counts_questions_and_a_higher_one_goes_on(data, tmp_path):
    first = Scripted(oracle)
    assert measure("mmbench_en", first, data, tmp_path / "run", limit=2).numbers["questions"] == 2
    assert {name.partition("/")[0] for name in first.asked} == {"240", "241"}
    second = Scripted(oracle)
    found = measure("mmbench_en", second, data, tmp_path / "run", limit=3)
    assert (found.numbers["questions"], found.numbers["of"]) == (3, 8)
    assert {name.partition("/")[0] for name in second.asked} == {"242"}


def test_what_is_kept_says_what_was_asked_said_and_made_of_it(data, tmp_path):
    measure("mmbench_en", often_wrong, data, tmp_path / "run")
    kept = read_result(tmp_path / "run")
    sample = kept.samples[0]
    assert sample["prompt"].startswith("<image>Context: N/A")
    assert sample.keys() >= {
        "id",
        "unit",
        "question",
        "options",
        "truth",
        "answer",
        "parsed",
        "score",
        "frames",
        "media",
    }
    assert sample["media"] == ["row 1"]
    assert kept.numbers["protocol"]["max_tokens"] == 100
    assert kept.numbers["questions_digest"]
    with pytest.raises(RequestError, match=r"holds no finished evaluation \(results.json"):
        read_result(tmp_path)


def test_the_published_score_of_the_same_model_stands_beside_ours(data):
    scripted = Scripted(oracle, "models/MGM-7B-HD/")
    found = measure("mmbench_en", scripted, data).numbers["published"]
    assert (found["model"], found["score"]) == ("MGM-7B-HD", 65.8)
    assert measure("mmbench_en", oracle, data).numbers["published"] is None


def test_two_results_are_compared_question_by_question(data, tmp_path):
    first = measure("mmbench_en", often_wrong, data, tmp_path / "a")
    second = measure("mmbench_en", Scripted(oracle, "oracle"), data, tmp_path / "b")
    found = compare(read_result(tmp_path / "a"), read_result(tmp_path / "b"))
    wrong = [unit for unit in map(str, range(240, 248)) if not int(unit) % 3]
    assert list(found.only_second) == wrong
    assert (found.only_first, found.units, found.left_out) == ((), 8, 0)
    assert found.difference == pytest.approx(100 * len(wrong) / 8)
    assert found.low <= found.difference <= found.high
    assert found.p == 2 / 2 ** len(wrong)
    rows = changed(first, second, found.only_second)
    assert {row["id"].partition("/")[0] for row in rows} == set(wrong)
    assert all(row["scores"] == [0.0, 1.0] for row in rows)
    same = compare(first, first)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(("split", "p"), [((0, 0), 1.0), ((5, 5), 1.0), ((0, 6), 2 / 64), ((1, 9), 2 * 11 / 1024)])
def test_mcnemars_test_is_the_binomial_one(split, p):
    assert mcnemar(*split) == mcnemar(*split[::-1]) == pytest.approx(p)


def test_results_of_different_tasks_are_not_compared(data, tmp_path):
    first = measure("mmbench_en", oracle, data)
    world = measure("world", oracle, options=Options(per_kind=1, groups=("one picture",)))
    with pytest.raises(RequestError, match="one result is of mmbench_en, the other of world"):
        compare(first, world)


def test_results_are_plain_json(data, tmp_path):
    measure("mmbench_en", oracle, data, tmp_path / "run")
    for name in ("results.json",):
        json.loads((tmp_path / "run" / name).read_text())


def test_an_unknown_task_and_protocol_are_answered_with_the_known_ones(data):
    with pytest.raises(RequestError, match="did you mean 'mmbench_en'"):
        find_task("mmbench-en")
    with pytest.raises(RequestError, match="no protocol 'llava'; there are owl3, ovis2, mgm"):
        measure("mmbench_en", oracle, data, protocol="llava")


@pytest.mark.parametrize("shown", ["shown", "blank", "swapped"])
def test_the_worlds_questions_are_asked_as_before_there_was_a_table_of_tasks(tmp_path, shown):
    task = find_task("world")
    groups = ("one picture", "eight pictures", "clip", "small print")
    items = task.items(Options(seed=3, per_kind=1, groups=groups, shown=shown))
    cases = draw_cases(3, 1, groups)
    assert len(items) == len(cases)
    for number, (item, case) in enumerate(zip(items[::7], cases[::7], strict=True)):
        (message,) = case_messages(case, shown, tmp_path / str(number))
        parts = Message.of("user", *task.protocols["numbered"].parts(item)).parts
        assert [(part.type, part.text) for part in parts] == [(part.type, part.text) for part in message.parts]
        files = [part.source.read_bytes() for part in message.media]
        assert [part.source for part in parts if part.type != "text"] == files
