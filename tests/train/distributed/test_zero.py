"""DeepSpeed's ZeRO trains as one process does, where it is installed; what it is told is looked at everywhere."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest
from runs import exported, forked, goes_on_elsewhere, log, near, state, tree

from longview.errors import MissingExtraError, RecipeError
from longview.train import run as training
from longview.train.distributed import processes, zero
from longview.train.optimizers import learning_rate
from longview.train.recipe import from_tree, load_recipe
from longview.train.saved.folder import newest_checkpoint

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is missing: pip install '.[deepspeed]'",
)
ALL = ["vision", "connector", "language"]
SHORT = {"steps": 3, "checkpoint_every": 9}
CASES = {  # family, stage, adapter, JSON for DeepSpeed; of the eight rows one shows nothing
    "padded": ("ovis2", {"train": ALL, "micro_batch": 2, "batch": 5}, None, None),
    "packed": ("owl3", {"train": ALL, "pack": 400, "batch": 5}, None, None),
    "frozen words": (
        "mgm",
        {"train": ["connector"], "batch": 3, "gradient_checkpointing": True},
        None,
        {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
    ),
    "two rates": ("mgm", {"batch": 3, "rates": {"connector": 2.0}}, None, None),
    "preference lora": ("owl3", {"objective": "preference", "batch": 2}, {"rank": 2, "alpha": 4, "dropout": 0.0}, None),
}


def case(name: str, started, data, folder: Path, **changes) -> dict:
    family, stage, adapter, settings = CASES[name]
    pairs = {"datasets": [{"path": str(data / "pairs.jsonl")}]} if stage.get("objective") == "preference" else {}
    recipe = copy.deepcopy(tree(started[family], data, **SHORT | stage | pairs | changes))
    recipe["model"]["adapter"] = adapter
    (folder / "deepspeed.json").write_text(json.dumps(settings))
    return recipe


def shared(recipe: dict, parallel: str, folder: Path) -> dict:
    """The recipe for DeepSpeed, with the case's settings, where it has any."""
    path = folder / "deepspeed.json"
    return recipe | {"parallel": parallel, "deepspeed": None if path.read_text() == "null" else str(path)}


@needs_deepspeed
@pytest.mark.parametrize("parallel", zero.STAGES)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(name, parallel, started, data, tmp_path, precise):
    recipe = case(name, started, data, tmp_path)
    training.train(from_tree(recipe), tmp_path / "one", progress=False)
    output, understood = tmp_path / parallel, from_tree(shared(recipe, parallel, tmp_path))
    assert forked(lambda: training.train(understood, output, progress=False), 2) == [0, 0]
    losses = precise(tmp_path / "one")
    assert len(losses) == 3
    assert precise(output) == pytest.approx(losses, rel=1e-6)
    norms = [[line["norm"] for line in log(tmp_path / name)] for name in ("one", parallel)]
    assert norms[1] == pytest.approx(norms[0], rel=2e-3)  # rounded in the log
    expected, found = state(tmp_path / "one"), state(output)
    for weight in unread(recipe, expected):  # DeepSpeed lets weights decay that nothing is learned about, too
        expected[weight] = expected[weight] * decay(output)
    near(found, expected)
    assert exported(output).keys() == exported(tmp_path / "one").keys()
    assert [path.name for path in newest_checkpoint(output).glob("model*")] == ["model.safetensors"]


def unread(recipe: dict, found: dict) -> list[str]:
    """Matrices that are to learn, and that get no gradient: the blocks of a tower whose output nobody reads."""
    if recipe["stages"][0]["train"] != ALL:
        return []
    return [name for name in found if "|" not in name and found[name].dim() > 1 and f"{name}|step" not in found]


def decay(output: Path) -> float:
    """What is left of such a weight after the steps of a run."""
    stage = from_tree(json.loads((output / "recipe.json").read_text())).stages[0]
    return math.prod(1 - learning_rate(stage, step) * stage.weight_decay for step in range(stage.steps))


