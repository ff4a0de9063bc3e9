from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import yaml

from longview.errors import RecipeError
from longview.train.recipe import check, from_tree, load_recipe, to_tree

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {"model": {"family": "owl3"}, "stages": [{"name": "one", "steps": 5, "train": ["language"]}]}


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
    tree = SMALL | {"stages": [SMALL["stages"][0] | {"learning_rat": 1}]}
    with pytest.raises(RecipeError, match=r"'learning_rat' in stages\.0.*'learning_rate'"):
        load_recipe(write(tmp_path, tree))


def test_an_override_reaches_nested_keys_and_list_elements(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL), ["stages.0.steps=7", "data.clips=3", "model.config.hidden_size=32"])
    assert (recipe.stages[0].steps, recipe.data.clips, recipe.model.config) == (7, 3, {"hidden_size": 32})


@pytest.mark.parametrize(
    ("override", "message"),
    [("stages.0.steps", "key.path=value"), ("stages.3.steps=1", "leads nowhere"), ("data.clisp=1", "'clips'")],
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
        ({"stages": [{"name": "one", "steps": 5}]}, "lacks train"),
        ({"stages": [SMALL["stages"][0] | {"steps": 0}]}, "stages.one.steps is 0"),
        ({"stages": [SMALL["stages"][0] | {"mix": {"9": 1}}]}, "mix holds"),
        ({"stages": [SMALL["stages"][0] | {"learning_rate": "fast"}]}, "expected a number"),
        ({"stages": [SMALL["stages"][0] | {"objective": "answer"}]}, "contents, places, answers"),
        ({"stages": "all"}, "expected a list"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"data": {"pictures": 0}}, "data.pictures is 0; give 1 or more, at most 1000000"),
        ({"data": {"clips": -1}}, "data.clips is -1"),
        ({"data": {"simple": 1.5}}, "data.simple is 1.5"),
        ({"data": {"signs": float("nan")}}, "data.signs is nan"),
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
    tree = SMALL | {"data": {"clips": 0}, "stages": [SMALL["stages"][0] | {key: value}]}
    with pytest.raises(RecipeError, match=rf"stages\.one\.{key}"):
        load_recipe(write(tmp_path, tree))


def test_a_number_may_be_written_without_a_dot(tmp_path):
    text = "model: {family: owl3}\nstages: [{name: a, steps: 1, train: [language], learning_rate: 1e-3}]"
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
    stage = SMALL["stages"][0] | {"objective": "answers", "mix": {"film": 1}}
    with pytest.raises(RecipeError, match=r"mix holds film, but data\.pictures is 7; give 8 or more"):
        check(from_tree(SMALL | {"data": {"pictures": 7}, "stages": [stage]}))
    check(from_tree(SMALL | {"data": {"pictures": 8}, "stages": [stage]}))
