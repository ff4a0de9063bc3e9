"""A run of a task: the journal, going on after a kill, limits, files, comparison."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from evaluations import Scripted, measure, mmbench_rows, oracle, write_tsv

from longview.cli.eval_output import print_comparison
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


def test_only_the_same_questions_are_paired(tmp_path, capsys):
    rows = mmbench_rows(4)
    for name, changes in (("a", {}), ("b", {1: {"question": "Another?"}, 2: {"answer": "C"}, 3: {"B": "mauve"}})):
        (tmp_path / name).mkdir()
        changed_rows = [row | changes.get(number, {}) for number, row in enumerate(rows)]
        write_tsv(tmp_path / name / "MMBench_DEV_EN.tsv", changed_rows)
    rows[2]["answer"] = "A"
    write_tsv(tmp_path / "a" / "MMBench_DEV_EN.tsv", rows)
    first, second = (measure("mmbench_en", oracle, tmp_path / name) for name in "ab")
    found = compare(first, second)
    assert (found.units, found.left_out, found.differing) == (1, 0, 3)
    assert found.as_dict()["differing"] == 3
    print_comparison(found, [], False)
    assert "3 questions of one number but of another text or truth are left out" in capsys.readouterr().out
    with pytest.raises(RequestError, match="no question in common, though 3 of the same number"):
        compare(without(first, "240"), without(second, "240"))


def without(result, unit):
    return replace(result, samples=[sample for sample in result.samples if sample["unit"] != unit])


@pytest.mark.parametrize(
    ("task", "first", "second", "said"),
    [
        ("world", {"seed": 0}, {"seed": 1}, "seed 0 and seed 1"),
        ("world", {"per_kind": 1}, {"per_kind": 2}, "per_kind 1 and per_kind 2"),
        ("world", {}, {"groups": ("two pictures",)}, "groups one picture and groups two pictures"),
        ("distractor", {"source": "world", "seed": 3}, {"source": "world", "seed": 4}, "seed 3 and seed 4"),
    ],
)
def test_results_of_different_draws_are_not_compared(task, first, second, said):
    usual = {"per_kind": 1, "groups": ("one picture",)} if task == "world" else {"per_kind": 1, "pictures": (1,)}
    a, b = (measure(task, oracle, options=Options(**usual | more)) for more in (first, second))
    with pytest.raises(RequestError, match=f"different draws of questions, {said}; give two of the same"):
        compare(a, b)


def test_scores_that_are_fractions_are_not_put_to_mcnemars_test(tmp_path, capsys):
    write_tsv(tmp_path / "m.tsv", [{"index": n, "question": f"What {n}?", "answer": "one two"} for n in range(3)])
    first = measure("messages", lambda item: "one two", tmp_path / "m.tsv")
    second = measure("messages", lambda item: "one" if item.id == "1" else "one two", tmp_path / "m.tsv")
    found = compare(first, second)
    assert (found.p, found.only_first, found.difference < 0) == (None, ("1",), True)
    print_comparison(found, [], False)
    told = capsys.readouterr().out
    assert "it is better in" in told
    assert "only it is right" not in told
    assert "paired bootstrap), no McNemar test of fractions: the difference" in told


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("results.json", "{}", r"results.json has no 'task'"),
        ("results.json", "[]", r"results.json holds no JSON object"),
        ("samples.jsonl", "{}\n", r"samples.jsonl, line 1 has no 'id'"),
        ("samples.jsonl", "{\n", r"is damaged, or of no evaluation \(Expecting"),
        ("results.json", b"\xff", r"is damaged, or of no evaluation \('utf-8'"),
    ],
)
def test_files_of_no_evaluation_are_one_line(data, tmp_path, name, text, said):
    measure("mmbench_en", oracle, data, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RequestError, match=said):
        read_result(tmp_path / "run")


def test_results_are_plain_json(data, tmp_path):
    measure("mmbench_en", oracle, data, tmp_path / "run")
    for name in ("results.json",):
        json.loads((tmp_path / "run" / name).read_text())


def test_an_unknown_task_and_protocol_are_answered_with_the_known_ones(data):
    for name, near in (("mmbench-en", "mmbench_en"), ("MMBench", "mmbench_en"), ("Video-MME", "videomme")):
        with pytest.raises(RequestError, match=f"did you mean '{near}'"):
            find_task(name)
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
