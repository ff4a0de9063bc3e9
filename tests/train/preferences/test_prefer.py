"""Answers to rows are sampled, judged and paired; what is finished survives a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest
from PIL import Image
from runs import data_stage, forked

from longview.errors import MediaError, RecipeError, RequestError
from longview.messages import Message, Part, Piece
from longview.requests import Limits, MediaOptions, SamplingParams
from longview.train.data.datasets import Mixture
from longview.train.data.settings import DatasetSettings
from longview.train.preferences.judges import TRUTH_JUDGES, means_true_answer
from longview.train.preferences.pairs import JudgedAnswer, pair_row, pair_up
from longview.train.preferences.sample import PreferenceJob, check_output, journal_of, open_rows
from longview.train.preferences.settings import COT_PROMPT, PreferenceSettings

RIGHT, WRONG, UNTOLD = (JudgedAnswer(v, False, verdict) for v, verdict in (("r", True), ("w", False), ("?", None)))
CUT = JudgedAnswer("c", True)


class Engine:
    """Answers as a function of the question and of the number of the answer."""

    name = "scripted"

    def __init__(self, answer):
        self.answer, self.asked, self.lock = answer, [], threading.Lock()

    def stream(self, conversation, *, n, params, media, limits):
        messages = list(conversation)
        with self.lock:
            self.asked.append((messages, n, params.seed))
        found = [self.answer(messages, choice) for choice in range(n)]
        for choice, text in enumerate(found):
            reason = "length" if text.endswith("…") else "stop"
            yield Piece(text[:1], choice=choice)
            yield Piece(text[1:], choice=choice, finish_reason=reason)


def settings(**changes):
    return PreferenceSettings(**{"direct": 2, "cot": 0} | changes)


def job(rows, output, answer, judge=TRUTH_JUDGES["parse"], engine=None, params=None, **changes):
    engine = engine or Engine(answer)
    data = open_rows(DatasetSettings(str(rows)))
    params = params or SamplingParams(temperature=1, seed=3)
    return PreferenceJob(engine, data, output, judge, settings(**changes), params, MediaOptions(), Limits())


@pytest.fixture
def rows(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    lines = [{"id": 7, "query": f"<image>What is {n}?", "response": str(n), "images": ["ab"[n % 2] + ".png"]}
             for n in range(5)]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def number_of(messages):
    return messages[-1].parts[1].text.removeprefix("What is ")[0]


def one_right(messages, choice):
    return number_of(messages) if choice else "9"


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([WRONG, RIGHT], "pair"),
        ([RIGHT, RIGHT], "no wrong answer"),
        ([RIGHT, UNTOLD], "no wrong answer"),
        ([WRONG, CUT], "no right answer"),
        ([CUT, CUT], "cut"),
        ([CUT, UNTOLD], "no verdict"),
    ],
)
def test_a_question_that_gives_no_pair_says_why(answers, outcome):
    pairs, outcomes = pair_up("truth", {"direct": answers}, settings())
    assert outcomes == {"direct": outcome}
    assert [(pair.chosen, pair.rejected) for pair in pairs] == ([("r", "w")] if outcome == "pair" else [])


def test_equal_answers_make_one_pair_and_pairs_are_bounded():
    answers = [JudgedAnswer(text, False, text[0] == "r") for text in ("r1", "w1", "r1", "w1", "w2", "r2", "r3", "w3")]
    pairs, _ = pair_up("truth", {"direct": answers}, settings(pairs=8))
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("r1", "w1"), ("r2", "w2"), ("r3", "w3")]
    assert len(pair_up("truth", {"direct": answers}, settings(pairs=2))[0]) == 2


def test_a_right_answer_may_come_from_steps_or_from_the_row():
    answers = {"direct": [WRONG], "cot": [dataclasses.replace(RIGHT, text="so r")]}
    assert pair_up("truth", answers, settings(cot=2))[0] == []
    (pair,), outcomes = pair_up("truth", answers, settings(cot=2, across=True, true_answer=True))
    assert (pair.style, pair.chosen, pair.rejected) == ("direct", "so r", "w")
    assert outcomes == {"direct": "pair", "cot": "no wrong answer"}
    (pair,), _ = pair_up("truth", {"direct": [WRONG], "cot": [WRONG]}, settings(cot=2, across=True, true_answer=True))
    assert (pair.style, pair.chosen) == ("direct", "truth")
    assert pair_up("truth", {"direct": [UNTOLD]}, settings(true_answer=True))[0] == []


def test_a_row_names_media_from_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside, outside, picture = tmp_path / "in" / "x.png", "elsewhere.png", Image.new("RGB", (4, 4), "red")
    frames = Part("video", source=[str(inside), b"frame"])
    parts = [Part("image", source=each) for each in (str(inside), outside, "https://host/x.png", b"bytes", picture)]
    (tmp_path / "in").mkdir()
    message = Message.of("user", "A ", *parts, frames, "?")
    row = pair_row([message, Message.of("assistant", "a")], "b", tmp_path / "in" / "pairs.jsonl")
    assert row["messages"][0]["content"] == "A " + "<image>" * 5 + "<video>?"
    first, second, third, fourth, fifth = row["images"]
    assert (first, second, third) == ("x.png", str(tmp_path / outside), "https://host/x.png")
    assert (tmp_path / "in" / fourth).read_bytes() == b"bytes"
    assert Image.open(tmp_path / "in" / fifth).size == (4, 4)
    assert row["videos"][0][0] == "x.png"
    assert (tmp_path / "in" / row["videos"][0][1]).read_bytes() == b"frame"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"direct": 0}, "nothing would be asked"),
        ({"direct": 1}, "one answer makes no pair"),
        ({"direct": 0, "cot": 2, "true_answer": True}, "true_answer is about direct answers"),
        ({"across": True}, "across pairs step-by-step answers"),
        ({"direct": 65}, "from 0 to 64"),
        ({"pairs": 0}, "from 1 to 64"),
    ],
)
def test_settings_that_give_no_pair_are_refused(changes, told):
    with pytest.raises(RequestError, match=told):
        settings(**changes)


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_become_pairs_that_preferences_are_learned_from(rows, tmp_path):
    def answer(messages, choice):
        if messages[-1].text.endswith(COT_PROMPT):
            return f"Hm {choice}. The answer is {number_of(messages) if choice == 2 else '99'}."
        return one_right(messages, choice) if number_of(messages) != "4" else "4"

    output = tmp_path / "out" / "pairs.jsonl"
    engine = Engine(answer)
    summary = job(rows, output, None, engine=engine, direct=2, cot=3).run()
    assert summary.as_dict() == {
        "rows": 5, "with_pairs": 5, "pairs": {"direct": 4, "cot": 5}, "failed": {},
        "outcomes": {"direct": {"pair": 4, "no wrong answer": 1}, "cot": {"pair": 5}},
    }  # fmt: skip
    asked = {(messages[-1].text, n) for messages, n, _ in engine.asked}
    assert ("What is 3?", 2) in asked
    assert (f"What is 3?\n{COT_PROMPT}", 3) in asked
    assert len({seed for _, _, seed in engine.asked}) == 10
    lines = read(output)
    assert [row["id"] for row in lines][:2] == ["1-direct", "1-cot"]
    assert lines[1]["messages"][0]["content"] == f"<image>What is 0?\n{COT_PROMPT}"
    mixture = Mixture(data_stage(objective="preference", datasets=[DatasetSettings(str(output))]), 1)
    assert mixture.epoch == 9
    for position in range(mixture.epoch):
        data, number = mixture.at(position)
        example = data[number]
        true = number_of(example.messages[:-1])
        assert means_true_answer(example.messages[-1].text, true) is True
        assert means_true_answer(example.rejected.text, true) is False
        assert [part.source for part in example.media] == [str(tmp_path / f"{'ab'[int(true) % 2]}.png")]


def test_a_job_that_is_killed_goes_on_and_asks_no_row_twice(rows, tmp_path):
    output = tmp_path / "pairs.jsonl"
    whole = tmp_path / "whole.jsonl"
    job(rows, whole, one_right).run()
    asked = tmp_path / "asked"

    def answer(messages, choice):
        if choice == 0:
            with asked.open("a") as file:
                file.write(number_of(messages) + "\n")
        return one_right(messages, choice)

    def kill(question, truth, answers, style):
        kill.judged += 1
        if kill.judged == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return TRUTH_JUDGES["parse"](question, truth, answers, style)

    kill.judged, kill.name = 0, "parse"
    assert forked(lambda: job(rows, output, answer, judge=kill).run()) == [-9]
    journal = read(journal_of(output))
    done = {line["row"] for line in journal[1:] if "answers" in line}
    judged = {line["row"] for line in journal[1:] if "verdicts" in line}
    assert len(judged) <= 2  # of those that were judged, some may not have been written yet
    assert judged <= done
    assert not output.exists()
    asked.unlink()
    with journal_of(output).open("ab") as file:
        file.write(b'{"row": 4, "answ')  # what a kill may leave
    summary = job(rows, output, answer).run()
    again = asked.read_text().split() if asked.exists() else []
    assert sorted(again) == sorted(str(row) for row in set(range(5)) - done)
    assert summary.with_pairs == 5
    assert output.read_text() == whole.read_text()
    journal = read(journal_of(output))
    for what in ("answers", "verdicts"):
        assert sorted(line["row"] for line in journal[1:] if what in line) == list(range(5))
    asked.unlink(missing_ok=True)
    output.unlink()
    assert job(rows, output, answer).run() == summary  # nothing is left to do
    assert not asked.exists()


def test_a_judge_that_does_not_answer_ends_it_and_keeps_what_is_done(rows, tmp_path):
    output, judged = tmp_path / "pairs.jsonl", []

    def judge(question, truth, answers, style):
        judged.append(question)
        if len(judged) > 2:
            raise RequestError("the judge at http://x does not answer")
        return [True] * len(answers)

    judge.name, judge.close = "openai x", lambda: None
    engine = Engine(one_right)
    with pytest.raises(
        RequestError, match=r"does not answer; 2 of 5 rows are finished and kept in .*journal"
    ) as failed:
        job(rows, output, None, judge=judge, engine=engine).run()
    assert "\n" not in str(failed.value)
    assert not output.exists()
    assert job(rows, output, None, engine=engine).run().with_pairs == 5  # another judge: its own verdicts
    assert len(engine.asked) == 5
    assert job(rows, output, None, engine=engine, pairs=2, true_answer=True).run().with_pairs == 5
    assert len(engine.asked) == 5


def test_a_row_that_fails_fails_alone(rows, tmp_path):
    def answer(messages, choice):
        if number_of(messages) == "2":
            raise MediaError("there is no file c.png; check the path")
        return one_right(messages, choice)

    output = tmp_path / "pairs.jsonl"
    summary = job(rows, output, answer).run()
    assert summary.failed == {f"{rows}, line 3": "there is no file c.png; check the path"}
    assert summary.outcomes == {"direct": {"pair": 4, "failed": 1}}
    assert job(rows, output, one_right).run() == summary  # a failure is recorded, too


def test_our_own_error_is_raised_and_what_is_done_is_kept(rows, tmp_path):
    def answer(messages, choice):
        if number_of(messages) == "4":
            raise ZeroDivisionError
        return one_right(messages, choice)

    output = tmp_path / "pairs.jsonl"
    with pytest.raises(ZeroDivisionError):
        job(rows, output, answer).run()
    assert job(rows, output, one_right).run().with_pairs == 5


def test_answers_that_are_cut_are_not_judged(rows, tmp_path):
    judged = []

    def judge(question, truth, answers, style):
        judged.extend(answers)
        return [True] * len(answers)

    judge.name = "x"
    summary = job(rows, tmp_path / "pairs.jsonl", lambda messages, choice: "on and on…", judge=judge).run()
    assert summary.outcomes == {"direct": {"cut": 5}}
    assert judged == []
    assert (tmp_path / "pairs.jsonl").read_text() == ""


def test_pairs_that_cannot_be_written_cost_no_answer(rows, tmp_path):
    output = tmp_path / "pairs.jsonl"
    output.mkdir()  # in its place
    with pytest.raises(RequestError, match=r"cannot be written .*every answer is kept"):
        job(rows, output, one_right).run()
    output.rmdir()
    engine = Engine(one_right)
    assert job(rows, output, None, engine=engine).run().with_pairs == 5
    assert engine.asked == []


def test_other_settings_do_not_go_on_in_the_same_journal(rows, tmp_path):
    output = tmp_path / "pairs.jsonl"
    job(rows, output, one_right).run()
    for changes, told in (
        ({"direct": 3}, "direct 2, not 3"),
        ({"params": SamplingParams(temperature=2, seed=3)}, "temperature 1, not 2"),
        ({"engine": SimpleNamespace(name="other")}, "model 'scripted', not 'other'"),
    ):
        with pytest.raises(RequestError, match=told):
            job(rows, output, one_right, **changes).run()
    (tmp_path / "own.jsonl").write_text("")
    with pytest.raises(RequestError, match="no journal beside it"):
        check_output(tmp_path / "own.jsonl")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"caption": "a cat", "image_path": "a.png"}, "holds no question with an answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "holds no question with an answer"),
        ({"query": "?", "response": "x", "rejected_response": "y"}, "holds a rejected answer"),
        ({"query": "?"}, "neither messages nor a response"),
    ],
)
def test_rows_that_hold_no_question_are_named(tmp_path, row, told):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"query": "?", "response": "x"}) + "\n" + json.dumps(row))
    with pytest.raises(RecipeError, match=f"line 2: .*{told}"):
        open_rows(DatasetSettings(str(path)))
