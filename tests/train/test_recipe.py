from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from longview.errors import RecipeError
from longview.train.recipe import from_tree, load_recipe, to_tree

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {"model": {"family": "owl3"}, "stages": [{"name": "one", "steps": 5, "train": ["language"]}]}


def write(folder: Path, tree) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("path", sorted((RECIPES / "demo").glob("*.yaml")), ids=lambda path: path.stem)
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
        ({"stages": [SMALL["stages"][0] | {"objective": "answer"}]}, "contents, answers"),
        ({"stages": "all"}, "expected a list"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_where(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, SMALL | change))


def test_a_number_may_be_written_without_a_dot(tmp_path):
    text = "model: {family: owl3}\nstages: [{name: a, steps: 1, train: [language], learning_rate: 1e-3}]"
    assert load_recipe(write(tmp_path, text)).stages[0].learning_rate == 1e-3


def test_a_missing_or_broken_file_is_a_recipe_error(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(write(tmp_path, "a: [1"))
