"""The recipes of the published stages, each told what it would do with a tiny random model of its family."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from samples import tiny_model

from longview.models.families import families
from longview.train import run as training
from longview.train.plan.dry_run import dry_run
from longview.train.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
PUBLISHED = sorted(path for path in RECIPES.rglob("*.yaml") if not {"demo", "easy-vqa.yaml"} & set(path.parts))
DEMOS = sorted((RECIPES / "demo").rglob("*.yaml"))


@pytest.fixture(scope="module")
def tiny_folders(tokenizer, tmp_path_factory):
    """A tiny random model of each family, as a folder."""
    folders = {}
    for name, family in families().items():
        folders[name] = tmp_path_factory.mktemp("tiny") / name
        model, processor = tiny_model(family, next(iter(family.Config.variants)), tokenizer)
        model.save_pretrained(folders[name])
        processor.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, Path]:
    """Data of both kinds, small enough for a context of a few hundred positions."""
    folder = tmp_path_factory.mktemp("rows")
    Image.new("RGB", (30, 24), "red").save(folder / "red.png")
    row = {"image": "red.png", "query": "<image>\nColour?", "response": "red"}
    (folder / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    (folder / "pairs.jsonl").write_text("\n".join([json.dumps(row | {"rejected_response": "blue"})] * 8))
    return {"supervised": folder / "rows.jsonl", "preference": folder / "pairs.jsonl"}


def fitted(path: Path, folders, rows):
    objective = load_recipe(path).stages[0].objective
    start = folders.get(path.parent.name, folders["ovis2"])
    datasets = f'[{{"path": "{rows[objective]}"}}]'
    return load_recipe(path, [f"model.start={start}", f"stages.0.data.datasets={datasets}", "stages.0.data.batch=4"])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_published_stage_is_understood_and_says_what_it_takes(path, tiny_folders, rows):
    assert len(path.read_text().splitlines()) <= 50
    recipe = fitted(path, tiny_folders, rows)
    told = "\n".join(dry_run(recipe))
    stage = recipe.stages[0]
    assert re.search(rf"stage 1, {stage.name}: {stage.objective}, 2 steps of 4 samples", told)
    learning = set(re.findall(r"(\w+): [\d,]+ parameters, learns", told))
    assert learning == set(stage.train)
    assert re.search(r"tokens a sample: \d+, \d+ at most, in 8 samples", told)
    assert re.search(r"pictures a sample: \d, \d at most", told)
    assert re.search(r"memory: about \d+\.\d GiB", told)
    assert "cannot be shown" not in told


def test_what_is_told_of_an_adapter_is_what_is_made(tiny_folders, rows, tmp_path):
    recipe = fitted(RECIPES / "lora.yaml", tiny_folders, rows)
    told = "\n".join(dry_run(recipe))
    output = training.train(recipe, tmp_path / "run", progress=False)
    from safetensors.torch import load_file

    made = sum(tensor.numel() for tensor in load_file(output / "adapter_model.safetensors").values())
    assert f"adapter of language: {made:,} parameters, learns" in told
    config = json.loads((output / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 32, 0.05)


def test_a_stream_is_told_as_one(tiny_folders, rows):
    recipe = fitted(RECIPES / "lora.yaml", tiny_folders, rows)
    (stage,) = recipe.stages
    streamed = [dataclasses.replace(dataset, streaming=True) for dataset in stage.data.datasets]
    data = dataclasses.replace(stage.data, datasets=streamed)
    stage = dataclasses.replace(stage, steps=3, epochs=0.0, data=data)
    told = "\n".join(dry_run(dataclasses.replace(recipe, stages=[stage])))
    assert "data: a stream, 12 samples of it" in told


@pytest.mark.parametrize("path", DEMOS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_demo_recipe_says_what_it_takes(path, rows):
    """Without the pieces that runs before it would have made."""
    recipe = load_recipe(path)
    if recipe.model.start is not None:
        recipe = load_recipe(path, ["model.start=demo-ovis2", f"stages.0.data.datasets.0.path={rows['preference']}"])
    elif recipe.model.init_from:
        recipe = load_recipe(path, ["model.init_from={}"])
    told = "\n".join(dry_run(recipe))
    for number, stage in enumerate(recipe.stages):
        assert f"stage {number + 1}, {stage.name}: {stage.objective}" in told


def test_the_demo_curricula_have_the_published_stages_and_teach_the_same_parts():
    for family in ("owl3", "ovis2", "mgm"):
        curricula = [path for path in DEMOS if path.stem.startswith(family) and path.parent.name == "curricula"]
        # what goes on from an embedded model is no stage of the papers
        added = ("-many", "-knowledge", "-crops", "-print")
        taught = [s for path in curricula if not any(a in path.stem for a in added) for s in load_recipe(path).stages]
        published = {stage.name.split("-")[0]: set(stage.train) for path in PUBLISHED if path.parent.name == family
                     for stage in load_recipe(path).stages}  # fmt: skip
        found = {stage.name.split("-")[0]: set(stage.train) for stage in taught}
        assert found == published, family


def test_every_published_stage_is_there():
    names = {f"{path.parent.name}/{path.stem}" for path in PUBLISHED}
    assert names >= {"owl3/1-align", "owl3/2-interleave", "owl3/3-instruct", "ovis2/1a-embed", "ovis2/1b-see"}
    assert names >= {
        "ovis2/2-align",
        "ovis2/3-instruct",
        "ovis2/4-prefer",
        "recipes/lora",
        "recipes/qlora",
        "recipes/dpo",
    }
    for model in ("vicuna-7b", "vicuna-13b", "gemma-2b", "llama3-8b", "mixtral-8x7b", "yi-34b"):
        assert names >= {f"mgm/1-align-{model}", f"mgm/2-instruct-{model}"}
