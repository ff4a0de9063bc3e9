from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from longview.curriculum.settings import WorldSettings
from longview.errors import RecipeError
from longview.train.recipe import check, from_tree, load_recipe, to_tree
from longview.train.report.page import write_report
from longview.train.saved.export import export_checkpoint
from longview.train.saved.folder import check_owner

RECIPES = Path(__file__).parents[2] / "recipes"
STAGE = {"name": "one", "objective": "answers", "steps": 5, "train": ["language"], "world": {}}
SMALL = {"model": {"family": "owl3"}, "stages": [STAGE]}
USERS = {
    "name": "tune",
    "objective": "supervised",
    "steps": 5,
    "train": ["language"],
    "data": {"datasets": [{"path": "x"}]},
}


def write(folder: Path, tree) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("path", sorted((RECIPES / "demo").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_in_the_repository_is_valid(path):
    assert load_recipe(path).stages


def test_a_recipe_survives_the_way_to_json_and_back(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL))
    assert from_tree(to_tree(recipe)) == recipe


def test_an_unknown_key_is_answered_with_the_nearest_known_one(tmp_path):
    tree = SMALL | {"stages": [STAGE | {"learning_rat": 1}]}
    with pytest.raises(RecipeError, match=r"'learning_rat' in stages\.0.*'learning_rate'"):
        load_recipe(write(tmp_path, tree))


def test_an_override_reaches_nested_keys_and_list_elements(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL), ["stages.0.steps=7", "pool.clips=3", "model.config.hidden_size=32"])
    assert (recipe.stages[0].steps, recipe.pool.clips, recipe.model.config) == (7, 3, {"hidden_size": 32})


@pytest.mark.parametrize(
    ("override", "message"),
    [("stages.0.steps", "key.path=value"), ("stages.3.steps=1", "leads nowhere"), ("pool.clisp=1", "'clips'")],
)
def test_an_override_that_means_nothing_is_refused(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, SMALL), [override])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "one"}, "seed is 'one'; expected a whole number"),
        ({"model": {}}, "either start"),
        ({"model": {"family": "owl3", "start": "demo"}}, "either start"),
        ({"stages": []}, "at least one stage"),
        ({"stages": SMALL["stages"] * 2}, "names of their own"),
        ({"stages": [{"name": "one", "steps": 5}]}, "lacks objective, train"),
        ({"stages": [STAGE | {"steps": 0}]}, "stages.one.steps is 0"),
        ({"stages": [STAGE | {"world": {"mix": {"9": 1}}}]}, "mix holds"),
        ({"stages": [STAGE | {"learning_rate": "fast"}]}, "expected a number"),
        ({"stages": [STAGE | {"objective": "answer"}]}, "of a stage with world it is one of contents, places, answers"),
        ({"stages": [STAGE | {"data": USERS["data"]}]}, "needs one of data .* and world .*, and has both"),
        ({"stages": [{key: STAGE[key] for key in STAGE if key != "world"}]}, "and has neither; write data: "),
        ({"stages": [STAGE | {"epochs": 2}]}, "epochs counts passes over a user's rows"),
        ({"stages": [STAGE | {"world": {"batch": 3}}]}, "batch means nothing to objective 'answers'"),
        ({"pool": {}, "model": {"start": "x"}, "stages": [USERS]}, "pool is for stages with world, and there is none"),
        ({"stages": "all"}, "expected a list"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"pool": {"pictures": 0}}, "pool.pictures is 0; give 1 or more, at most 1000000"),
        ({"pool": {"clips": -1}}, "pool.clips is -1"),
        ({"pool": {"simple": 1.5}}, "pool.simple is 1.5"),
        ({"pool": {"signs": float("nan")}}, "pool.signs is nan"),
        (
            {"model": {"family": "owl3", "attention": "flash"}},
            "model.attention is 'flash'; expected one of sdpa, eager",
        ),
        ({"model": {"family": "owl3", "config": {"x": float("inf")}}}, "value that JSON cannot"),
        ({"model": {"family": "owl3", "config": {"x": datetime.date(2026, 1, 1)}}}, "value that JSON cannot"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_where(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, SMALL | change))


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 0), ("learning_rate", 1.1), ("learning_rate", float("nan")), ("final_rate", -0.1),
     ("final_rate", 2), ("simple", 1.01), ("captions", -1), ("clip_norm", 0), ("clip_norm", float("inf")),
     ("weight_decay", -1), ("warmup", -1), ("probe_layer", -1), ("probe_weight", float("inf")), ("turns", 0),
     ("turns", 65), ("mix", {"1": -1}), ("mix", {"1": 0}), ("mix", {"1": float("nan")}), ("mix", {"1": float("inf")}),
     ("mix", {"\u0663": 1}), ("mix", {"01": 1}), ("mix", {}), ("train", []), ("train", ["language", "language"]),
     ("mix", {"clip": 1})],
)  # fmt: skip
def test_a_value_of_a_stage_outside_its_range_is_named(tmp_path, key, value):
    in_world = key in WorldSettings.__dataclass_fields__
    stage = STAGE | ({"world": {key: value}} if in_world else {key: value})
    with pytest.raises(RecipeError, match=rf"stages\.one\.{'world.' * in_world}{key}"):
        load_recipe(write(tmp_path, SMALL | {"pool": {"clips": 0}, "stages": [stage]}))


