"""Numbers of a curriculum, and the page that is made of them."""

from __future__ import annotations

import json

import pytest

import longview
from longview.eval.card import LONGEST_PAUSE, training_facts
from longview.eval.curriculum import curve, kinds_table, page, plot, stages_table, table
from longview.eval.teacher_forcing import score_by_teacher_forcing
from longview.eval.world import draw_cases, evaluate


@pytest.mark.parametrize("name", ["demo-owl3", "demo-ovis2", "demo-mgm"])
def test_teacher_forcing_scores_as_decoding_does(name):
    engine = longview.load(name)
    groups = ["one picture", "two pictures", "clip"]
    decoded = evaluate(engine, seed=7, per_kind=1, groups=groups)
    passed, again = score_by_teacher_forcing([engine, engine], draw_cases(7, 1, groups), "shown")
    assert passed == again == decoded
    assert 0 < sum(score.right for score in passed) < sum(score.total for score in passed)


def test_scenes_as_text_are_other_inputs_than_pictures():
    engine = longview.load("demo-ovis2")
    cases = draw_cases(7, 1, ["one picture"])
    as_text, shown = (
        sum(s.right for s in score_by_teacher_forcing([engine], cases, how)[0]) for how in (None, "shown")
    )
    assert as_text < shown


LINES = [
    {"stage": "see", "step": 10, "loss": 4.0, "time": 100},
    {"stage": "see", "step": 20, "loss": 2.0, "time": 130},
    {"stage": "tell", "step": 10, "loss": 9.0, "answers": 1.0, "time": 160},
    {"stage": "tell", "step": 20, "loss": 9.0, "answers": 0.5, "time": 160 + LONGEST_PAUSE},  # a pause: does not count
]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "demo-ovis2"
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    recipe = {"stages": [{"name": "see", "steps": 20}, {"name": "tell", "steps": 20}]}
    recipe["pool"] = {"pictures": 100, "clips": 10}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def test_facts_of_successive_runs_are_merged(run):
    later = run.rename(run.parent / "curricula-ovis2")
    facts = training_facts([later])
    assert facts["recipes"] == ["recipes/demo/curricula/ovis2.yaml"]
    assert facts["stages"] == {"see": {"steps": 20, "minutes": 0.5}, "tell": {"steps": 20, "minutes": 0.5}}
    both = training_facts([later, later])
    assert (both["pictures"], both["clips"], len(both["recipes"])) == (200, 20, 2)
    assert list(both["stages"]) == ["see", "tell", "see of curricula-ovis2", "tell of curricula-ovis2"]


@pytest.mark.parametrize(
    ("parts", "begun"),
    [
        ({"vision": "longview/demo/mgm", "language": "longview/demo/mgm"}, "demo-mgm"),
        ({"vision": "runs/demo-towers/model", "language": "longview/demo/mgm"}, "demo-mgm"),
        ({"vision": "longview/demo/owl3", "language": "longview/demo/mgm"}, None),
        ({"vision": "runs/demo-towers/model"}, None),
    ],
)
def test_the_facts_say_which_embedded_model_a_run_began_as(parts, begun, run):
    recipe = json.loads((run / "recipe.json").read_text()) | {"model": {"init_from": parts}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert training_facts([run]).get("from") == begun


def test_a_curve_is_of_the_answers_where_the_log_has_probes(run):
    assert curve(run / "log.jsonl", "see") == [[10, 4.0], [20, 2.0]]
    assert curve(run / "log.jsonl", "tell") == [[10, 1.0], [20, 0.5]]


def test_a_long_curve_keeps_its_means(tmp_path):
    lines = [{"stage": "see", "step": step, "loss": float(step)} for step in range(1, 301)]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    short = curve(tmp_path / "log", "see")
    assert len(short) == 60
    assert short[0] == [5, 3.0]
    assert short[-1] == [300, 298.0]


NUMBERS = {
    "seed": 0,
    "per_kind": 1,
    "runs": [{"recipe": "recipes/demo/ovis2.yaml", "minutes": 3.2, "notes": "Slowly.", "pictures": 1, "clips": 1}],
    "stages": [
        {"name": "see", "objective": "places", "train": ["vision"], "steps": 20, "minutes": 1.0, "learning_rate": 0.1,
         "run": "x", "curve": [[10, 4.0], [20, 2.0]]},
        {"name": "tell", "objective": "answers", "train": ["language"], "steps": 20, "minutes": 2.0,
         "learning_rate": 0.1, "run": "x", "curve": [[10, 1.0], [20, 0.5]],
         "after": {"shown": {"clip": [3, 4]}, "blank": {"clip": [1, 4]}, "swapped": {"clip": [0, 4]},
                   "kinds": {"order": [3, 4]}}},
    ],
}  # fmt: skip


def test_the_page_says_what_was_measured():
    assert "| tell | language | answers | 20 | 2 | 1.00 → 0.50 |" in stages_table(NUMBERS)
    assert table(NUMBERS).splitlines()[2:] == [
        "| tell, shown | 75.0% | 4 |",
        "| tell, blank | 25.0% | 4 |",
        "| tell, swapped | 0.0% | 4 |",
    ]
    assert kinds_table(NUMBERS).splitlines()[2:] == ["| order | 75.0% |"]
    text = page(NUMBERS, "Ovis2", "x.png")
    for part in ("longview train recipes/demo/ovis2.yaml", "Slowly.", "(x.png)", table(NUMBERS)):
        assert part in text


def test_the_curves_are_plotted(tmp_path):
    plot(NUMBERS, "Ovis2", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
