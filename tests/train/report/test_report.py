"""A run on one page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from runs import stage_tree
from samples import tiny_model

from longview.engine import load
from longview.errors import CheckpointError
from longview.messages import Part, ask
from longview.models.families import families
from longview.train import run as training
from longview.train.recipe import from_tree
from longview.train.report.curves import MOST_POINTS, chart, number, smoothed, thinned, ticks
from longview.train.report.page import training_seconds, write_report


@pytest.fixture(scope="module")
def recipe(tokenizer, tmp_path_factory):
    """A fine-tune by an adapter in two stages; one row of three shows a picture that is none."""
    folder = tmp_path_factory.mktemp("tuned")
    model, processor = tiny_model(families()["owl3"], "241101", tokenizer)
    model.save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    Image.new("RGB", (30, 24), "red").save(folder / "red.png")
    (folder / "broken.png").write_bytes(b"none")
    row = {"image": "red.png", "query": "<image>\nColour <b>?", "response": "red & <i>"}
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, [row, row, row | {"image": "broken.png"}])))
    (folder / "pairs.jsonl").write_text(json.dumps(row | {"rejected_response": "blue"}))
    stage = {"train": ["language"], "batch": 3, "warmup": 0, "learning_rate": 0.1, "quarantine": 1.0}
    kinds = (("tune", "supervised", 12, "rows.jsonl"), ("prefer", "preference", 2, "pairs.jsonl"))
    stages = [
        stage_tree(**stage, name=name, objective=objective, steps=steps, datasets=[{"path": str(folder / file)}])
        for name, objective, steps, file in kinds
    ]
    return from_tree({"model": {"start": str(folder / "start"), "adapter": {"rank": 2}}, "stages": stages})


@pytest.fixture(scope="module")
def output(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported") / "my-run"
    training.train(recipe, folder, progress=False, answers=2)
    return folder


class Page(HTMLParser):
    """The tags of a page that is well formed, and what it would fetch."""

    VOID = ("meta", "img", "line", "polyline", "circle", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)


def test_the_page_of_a_finished_run_holds_all_of_it_and_fetches_nothing(output):
    text = (output / "report.html").read_text()
    page = Page(text)
    assert not page.fetched
    assert "script" not in page.tags
    assert "url(" not in text
    assert "finished" in text
    charts = re.findall(r"<figcaption>([^<]+)<b>", text)
    assert charts[:4] == ["loss", "learning rate", "gradient norm", "tokens a second"]
    assert {"margin of chosen over rejected", "share of pairs preferred"} <= set(charts)
    assert "broken.png" in text
    assert "4×, first in step 1" in text or "12×, first in step 1" in text
    assert "supervised · 12 of 12 steps" in text
    assert "preference · 2 of 2 steps" in text
    assert "learning_rate: 0.1" in text
    assert "torch" in text
    assert "SHA-256" in text


def test_sample_answers_are_those_of_the_two_models(output, recipe):
    kept = json.loads((output / "answers.json").read_text())
    assert kept["steps"] == 14
    text = (output / "report.html").read_text()
    assert text.count("<article>") == len(kept["samples"]) == 1  # the pairs hold one row
    (sample,) = kept["samples"]
    assert sample["question"] == "Colour <b>?"
    assert sample["expected"] == "red & <i>"
    assert "Colour &lt;b&gt;?" in text
    assert sample["pictures"][0].startswith("data:image/jpeg;base64,")
    assert sample["answers"]["before"] != sample["answers"]["after"]
    picture = ask("Colour <b>?", Part("image", source=output.parent / "red.png"))
    Image.new("RGB", (30, 24), "red").save(output.parent / "red.png")
    assert load(recipe.model.start).answer([picture], max_tokens=64).text == sample["answers"]["before"]


def test_a_run_that_was_killed_before_its_page_gets_it_by_resuming(output, recipe):
    (output / "report.html").unlink()
    before = (output / "answers.json").read_bytes()
    training.train(recipe, output, resume=True, progress=False, answers=2)
    assert "went on in prefer after step 0" in (output / "report.html").read_text()
    assert (output / "answers.json").read_bytes() == before  # the model is the same, so nothing is asked again


def test_a_run_under_way_has_a_page_too(output, recipe, tmp_path):
    (tmp_path / "recipe.json").write_text((output / "recipe.json").read_text())
    text = write_report(tmp_path, answers=2).read_text()
    assert "not finished: saved after step 0 of 12 of tune" in text
    assert "nothing is in the log yet" in text
    line = {"stage": "tune", "step": 10, "loss": 2.5, "norm": 1.0, "rate": 0.1, "time": 100, "tokens_s": 7.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + '\n{"stage": "tu')
    text = write_report(tmp_path).read_text()
    assert "10 of 12 steps" in text
    assert ">2.5<" in text
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"recipe\.json"):
        write_report(tmp_path)


def test_pauses_between_sessions_do_not_count_as_training():
    log = [{"time": moment} for moment in (110, 120, 5000, 5010)]
    assert training_seconds(log, [{"time": 100}, {"time": 4990}]) == 20 + 20
    assert training_seconds([], []) == 0


def test_curves_stay_small_and_keep_their_ends():
    steps = list(range(1, 10_001))
    points = thinned([(step, step / 2) for step in steps])
    assert len(points) <= MOST_POINTS + 1
    assert (points[0][0], points[-1][0]) == (1, 10_000)
    assert smoothed([(1, 0.0), (2, 2.0), (3, 4.0)])[-1] == (3, 3.0)
    drawn = chart("loss", steps, [1 / step for step in steps], smooth=True)
    assert drawn.count("<polyline") == 2
    assert len(drawn) < 20_000
    assert chart("one", [5], [1.0]).count("<circle") == 1
    assert chart("flat", [1, 2], [0.0, 0.0]).count("<polyline") == 1
    assert chart("nothing", [1], [float("nan")]) == ""


def test_numbers_and_ticks_are_round():
    assert [number(value) for value in (0, 0.00002, 0.5, 12.345, 1234.5, 2_500_000)] == [
        "0", "2e-5", "0.5", "12.3", "1,234", "2.5e6",
    ]  # fmt: skip
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.5, 1.0])
    assert ticks(-3, 37) == pytest.approx([0, 10, 20, 30])