@needs_deepspeed
@pytest.mark.parametrize(
    ("before", "after"), [((2, "zero3"), (1, "ddp")), ((1, "ddp"), (2, "zero3")), ((2, "zero3"), (2, "zero2"))]
)
def test_a_stopped_run_goes_on_under_another_parallel(before, after, started, data, tmp_path, precise):
    recipe = case("padded", started, data, tmp_path, steps=5, checkpoint_every=9)
    whole, output = goes_on_elsewhere(recipe, before, after, tmp_path, rank=0)
    assert precise(output) == pytest.approx(precise(whole), rel=1e-6)
    near(state(output), state(whole))


# ── what needs no DeepSpeed ──────────────────────────────────────────────────────────────────────────────────────────


def asked(tmp_path: Path, settings: object = None, parallel: str = "zero2", **stage):
    recipe = tree(Path("x"), tmp_path, **stage) | {"parallel": parallel}
    if settings is not None:
        path = tmp_path / "deepspeed.json"
        path.write_text(settings if isinstance(settings, str) else json.dumps(settings))
        recipe["deepspeed"] = str(path)
    return from_tree(recipe)


def test_deepspeed_is_told_what_the_recipe_decides_and_what_the_json_adds(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    published = {
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "sub_group_size": 1e9},
    }
    recipe = asked(tmp_path, published, "zero3", batch=10, micro_batch=2, clip_norm=0.5)
    assert zero.config(recipe, recipe.stages[0]) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.5,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "overlap_comm": True, "sub_group_size": 1e9},
    }
    plain = asked(tmp_path, batch=10)
    assert zero.config(plain, plain.stages[0])["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_batch_size": 128},
            r"has train_batch_size, which stages decide by data\.batch; take it out, or write 'auto'",
        ),
        ({"optimizer": {"type": "Adam"}}, "has optimizer, which stages decide by optimizer, learning_rate and"),
        ({"bf16": {"enabled": True}}, "has bf16, which model.dtype decides"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage is 3, and parallel is zero2"),
        ({"zero_optimisation": {}}, "'zero_optimisation', which is not passed on; .*: 'zero_optimization'"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "its device may be cpu or none"),
        ({"zero_optimization": 2}, "zero_optimization is 2; expected an object"),
        ({"zero_force_ds_cpu_optimizer": True}, "the optimizer is the recipe's"),
        ("{", r"cannot be read \(Expecting property name"),
        ([], "holds no object"),
    ],
)
def test_a_json_that_contradicts_the_recipe_is_refused_in_any_number_of_processes(tmp_path, settings, message):
    with pytest.raises(RecipeError, match=message):
        zero.check_settings(asked(tmp_path, settings))


def test_settings_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="deepspeed means nothing to parallel 'fsdp2'; take zero2 or zero3"):
        training.check_processes(asked(tmp_path, {}, "fsdp2"))
    with pytest.raises(RecipeError, match="one was started; add --nproc-per-node"):
        training.check_processes(asked(tmp_path, {}))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(tree(Path("x"), tmp_path)))
    with pytest.raises(RecipeError, match="parallel is 'zero1'; expected one of ddp, fsdp2, zero2, zero3"):
        load_recipe(path, ["parallel=zero1"])


def test_what_deepspeed_cannot_follow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    recipe = asked(tmp_path)
    second = dataclasses.replace(recipe.stages[0], name="again")
    with pytest.raises(RecipeError, match="'zero2' is for one stage, and there are 2"):
        training.check_processes(dataclasses.replace(recipe, stages=[*recipe.stages, second]))
    with pytest.raises(RecipeError, match="'muon' needs whole matrices"):
        training.check_processes(asked(tmp_path, optimizer="muon"))
    quantised = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, quantize="nf4"))
    with pytest.raises(RecipeError, match="'nf4' cannot be held in shares"):
        training.check_processes(quantised)
    monkeypatch.setattr(zero.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'zero2' needs deepspeed, .*pip install '?deepspeed"):
        training.check_processes(recipe)


@needs_deepspeed
def test_a_setting_that_deepspeed_does_not_know_is_refused_before_any_step(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(RecipeError, match=r"deepspeed.json: zero_optimization: .*overlap_com\b"):
        training.check_processes(asked(tmp_path, {"zero_optimization": {"overlap_com": True}}))
