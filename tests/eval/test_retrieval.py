"""The measurement of retrieval: what is searched for is there once, and shares are those of constructed rows."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("lancedb", reason="the extra index is not installed")

from longview.engine.score import Scores
from longview.eval import retrieval as module
from longview.eval.retrieval import Amount, FilmSet, is_moment, measure, said
from longview.eval.retrieval_points import page, points, rests_on
from longview.evidence.deletion import CLEARLY
from longview.index.moments import Found
from longview.messages import Answer, Receipt, Timings, Usage
from longview.models.similarity import DEMO, Similarity
from longview.world.naming import facts_held, facts_named

TIMINGS = Timings(media=0, preprocess=0, encode=0, prefill=0, decode=0, first_token=0)
RECEIPT = Receipt("scripted", (), Usage(1, 1, 0, 0), TIMINGS, {})


def row(condition, number, right, claimed=(), changes=(), told_in=1, part="name", answer=""):
    return {
        "part": part, "model": "m", "condition": condition, "number": number, "truth": "tea", "answer": answer,
        "right": right, "claimed": list(claimed), "told_in": told_in, "fooled": False,
        "changes": {str(at): change for at, change in enumerate(changes, 1)},
    }  # fmt: skip


def test_shares_are_those_of_the_rows():
    found = [
        row("right", 0, True), row("right", 1, True), row("right", 2, False),
        row("mixed", 0, True, [1], [-4.0, -0.1]),
        row("mixed", 1, False, [2], [-4.0, 0.0]),
        row("mixed", 2, True, [1, 2], [-0.01, 0.0]),
        row("wrong", 0, False, answer="Not known.", changes=[-1.5], told_in=0),
        {"part": "search", "model": DEMO, "condition": "", "number": 0, "rank": 5},
        {"part": "search", "model": DEMO, "condition": "", "number": 1, "rank": None},
    ]  # fmt: skip
    made = points(found)

    def share(what, **wanted):
        (point,) = [p for p in made if p["what"] == what and all(p.get(k) == v for k, v in wanted.items())]
        return point["count"], point["total"]

    assert share("right", condition="right") == (2, 3)
    assert share("changed wrongly") == (1, 2), "of those that were right alone"
    assert share("claim is true", condition="mixed") == (1, 2), "of those that name one piece"
    assert share("not known", condition="wrong") == (1, 1)
    assert [share(f"recall@{depth}") for depth in (1, 5, 20)] == [(0, 2), (1, 2), (1, 2)]
    assert share("rests on the piece that tells", nats=CLEARLY, condition="mixed") == (1, 2)
    assert [share("rests on a piece that does not", nats=nats) for nats in (1.0, 2.0)] == [(1, 1), (0, 1)]
    assert rests_on(row("mixed", 0, True, changes=[-0.2, -3.0])) == 2


def test_an_answer_is_read_without_its_claim():
    assert said("Tea, based on knowledge 2.") == "tea"
    assert said("tea") == "tea"
    assert said("Based on knowledge 1") == ""


def test_what_is_searched_for_is_shown_by_one_shot_alone(tmp_path):
    films = FilmSet(tmp_path, Amount(films=4, seed=5), Similarity.open(DEMO))
    for target in [*films.searches(20), *films.questions(10)]:
        named = facts_named(target.text)
        fitting = [
            (film, shot * module.SHOT_SECONDS)
            for film, pictures in enumerate(films.scenes)
            for shot, picture in enumerate(pictures)
            if named <= facts_held(picture) and (target.question is None or film == target.film)
        ]
        assert fitting == [(target.film, target.begin)]
    target = films.searches(1)[0]
    moment = Found(f"/x/film-{target.film}.mp4", "moment", 0.1, begin=target.begin, end=target.end)
    assert is_moment(moment, target)
    assert not is_moment(Found(moment.path, "moment", 0.1, begin=target.end, end=target.end + 2), target)


class Scripted:
    """An engine that always says the same, which the first piece makes likely."""

    def answer(self, messages, **_) -> Answer:
        return Answer("tea, based on knowledge 1.", "stop", RECEIPT)

    async def ascore(self, messages, questions, **_):
        first = any("Knowledge 1:" in (part.text or "") for message in messages for part in message.parts)
        return [Scores((-1.0 if first else -9.0,), RECEIPT)]


def test_a_run_that_is_killed_goes_on_and_the_page_is_made_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHOTS", 4)
    monkeypatch.setattr(module, "SHOT_SECONDS", 1)
    amount, file = Amount(films=2, searches=4, questions=2, seed=3), tmp_path / "r.json"
    calls = 0
    asked = module._answer

    def kill(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return asked(*arguments)

    monkeypatch.setattr(module, "_answer", kill)
    with pytest.raises(KeyboardInterrupt):
        measure({"m": Scripted()}, amount, file, lambda _: None)
    numbers = measure({"m": Scripted()}, amount, file, lambda _: None)
    assert calls == 4 + 2 * len(module.CONDITIONS) + 1 - 3, "what was answered is not asked again"
    assert json.loads(file.read_text()) == numbers
    tables = page(numbers, "figures")
    assert "moments of films" in tables["recall"]
    assert all(title in tables["answers"] for title in ("the right passage", "none", "figures/answers.png"))
