"""A recipe: everything that decides a training run, in one YAML file, complete and forkable.

The dataclasses below, those of data/settings.py and those of the curriculum are the whole schema. A key that is not in
them is an error that names the nearest one that is.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from longview.errors import RecipeError
from longview.names import full_dtype
from longview.train.data.settings import DataSettings
from longview.train.moved import refuse_moved_keys
from longview.train.settings import bounded, build, check_bounds, check_number, load, section


@dataclass(frozen=True)
class AdapterSettings:
    """Low-rank adapters (LoRA, arXiv 2106.09685) of all linear layers of the parts that learn; their weights stay."""

    rank: int = bounded(8, 1, 10**5)
    alpha: float = bounded(32.0, 0, above=True)  # what an adapter adds counts alpha / rank times
    dropout: float = bounded(0.05, 0, 0.99)  # of what an adapter is given


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained: one that exists (`start`), or a new one of a family (`family`, `config`)."""

    start: str | None = None  # folder or hub id to start from
    family: str | None = None  # of a new model
    config: dict[str, Any] = field(default_factory=dict)  # of a new model: the family's config fields
    init_from: dict[str, str] = field(default_factory=dict)  # of a new model: part → folder or hub id of its weights
    attention: Literal["sdpa", "eager"] = "sdpa"  # "eager" batches small models well
    processor: dict[str, Any] = field(default_factory=dict)  # settings of its processor: cut_enable, max_partition
    dtype: Literal["float32", "bfloat16"] = "float32"  # of arithmetic and of what never learns; what learns is float32
    adapter: AdapterSettings | None = None  # learn adapters in place of the parts themselves
    liger: bool = False  # fused Liger kernels for the language model: less memory; on CUDA only
    quantize: Literal["nf4"] | None = None  # with adapter: the language model in 4 bits (QLoRA, arXiv 2305.14314)


@dataclass(frozen=True)
class Stage:
    """One stretch of training. Stages run one after another; each begins with a fresh optimizer.

    It has exactly one of `data` and `world`, whose settings say what there is to learn from, and list the objectives.
    """

    name: str
    objective: str  # of data: supervised, preference
    train: list[str]  # parts of the model that learn: vision, connector, language
    steps: int = bounded(0, 0, 10**9)
    epochs: float = bounded(0.0, 0, 10**6)  # data: in place of steps
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = bounded(1e-3, 0, 1, above=True)  # at its peak
    final_rate: float = bounded(0.02, 0, 1)  # share of the peak that the cosine ends at
    warmup: int = bounded(100, 0, 10**9)  # steps
    warmup_ratio: float = bounded(0.0, 0, 1)  # in place of warmup: share of the steps
    rates: dict[str, float] = field(default_factory=dict)  # of parts: their share of the learning rate
    beta2: float = bounded(0.98, 0, 1, above=True)  # of AdamW
    weight_decay: float = bounded(0.01, 0)
    clip_norm: float = bounded(1.0, 0, above=True)
    gradient_checkpointing: bool = False  # compute blocks again in the backward pass: less memory, a third more time
    checkpoint_every: int = bounded(200, 1, 10**9)  # steps
    patience: int = bounded(0, 0, 10**9)  # checkpoints whose validation is no better, after which it ends; 0: never
    keep: bool = False  # leave the model as it is after this stage beside that of the whole run
    data: DataSettings | None = None  # a user's rows
    world: Any = field(default=None, metadata=section("longview.curriculum.settings:WorldSettings"))

    @property
    def learns_from(self) -> Any:
        """The settings of what it learns from: `data` or `world`."""
        return self.world if self.data is None else self.data


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    model: ModelSettings
    stages: list[Stage]
    pool: Any = field(default=None, metadata=section("longview.curriculum.settings:PoolSettings"))
    seed: int = bounded(0, 0, 2**63 - 1)
    parallel: Literal["ddp", "fsdp2", "zero2", "zero3"] = "ddp"  # in several processes: whole copies, or shares
    deepspeed: str | None = None  # with zero2, zero3 (DeepSpeed): a JSON of further settings, such as offloading


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with `key.path=value` overrides; a list's elements go by index (`stages.0.steps=10`).

    Raises:
        RecipeError: the file cannot be read, a key is unknown or missing, or a value has the wrong type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"recipe {path} cannot be read ({error.strerror}); give the path of a YAML file, or a name that "
            "`longview recipes` lists"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not text in UTF-8 ({error.reason}); give a YAML file") from error
    tree = _parse(text, f"recipe {path}")
    for override in overrides:
        _override(tree, override)
    recipe = from_tree(tree)
    check(recipe)
    return recipe


def from_tree(tree: Any) -> Recipe:
    """A recipe from nested mappings and lists, as YAML or JSON hold them.

    Raises:
        RecipeError: a key is unknown, missing or spelt as it once was, or a value has the wrong type.
    """
    refuse_moved_keys(tree)
    tree = _with_full_dtype(tree)
    recipe = typing.cast(Recipe, build(Recipe, tree, ""))
    if recipe.pool is None and any(stage.world is not None for stage in recipe.stages):
        recipe = dataclasses.replace(recipe, pool=build(Recipe, tree | {"pool": {}}, "").pool)
    return recipe


