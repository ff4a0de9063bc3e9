"""Accuracy against pictures and frames, small print, and the first token: on a scripted model, and as a page."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import longview
from longview.errors import RequestError
from longview.eval import curves
from longview.eval.curves import JOBS, Amount, main, measure, mechanism, points, rows
from longview.eval.curves_page import answered_films, groups_table, page, plot, with_points_of
from longview.eval.tasks import distractors
from longview.messages import Message, Part
from longview.world.render import write_picture
from longview.world.scenes import Picture, Thing

FEW = Amount(questions=5, films=2, prints=4, repeats=2, pictures=(1, 2, 5), frames=(2, 4))
LONGEST = 2
"""Pictures that the scripted model takes."""


class Scripted:
    """Knows the truth of every question that is drawn, takes `LONGEST` pictures, and reads print by crops alone."""

    def __init__(self, truths: dict[str, str]) -> None:
        self.name, self.truths = "scripted", truths
        self.processor = SimpleNamespace(cut_enable=False)
        self.asked: list[tuple[str, int]] = []

    def batch(self, conversations: Any, **settings: Any) -> Any:
        for conversation in conversations:
            try:
                yield self.answer(conversation, **settings)
            except RequestError as error:
                yield error

    def answer(self, conversation: Any, media: Any = None, max_tokens: int = 0) -> Any:
        (message,) = list(conversation)
        shown = [part for part in message.parts if part.type != "text"]
        text = message.parts[-1].text.strip()
        if len(shown) > LONGEST:
            raise RequestError("the prompt is longer than the model")
        self.asked.append((text, len(shown)))
        self.settings = media
        count = 1 if media is None else media["frames"]
        frames = [SimpleNamespace(medium=0, kind="image", name="", index=n, seconds=60.0 * n) for n in range(count)]
        usage = SimpleNamespace(prompt_tokens=1)
        truth = self.truths.get(text, "")
        if not self.processor.cut_enable and text in self.prints:
            truth = "nothing"
        return SimpleNamespace(
            text=truth, finish_reason="stop", receipt=SimpleNamespace(frames=frames, usage=usage, warnings=())
        )

    prints: frozenset[str] = frozenset()


@pytest.fixture
def scripted(monkeypatch) -> Scripted:
    """With the truths of `FEW`, as they are drawn."""
    truths: dict[str, str] = {}
    every = distractors.world_items(FEW.pictures, FEW.seed, 1)
    protocol = curves.find_task("distractor").protocols["owl3"]
    truths.update({protocol.text(item).split("\n")[-1]: item.answer for item in every})
    cases = [
        dataclasses.replace(case, question=dataclasses.replace(case.question, text=f"{case.question.text} {number}"))
        for number, case in enumerate(curves.draw_cases(FEW.seed, 1, ["small print"]))
    ]
    monkeypatch.setattr(curves, "draw_cases", lambda *arguments: cases)
    draw = curves.draw_needle_video

    def drawn(*arguments: Any) -> Any:
        video = draw(*arguments)
        truths[video.question.text] = video.question.answer
        return video

    monkeypatch.setattr(curves, "draw_needle_video", drawn)
    monkeypatch.setattr(curves, "write_needle_video", lambda video, path, seed: path.write_bytes(b"film") and path)
    found = Scripted(truths)
    truths.update({case.question.text: case.question.answer for case in cases})
    found.prints = frozenset(case.question.text for case in cases)
    return found


def by(found: list[dict[str, Any]], curve: str, at: Any = None, setting: Any = None) -> dict[str, Any]:
    (point,) = [p for p in found if (p["curve"], p["at"], p["setting"]) == (curve, at, setting)]
    return point


def test_each_point_is_the_share_of_right_answers_with_its_interval(scripted):
    found = points(rows({"scripted": scripted}, FEW, []))
    for at in (1, 2):
        point = by(found, "pictures", at)
        assert (point["right"], point["total"], point["accuracy"]) == (5, 5, 1.0)
        assert 0.5 < point["low"] < 0.6
    assert "longer than the model" in by(found, "pictures", 5)["error"]
    assert (by(found, "small print", setting="off")["right"], by(found, "small print", setting="on")["right"]) == (0, 4)
    assert by(found, "first token", 2)["total"] == 2
    assert by(found, "first token", 2)["low"] <= by(found, "first token", 2)["seconds"]
    assert not [point for point in found if point["curve"] == "first token" and point["at"] == 5]
    for select, at in itertools.product(("uniform", "fps", "mdp3"), (2, 4)):
        assert by(found, "frames", at, select)["right"] == 2
        assert by(found, "needle", at, select)["total"] == 2


def test_of_many_pictures_fewer_questions_are_asked_as_many_of_each_kind(scripted):
    few = dataclasses.replace(FEW, questions=15, shown=20)
    found = [row for row in rows({"scripted": scripted}, few, []) if row["curve"] == "pictures"]
    assert [sum(row["at"] == at for row in found) for at in (1, 2)] == [15, 10]
    kinds = [curves._kind(row) for row in found if row["at"] == 2]
    assert sorted(kinds) == sorted(2 * distractors.KINDS)


def test_chance_is_that_of_each_kind():
    answers = {"colour": "red red blue", "size": "large small small"}
    found = [
        {"curve": "pictures", "model": "m", "at": 1, "number": f"1/{kind}-{n}/0", "truth": truth, "right": False}
        for kind, truths in answers.items()
        for n, truth in enumerate(truths.split())
    ]
    assert points(found)[0]["chance"] == round(4 / 6, 4)


def test_what_a_killed_run_has_answered_is_not_asked_again(scripted, tmp_path, monkeypatch):
    file = tmp_path / "numbers.json"
    whole = measure({"scripted": scripted}, FEW, tmp_path / "whole.json", print)
    asked = len(scripted.asked)
    for stop in (1, 4, 9, 17):
        scripted.asked.clear()
        answer, left = Scripted.answer, [stop]

        def dying(self, *arguments: Any, answer=answer, left=left, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return answer(self, *arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(Scripted, "answer", dying)
            with pytest.raises(KeyboardInterrupt):
                measure({"scripted": scripted}, FEW, file, print)
        assert not file.exists()
    scripted.asked.clear()
    found = measure({"scripted": scripted}, FEW, file, print)
    assert len(scripted.asked) < asked - 15

    def without_seconds(numbers: dict[str, Any]) -> list[Any]:
        return [p for p in numbers["points"] if p["curve"] != "first token"]

    assert without_seconds(found) == without_seconds(whole)
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert not list(tmp_path.glob("*.jsonl")), "a journal is of use until the numbers stand"


def test_a_journal_of_another_amount_is_not_gone_on_with(scripted, tmp_path):
    file = tmp_path / "numbers.json"
    some = rows({"scripted": scripted}, FEW, [])
    assert next(some)
    with pytest.raises(KeyboardInterrupt):
        measure({"scripted": _Dying(scripted.truths)}, FEW, file, print)
    with pytest.raises(RequestError):
        measure({"scripted": scripted}, dataclasses.replace(FEW, films=3), file, print)


class _Dying(Scripted):
    def answer(self, *arguments: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt


def test_all_models_are_asked_the_same_and_each_question_once(scripted):
    other = Scripted(scripted.truths)
    other.prints = scripted.prints
    found = list(rows({"first": scripted, "second": other}, FEW, []))
    films = sum(row["curve"] == "frames" for row in found)
    assert films == 2 * 3 * 2, "the first model alone watches films"
    assert other.asked == scripted.asked[: len(other.asked)]
    assert len({curves._key(row) for row in found}) == len(found)


@pytest.mark.parametrize("name", ["demo-owl3", "demo-ovis2"])
def test_crops_are_cut_where_they_are_on_and_afterwards_as_before(name, tmp_path):
    engine = longview.load(name)
    path = write_picture(Picture(()), tmp_path / "picture.png")
    message = Message.of("user", Part("image", source=path), "?")

    def crops() -> int:
        return engine.processor.prepare([message], longview.media.open_media(message.media, None)).num_pictures

    found = []
    for on in (False, True):
        with mechanism(engine, on):
            found.append(crops())
    assert (*found, crops()) == (1, {"demo-owl3": 5, "demo-ovis2": 10}[name], 1)


def test_a_tower_of_high_resolution_that_is_off_sees_grey_and_what_it_made_is_forgotten(tmp_path):
    engine = longview.load("demo-mgm")
    path = write_picture(Picture((Thing("red", "star", "large", 0.5, 0.5),)), tmp_path / "picture.png")
    message = Message.of("user", Part("image", source=path), "What colour is the star?")
    seen = []
    hook = engine.model.vision_tower_aux.embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for on in (False, True, None):
        with mechanism(engine, on) if on is not None else contextlib.nullcontext():
            engine.answer([message], max_tokens=1)
    hook.remove()
    assert [bool(pixels.any()) for pixels in seen] == [False, True, True]


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    found = []
    for model, factor in (("demo-owl3", 1.0), ("demo-ovis2", 0.5)):
        for at in (1, 10, 100):
            right = round(40 * factor / at**0.2)
            score = {"right": right, "total": 50, "accuracy": right / 50, "low": 0.0, "high": 1.0, "chance": 0.2}
            place = {"model": model, "setting": None, "at": at}
            unfit = model == "demo-ovis2" and at == 100
            found.append({"curve": "pictures"} | place | ({"error": "too long"} if unfit else score))
            times = {"total": 3, "seconds": 0.01 * at, "low": 0.009 * at, "high": 0.02 * at}
            found.append({"curve": "first token"} | place | times)
        for setting in ("off", "on"):
            found.append({"curve": "small print", "model": model, "setting": setting, "at": None} | score)
    for curve, select in itertools.product(("frames", "needle"), ("uniform", "fps", "mdp3")):
        found += [{"curve": curve, "model": "demo-owl3", "setting": select, "at": at} | score for at in (4, 64)]
    return {"points": found}


def test_the_page_has_a_table_and_a_figure_of_each_curve(numbers):
    sections = page(numbers, "results")
    assert list(sections) == ["pictures", "frames", "small print", "first token"]
    assert "| pictures | asked | mPLUG-Owl3 | Ovis2 |" in sections["pictures"]
    assert "| 100 | 50 | 32% (0% – 100%) | does not fit |" in sections["pictures"]
    assert "| frames | asked | uniform | 1 a second | MDP3 |" in sections["frames"]
    assert "| Ovis2 | crops | 16% (0% – 100%) |" in sections["small print"]
    assert "| 10 | 3 | 0.10 (0.09 – 0.20) | 0.10 (0.09 – 0.20) |" in sections["first token"]
    assert "to each kind of question would score 20%" in sections["pictures"]
    figures = [re.search(r"\]\(results/([\w-]+\.png)\)", text)[1] for text in sections.values()]
    assert len(set(figures)) == 4


def test_figures_are_drawn(numbers, tmp_path):
    plot(numbers, tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(drawn) == ["first-token.png", "frames.png", "pictures.png", "small-print.png"]
    assert all(data.startswith(b"\x89PNG") for data in drawn.values())


def test_pictures_of_another_job_stand_beside_the_others_and_nothing_else_of_it(numbers):
    place = {"model": "demo-owl3-many", "setting": None, "at": 400}
    score = {"total": 40, "accuracy": 0.5, "low": 0.4, "high": 0.6, "chance": 0.3}
    others = {"points": [place | score | {"curve": "pictures"}, place | score | {"curve": "frames", "setting": "mdp3"}]}
    together = with_points_of(numbers, others, "pictures")
    assert len(together["points"]) == len(numbers["points"]) + 1
    assert "| 400 | 40 | – | – | 50% (40% – 60%) |" in page(together, "results")["pictures"]
    assert "| 400 | 40 | 50% (40% – 60%) |" in answered_films(others)


def test_groups_of_each_model_are_those_of_its_card():
    score = {"accuracy": 0.95, "low": 0.9, "high": 0.98}
    shown = dict.fromkeys(("one picture", "two pictures", "four pictures", "eight pictures", "small print"), score)
    lines = groups_table({"demo-x": {"groups": {"shown": shown | {"clip": score | {"accuracy": 0.5}}}}}).splitlines()
    assert lines[0] == "| model | one picture | two pictures | four pictures | eight pictures | clip |"
    assert lines[2] == f"| `demo-x` |{' 95% (90% – 98%) |' * 4} 50% (90% – 98%) |"


@pytest.mark.parametrize("name", JOBS)
def test_the_committed_numbers_are_of_the_embedded_models_and_fill_every_curve(name):
    path = Path(__file__).parents[2] / "docs" / "results" / f"{name}.json"
    numbers = json.loads(path.read_text())
    models, amount = JOBS[name]
    assert numbers["models"] == list(models)
    assert {field: numbers[field] for field in ("questions", "films", "prints")} == {
        field: getattr(amount, field) for field in ("questions", "films", "prints")
    }
    assert {point["curve"] for point in numbers["points"]} == {
        "pictures", "frames", "needle", "small print", "first token"
    }  # fmt: skip
    for name, where in numbers["weights"].items():
        assert where == curves.fingerprint(longview.load(name).model), f"measure {name} again"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--films", "0"], "from 1 up"),
        (["--films", "x"], "invalid int"),
        (["--models", "nothing-here"], "nothing-here"),
        (["--only", "print"], "--only goes with a folder"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "numbers.json"), *arguments])
    assert said in capsys.readouterr().err + str(ended.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_the_jobs_of_the_page(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(curves, "measure", lambda engines, amount, file, tell: asked.append((list(engines), file.name)))
    monkeypatch.setattr(curves.longview, "load", lambda name: name)
    main([str(tmp_path)])
    assert asked == [(list(models), f"{name}.json") for name, (models, _) in JOBS.items()]
    main([str(tmp_path), "--only", "many"])
    assert asked[3:] == [(["demo-owl3-many"], "many.json")]
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--films", "3"])
    assert "whose jobs say what they ask" in capsys.readouterr().err