def test_a_number_may_be_written_without_a_dot(tmp_path):
    stage = "{name: a, objective: answers, steps: 1, train: [language], learning_rate: 1e-3, world: {}}"
    text = f"model: {{family: owl3}}\nstages: [{stage}]"
    assert load_recipe(write(tmp_path, text)).stages[0].learning_rate == 1e-3


def test_a_missing_or_broken_file_is_a_recipe_error(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(write(tmp_path, "a: [1"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xd8\x00")
    with pytest.raises(RecipeError, match="not text in UTF-8"):
        load_recipe(tmp_path / "binary.yaml")
    with pytest.raises(RecipeError, match="nested too deeply"):
        load_recipe(write(tmp_path, "[" * 5000))
    with pytest.raises(RecipeError, match=r"override 'seed=\[' is not YAML"):
        load_recipe(write(tmp_path, SMALL), ["seed=["])


def test_a_film_needs_as_many_pictures_as_it_has_frames():
    """With fewer nothing might stand in one of them alone, and the search for a question would not end."""
    stage = STAGE | {"world": {"mix": {"film": 1}}}
    with pytest.raises(RecipeError, match=r"mix holds film, but pool\.pictures is 7; give 8 or more"):
        check(from_tree(SMALL | {"pool": {"pictures": 7}, "stages": [stage]}))
    check(from_tree(SMALL | {"pool": {"pictures": 8}, "stages": [stage]}))


# ── what a user sees, and what recipes once looked like ──────────────────────────────────────────────────────────────


def test_a_fine_tune_sees_nothing_of_the_world():
    tree = to_tree(from_tree({"model": {"start": "x"}, "stages": [USERS]}))
    assert "pool" not in tree
    assert "world" not in tree["stages"][0]
    assert "probe" not in yaml.safe_dump(tree)


def test_the_recipe_that_the_documents_show_is_valid():
    text = (RECIPES.parent / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    (shown,) = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("model:")]
    check(from_tree(yaml.safe_load(shown)))


def test_recipes_are_understood_without_torch_and_without_what_they_do_not_name(tmp_path):
    path = write(tmp_path, {"model": {"start": "x"}, "stages": [USERS]})
    program = (
        "import sys; from longview.train.recipe import load_recipe; load_recipe(sys.argv[1]); "
        "print([name for name in ('torch', 'transformers', 'longview.curriculum') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


OLD_STAGE = {"name": "tune", "objective": "supervised", "steps": 5, "train": ["language"], "datasets": [{"path": "x"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stages": [OLD_STAGE]},
            r"stages\.0\.datasets is now stages\.0\.data\.datasets; write data: \{datasets: \[\{path: x\}\]\}",
        ),
        (
            {"stages": [OLD_STAGE | {"micro_batch": 2, "turns": 3}]},
            r"datasets is now .* \(and micro_batch\); write data: \{.*, micro_batch: 2\}, and leave out turns",
        ),
        ({"stages": [USERS | {"pack": 9}]}, r"stages\.0\.pack is now stages\.0\.data\.pack; write data: \{pack: 9\}"),
        (
            {"stages": [{**OLD_STAGE, "name": name} for name in "ab"]},
            r"stages\.0\.datasets is .*; likewise in stages\.1",
        ),
        (
            {"stages": [{"name": "a", "steps": 5, "train": ["vision"], "tokens": 9, "probe_layer": 2}]},
            r"stages\.0\.tokens is now stages\.0\.world\.tokens .*; write world: \{tokens: 9, probe_layer: 2\}",
        ),
        ({"stages": [STAGE | {"objective": "pairs"}]}, "'pairs' is now 'contrastive'; write objective: contrastive"),
        ({"stages": [STAGE], "data": {"pictures": 9}}, r"data is now pool; write pool: \{pictures: 9\}"),
        ({"stages": [OLD_STAGE], "data": {"pictures": 9}}, "data is now pool; leave it out; stages"),
        (
            {"model": {"family": "owl3", "parts": {"language": "x"}}},
            r"model\.parts is now model\.init_from; write init_from: \{language: x\}",
        ),
        ({"model": {"family": "owl3", "parts": {}}}, r"model\.parts is now model\.init_from; leave it out"),
    ],
)
def test_a_key_that_has_moved_is_shown_where_it_stands_now(change, message):
    with pytest.raises(RecipeError, match=message) as error:
        from_tree(SMALL | change)
    assert "\n" not in str(error.value)


def test_a_run_that_was_begun_with_an_old_recipe_says_how_it_is_spelt_now(tmp_path):
    old = {"model": {"start": "x"}, "stages": [OLD_STAGE], "seed": 0}
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    recipe = from_tree({"model": {"start": "x"}, "stages": [USERS]})
    for attempt in (
        lambda: check_owner(recipe, tmp_path, resume=True),
        lambda: export_checkpoint(tmp_path, tmp_path / "model"),
        lambda: write_report(tmp_path),
    ):
        with pytest.raises(RecipeError, match=r"recipe\.json: stages\.0\.datasets is now stages\.0\.data\.datasets"):
            attempt()