def _with_full_dtype(tree: Any) -> Any:
    """A tree whose dtype may be given by its short name, with the full one."""
    model = tree.get("model") if isinstance(tree, Mapping) else None
    if not isinstance(model, Mapping) or "dtype" not in model:
        return tree
    return {**tree, "model": {**model, "dtype": full_dtype(model["dtype"])}}


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe, defaults and all, as nested mappings and lists."""
    tree = dataclasses.asdict(recipe)
    tree["stages"] = [_without(stage, "data", "world") for stage in tree["stages"]]
    return _without(tree, "pool")


def _without(tree: dict[str, Any], *sections: str) -> dict[str, Any]:
    """A tree without those sections that it does not have."""
    return {key: value for key, value in tree.items() if key not in sections or value is not None}


def _parse(text: str, what: str) -> Any:
    """The tree of a YAML text."""
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise RecipeError(f"{what} is nested too deeply; a recipe has a few levels") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise RecipeError(f"{what} is not YAML: {' '.join(str(error).split())[:300]}") from error


def _override(tree: Any, override: str) -> None:
    path, found, text = override.partition("=")
    if not found:
        raise RecipeError(f"override {override!r} has no value; write key.path=value")
    *parents, last = path.split(".")
    for key in parents:
        if isinstance(tree, dict):
            tree = tree.setdefault(key, {})
        else:
            tree = _element(tree, key, override)
    if isinstance(tree, dict):
        tree[last] = _parse(text, f"override {override!r}")
    else:
        _element(tree, last, override)
        tree[int(last)] = _parse(text, f"override {override!r}")


def _element(tree: Any, key: str, override: str) -> Any:
    if not isinstance(tree, list) or not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(tree):
        raise RecipeError(f"override {override!r} leads nowhere: there is no {key!r} in the recipe")
    return tree[int(key)]


# ── checking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(recipe: Recipe) -> None:
    """Make sure that a recipe's values are possible, as far as is known without its model and its data.

    Raises:
        RecipeError: names the value and what was expected.
    """
    _check_model(recipe.model)
    names = [stage.name for stage in recipe.stages]
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"stages needs at least one stage, with names of their own; found {names}")
    check_bounds(recipe, "")
    for stage in recipe.stages:
        check_bounds(stage, f"stages.{stage.name}")
        _check_stage(recipe, stage, f"stages.{stage.name}")
    if recipe.pool is not None and all(stage.world is None for stage in recipe.stages):
        raise RecipeError("pool is for stages with world, and there is none; leave it out")
    try:
        json.dumps(to_tree(recipe), allow_nan=False)
    except RecursionError as error:
        raise RecipeError("the recipe is nested too deeply; a recipe has a few levels") from error
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"the recipe holds a value that JSON cannot ({error}); use text, numbers and lists"
        ) from error


def _check_model(model: ModelSettings) -> None:
    if (model.start is None) == (model.family is None):
        raise RecipeError("model needs either start (a checkpoint) or family (a new model), not both")
    if model.init_from and model.family is None:
        raise RecipeError("model.init_from is for a new model, which model.family names; leave it out")
    if model.adapter is not None and model.start is None:
        raise RecipeError("model.adapter changes a model that exists; name one in model.start")
    if model.adapter is None and model.quantize is not None:
        raise RecipeError(
            f"model.quantize is {model.quantize!r}, and such weights cannot learn; give model.adapter, which can"
        )


def _check_stage(recipe: Recipe, stage: Stage, where: str) -> None:
    if not stage.train or len(set(stage.train)) < len(stage.train):
        raise RecipeError(f"{where}.train is {stage.train}; name one part or more, each once")
    for part, rate in stage.rates.items():
        check_number(f"{where}.rates.{part}", rate, 0, 10**4, above=True)
        if part not in stage.train:
            raise RecipeError(f"{where}.rates names {part!r}, which does not learn there")
    if (stage.data is None) == (stage.world is None):
        given = "both" if stage.data is not None else "neither"
        raise RecipeError(
            f"{where} needs one of data (a user's rows) and world (the synthetic world), and has {given}; "
            "write data: {datasets: [{path: rows.jsonl}]}"
        )
    known = stage.learns_from.OBJECTIVES
    if stage.objective not in known:
        what = "data" if stage.world is None else "world"
        raise RecipeError(
            f"{where}.objective is {stage.objective!r:.60}; of a stage with {what} it is one of {', '.join(known)}"
        )
    if stage.patience and (stage.data is None or not stage.data.validation):
        raise RecipeError(f"{where}.patience is about data.validation; give that, or leave it out")
    stage.learns_from.check(recipe, stage, where)
    if stage.keep and not re.fullmatch(r"\w[\w. -]*", stage.name):
        raise RecipeError(
            f"{where}.keep leaves a folder named {stage.name!r:.60}; name the stage in letters, digits and dashes"
        )
    if stage.keep and (recipe.model.adapter is not None or recipe.parallel == "fsdp2"):
        raise RecipeError(
            f"{where}.keep is for whole models in one place; leave it out with an adapter or parallel=fsdp2"
        )


def data_of(stage: Stage) -> DataSettings:
    """The settings of a stage that learns from a user's rows."""
    assert stage.data is not None, "objectives of data are those of stages with data"
    return stage.data


def objective_class(stage: Stage) -> Any:
    """The class of a stage's objective, see `longview.train.objectives.base`."""
    return load(stage.learns_from.OBJECTIVES[stage.objective])


def model_openers(recipe: Recipe) -> Mapping[str, str]:
    """New models that what the stages learn from brings along, beside the families: name → `module:function`."""
    return {name: opener for stage in recipe.stages for name, opener in stage.learns_from.MODELS.items()}
