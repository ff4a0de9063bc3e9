"""A recipe: everything that decides a training run, in one YAML file, complete and forkable.

The dataclasses below are the whole schema. A key that is not in them is an error that names the nearest one that is.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from longview.errors import RecipeError
from longview.train.data.rows import KINDS, NAMES
from longview.world.questions import PICTURE_KINDS, SET_KINDS

Objective = Literal["words", "contents", "places", "answers", "pairs", "supervised", "preference"]
OF_USERS = ("supervised", "preference")
"""Objectives that learn from a user's `datasets`; the others from the synthetic world."""
MAX_PICTURES = 8
"""Of a sample of the synthetic world; its clips and films have as many frames."""
Optimizer = Literal["adamw", "muon"]
Parallel = Literal["ddp", "fsdp2", "zero2", "zero3"]


@dataclass(frozen=True)
class AdapterPart:
    """Low-rank adapters (LoRA, arXiv 2106.09685) of all linear layers of the parts that learn; their weights stay."""

    rank: int = 8
    alpha: float = 32.0  # what an adapter adds counts alpha / rank times
    dropout: float = 0.05  # of what an adapter is given


@dataclass(frozen=True)
class ModelPart:
    """Which model is trained: one that exists (`start`), or one of a family made from nothing (`family`, `config`)."""

    start: str | None = None  # folder or hub id to start from
    family: str | None = None  # of a new model
    config: dict[str, Any] = field(default_factory=dict)  # of a new model: the family's config fields
    parts: dict[str, str] = field(default_factory=dict)  # of a new model: folders or hub ids that parts begin as
    attention: Literal["sdpa", "eager"] = "sdpa"  # "eager" batches small models well
    processor: dict[str, Any] = field(default_factory=dict)  # settings of its processor: cut_enable, max_partition
    dtype: Literal["float32", "bfloat16"] = "float32"  # of arithmetic and of what never learns; what learns is float32
    adapter: AdapterPart | None = None  # learn adapters in place of the parts themselves
    liger: bool = False  # fused Liger kernels for the language model: less memory; on CUDA only
    quantize: Literal["nf4"] | None = None  # with adapter: the language model in 4 bits (QLoRA, arXiv 2305.14314)


@dataclass(frozen=True)
class DataPart:
    """The synthetic world: how many scenes of each kind are painted before training."""

    pictures: int = 20_000
    clips: int = 1_000
    simple: float = 0.3  # share of pictures that hold one thing and no sign
    signs: float = 0.25  # share of the other pictures that hold a sign
    prints: float = 0.0  # share of the other pictures that hold small print


@dataclass(frozen=True)
class DatasetPart:
    """A user's conversations or captions; sources.py says where they may lie, rows.py in which spellings."""

    path: str  # file, info.json:NAME, folder or hub name[:SUBSET]; with #2000 behind it, so many rows drawn at random
    weight: float = 1.0  # how often an epoch sees each row: 2 is twice, 0.5 every other one; of streams: the share
    folder: str | None = None  # where relative paths of pictures and videos begin; default: the file's own folder
    ignore: list[str] = field(default_factory=list)  # columns to be left out of account
    columns: dict[str, str] = field(default_factory=dict)  # names of its own → known ones: {text: response}
    query: str | None = None  # the question of every row, where the rows hold none
    split: str = "train"  # of a folder or a hub name
    streaming: bool = False  # rows are read on the way and never all held; #2000: the first ones
    buffer: int = 1000  # rows of a stream that are shuffled together
    text_rich: bool = False  # its pictures are full of text: they are the kind "text" of crop and max_partition


@dataclass(frozen=True)
class Stage:
    """One stretch of training. Stages run one after another; each begins with a fresh optimizer.

    `words`: `answers` about scenes that are told in words: for a language model that sees nothing yet.
    `contents`: the mean of a picture's features must tell, through a throwaway linear layer, what stands in each place.
    `places`: each place of a picture's features must tell what stands in it, for models that read places one by one.
    `answers`: next-token loss on the assistant's words.
    `pairs`: of two towers (family siglip): which texts fit which pictures.
    `supervised`: next-token loss on the assistant's words in conversations of a user's `datasets`.
    `preference`: DPO (arXiv 2305.18290) on answers and rejected ones there, against the model that the run starts from.
    """

    name: str
    steps: int  # 0: as many as `epochs` take
    train: list[str]  # parts of the model that learn: vision, connector, language; of towers also scale
    objective: Objective = "answers"
    batch: int = 64  # contents, pairs: pictures a step; supervised, preference: samples a step
    tokens: int = 2500  # answers: text tokens a step, about
    mix: dict[str, float] = field(default_factory=lambda: {"1": 1.0})  # shares of samples: 1 … 8 pictures, clip, film
    simple: float = 0.0  # share of samples whose pictures hold one thing, or one sign, each
    kinds: dict[str, float] = field(default_factory=dict)  # how much more often than others a kind of question is asked
    turns: int = 8  # questions about the same media in one sample
    captions: float = 0.0  # share of samples that begin with descriptions of numbered pictures
    probe_layer: int = 0  # answers: the block after which placeholders must tell their picture's contents; 0: none
    probe_weight: float = 0.0
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3  # at its peak
    final_rate: float = 0.02  # share of the peak that the cosine ends at
    warmup: int = 100  # steps
    warmup_ratio: float = 0.0  # in place of warmup: share of the steps
    rates: dict[str, float] = field(default_factory=dict)  # of parts: their share of the learning rate
    beta2: float = 0.98  # of AdamW
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    checkpoint_every: int = 200  # steps
    keep: bool = False  # leave the model as it is after this stage beside that of the whole run
    # supervised, preference:
    datasets: list[DatasetPart] = field(default_factory=list)
    epochs: float = 0.0  # in place of steps
    micro_batch: int = 1  # samples that pass the model at a time; a step adds up their gradients
    pack: int = 0  # in place of micro_batch: positions of a row that samples are packed into; 0: they are padded
    max_length: int = 0  # positions, of words and pictures; a longer sample is skipped. 0: as many as the model takes
    template: Literal["chat", "plain"] = "chat"  # plain: the answer right behind the pictures; so are captions always
    frames: int = 0  # of a video at most; 0: as many as the model's family takes
    fps: float = 0.0  # frames a second of a video; 0: as the family chooses them
    crop: dict[str, float] = field(default_factory=dict)  # share of the samples of a kind whose pictures are cut
    max_partition: dict[str, int] = field(default_factory=dict)  # crops of a picture at most, in samples of a kind
    group_by_length: bool = False  # a step holds samples with pictures, or without; lengths are evened out in it
    quarantine: float = 0.01  # the run ends when a larger share of samples is broken
    gradient_checkpointing: bool = False  # compute blocks again on the way back: less memory, a third more time
    beta: float = 0.1  # preference: how dear it is to leave the reference


@dataclass(frozen=True)
class Recipe:
    """A whole training run."""

    model: ModelPart
    stages: list[Stage]
    data: DataPart = field(default_factory=DataPart)
    seed: int = 0
    parallel: Parallel = "ddp"  # in several processes: a copy of the model in each, or fsdp2: a share of it in each
    deepspeed: str | None = None  # with zero2, zero3 (DeepSpeed): a JSON of further settings, such as offloading


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, with `key.path=value` overrides; a list's elements go by index (`stages.0.steps=10`).

    Raises:
        RecipeError: the file cannot be read, a key is unknown or missing, or a value has the wrong type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read ({error.strerror}); give the path of a YAML file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not text in UTF-8 ({error.reason}); give a YAML file") from error
    tree = _parse(text, f"recipe {path}")
    for override in overrides:
        _override(tree, override)
    recipe = from_tree(tree)
    check(recipe)
    return recipe


def from_tree(tree: Any) -> Recipe:
    """Build a recipe from nested mappings and lists, as YAML or JSON hold them."""
    return typing.cast(Recipe, _build(Recipe, tree, "recipe"))


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe, defaults and all, as nested mappings and lists."""
    return dataclasses.asdict(recipe)


def _parse(text: str, what: str) -> Any:
    """The tree of a YAML text."""
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise RecipeError(f"{what} is nested too deeply; a recipe has a few levels") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise RecipeError(f"{what} is not YAML: {' '.join(str(error).split())[:300]}") from error


INFINITE = math.inf
RANGES: dict[str, tuple[float, float]] = {
    "steps": (0, 10**9), "batch": (1, 10**6), "tokens": (1, 10**7), "turns": (1, 64), "checkpoint_every": (1, 10**9),
    "simple": (0, 1), "captions": (0, 1), "final_rate": (0, 1), "probe_layer": (0, 10**4), "warmup": (0, 10**9),
    "probe_weight": (0, INFINITE), "weight_decay": (0, INFINITE), "learning_rate": (0, 1), "clip_norm": (0, INFINITE),
    "warmup_ratio": (0, 1), "beta2": (0, 1), "epochs": (0, 10**6), "micro_batch": (1, 10**6), "pack": (0, 10**7),
    "max_length": (0, 10**7), "frames": (0, 10**5), "fps": (0, 1000), "quarantine": (0, 1), "beta": (0, INFINITE),
}  # fmt: skip
"""The least and the most of each number of a stage; none is infinite."""
DATA_RANGES: dict[str, tuple[float, float]] = {
    "pictures": (1, 10**6), "clips": (0, 10**6), "simple": (0, 1), "signs": (0, 1), "prints": (0, 1),
}  # fmt: skip
ABOVE_ZERO = ("learning_rate", "clip_norm", "beta", "beta2")
USERS_ONLY = (
    "datasets", "epochs", "micro_batch", "pack", "max_length", "template", "frames", "fps", "crop", "max_partition",
    "group_by_length", "gradient_checkpointing",
)  # fmt: skip
WORLDS_ONLY = ("mix", "kinds", "simple", "captions", "turns", "tokens", "probe_layer", "probe_weight")


def check(recipe: Recipe) -> None:
    """Make sure that a recipe's values are possible, as far as can be told without its model.

    Raises:
        RecipeError: names the value and what was expected.
    """
    try:
        json.dumps(to_tree(recipe), allow_nan=False)
    except RecursionError as error:
        raise RecipeError("the recipe is nested too deeply; a recipe has a few levels") from error
    except (ValueError, TypeError) as error:
        _check_ranges(recipe)  # which may name the number
        raise RecipeError(
            f"the recipe holds a value that JSON cannot ({error}); use text, numbers and lists"
        ) from error
    if (recipe.model.start is None) == (recipe.model.family is None):
        raise RecipeError("model needs either start (a checkpoint) or family (a new model), not both")
    if recipe.model.parts and recipe.model.family in (None, "siglip"):
        raise RecipeError("model.parts is for a new model of a family that sees and speaks; leave it out")
    names = [stage.name for stage in recipe.stages]
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"stages needs at least one stage, with names of their own; found {names}")
    _check_ranges(recipe)
    for stage in recipe.stages:
        where = f"stages.{stage.name}"
        if not stage.train or len(set(stage.train)) < len(stage.train):
            raise RecipeError(f"{where}.train is {stage.train}; name one part or more, each once")
        if stage.objective in ("words", "answers") and stage.mix.get("clip") and not recipe.data.clips:
            raise RecipeError(f"{where}.mix holds clip, but data.clips is 0; give 1 or more")
        if stage.mix.get("film") and recipe.data.pictures < MAX_PICTURES:
            raise RecipeError(
                f"{where}.mix holds film, but data.pictures is {recipe.data.pictures}; give {MAX_PICTURES} or more"
            )
        _check_data(recipe, stage, where)
    if recipe.model.adapter is not None:
        if recipe.model.start is None:
            raise RecipeError("model.adapter changes a model that exists; name one in model.start")
        for key, (low, high) in {"rank": (1, 10**5), "alpha": (0, INFINITE), "dropout": (0, 0.99)}.items():
            _check_number(f"model.adapter.{key}", getattr(recipe.model.adapter, key), low, high, key == "alpha")
    elif recipe.model.quantize is not None:
        raise RecipeError(
            f"model.quantize is {recipe.model.quantize!r}, and such weights cannot learn; give model.adapter, which can"
        )
    kept = next((stage.name for stage in recipe.stages if stage.keep), None)
    if kept is not None and (recipe.model.adapter is not None or recipe.parallel == "fsdp2"):
        raise RecipeError(
            f"stages.{kept}.keep is for whole models in one place; leave it out with an adapter or parallel=fsdp2"
        )


def _check_data(recipe: Recipe, stage: Stage, where: str) -> None:
    """What a stage says of data it does not learn from would have no effect."""
    users = stage.objective in OF_USERS
    blank = Stage(stage.name, stage.steps, stage.train)
    for key in WORLDS_ONLY if users else USERS_ONLY:
        if getattr(stage, key) != getattr(blank, key):
            raise RecipeError(f"{where}.{key} means nothing to objective {stage.objective!r}; leave it out")
    if not users:
        _check_number(f"{where}.steps", stage.steps, 1, 10**9)
        if recipe.model.adapter is not None or recipe.model.dtype != "float32" or recipe.model.liger:
            keys = "model.adapter, model.dtype and model.liger"
            raise RecipeError(f"{keys} are for objectives {' and '.join(OF_USERS)}; see {where}")
        return
    if not stage.datasets:
        raise RecipeError(f"{where}.datasets is empty; objective {stage.objective!r} needs one file or more")
    if bool(stage.steps) == bool(stage.epochs):
        raise RecipeError(f"{where} has steps {stage.steps} and epochs {stage.epochs:g}; give one of them, the other 0")
    for index, part in enumerate(stage.datasets):
        _check_dataset(part, f"{where}.datasets.{index}")
    streamed = next((part.path for part in stage.datasets if part.streaming), None)
    if streamed is not None and (stage.epochs or stage.group_by_length):
        what = "epochs means" if stage.epochs else "group_by_length means"
        raise RecipeError(f"{where}.{what} nothing to {streamed}, a stream, whose rows are not known; give steps alone")
    for key, (low, high) in {"crop": (0, 1), "max_partition": (1, 10**4)}.items():
        for kind, value in getattr(stage, key).items():
            if kind not in KINDS:
                raise RecipeError(f"{where}.{key} holds {kind!r}; the kinds of samples are {', '.join(KINDS)}")
            _check_number(f"{where}.{key}.{kind}", value, low, high)
    if stage.objective == "preference" and stage.template != "chat":
        raise RecipeError(f"{where}.template {stage.template!r} means nothing to objective 'preference'; leave it out")
    if stage.objective == "preference" and stage is not recipe.stages[0] and recipe.model.adapter is None:
        raise RecipeError(
            f"{where} compares with the model that the recipe starts from, so it must be the first stage; move it into "
            "a recipe of its own, or learn an adapter"
        )
    if stage.objective == "preference" and stage.pack:
        raise RecipeError(f"{where}.pack means nothing to objective 'preference', whose answers come in pairs")


def _check_dataset(part: DatasetPart, where: str) -> None:
    _check_number(f"{where}.weight", part.weight, 0, 10**6, above=True)
    _check_number(f"{where}.buffer", part.buffer, 1, 10**7)
    if part.buffer != DatasetPart(part.path).buffer and not part.streaming:
        raise RecipeError(f"{where}.buffer means nothing without streaming; leave it out")
    for column in part.columns.values():
        if column not in NAMES:
            near = difflib.get_close_matches(column, NAMES, n=1, cutoff=0)[0]
            raise RecipeError(f"{where}.columns names unknown {column!r}; the nearest known column is {near!r}")


def _check_ranges(recipe: Recipe) -> None:
    if not 0 <= recipe.seed < 2**63:
        raise RecipeError(f"seed is {recipe.seed}; give a whole number from 0 to 2**63 - 1")
    for key, (low, high) in DATA_RANGES.items():
        _check_number(f"data.{key}", getattr(recipe.data, key), low, high)
    for stage in recipe.stages:
        for key, (low, high) in RANGES.items():
            _check_number(f"stages.{stage.name}.{key}", getattr(stage, key), low, high, key in ABOVE_ZERO)
        _check_mix(f"stages.{stage.name}.mix", stage.mix)
        _check_kinds(f"stages.{stage.name}.kinds", stage.kinds)
        for part, rate in stage.rates.items():
            _check_number(f"stages.{stage.name}.rates.{part}", rate, 0, 10**4, above=True)
            if part not in stage.train:
                raise RecipeError(f"stages.{stage.name}.rates names {part!r}, which does not learn there")


def _check_mix(where: str, mix: Mapping[str, float]) -> None:
    unknown = [kind for kind in mix if not re.fullmatch(f"[1-{MAX_PICTURES}]|clip|film", kind)]
    if unknown or not mix:
        raise RecipeError(f"{where} holds {unknown}; its keys are 1 … {MAX_PICTURES} (pictures), clip and film")
    for kind, share in mix.items():
        _check_number(f"{where}.{kind}", share, 0, INFINITE)
    total = sum(mix.values())
    if not 0 < total < INFINITE:
        raise RecipeError(f"{where} adds up to {total}; give at least one share above 0")


def _check_kinds(where: str, kinds: Mapping[str, float]) -> None:
    known = (*PICTURE_KINDS, *SET_KINDS)
    for kind, share in kinds.items():
        if kind not in known:
            raise RecipeError(f"{where} holds {kind!r}; the kinds of questions are {', '.join(known)}")
        _check_number(f"{where}.{kind}", share, 0, INFINITE, above=True)


def _check_number(where: str, value: float, low: float, high: float, above: bool = False) -> None:
    if not (low <= value <= high) or value == INFINITE or (above and value == low):
        least = f"a number above {low}" if above else f"{low} or more"
        raise RecipeError(f"{where} is {value}; give {least}{f', at most {high}' if high < INFINITE else ''}")


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


def _build(kind: Any, value: Any, where: str) -> Any:
    """A value of the annotated type from a tree, or a RecipeError that says where it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _build(next(option for option in arguments if option is not type(None)), value, where)
    if origin is list:
        if not isinstance(value, list):
            raise RecipeError(f"{where} is {value!r:.60}; expected a list")
        return [_build(arguments[0], element, f"{where}.{index}") for index, element in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where} is {value!r:.60}; expected keys and values")
        return {str(key): _build(arguments[1], element, f"{where}.{key}") for key, element in value.items()}
    if origin is Literal:
        if value not in arguments:
            raise RecipeError(f"{where} is {value!r:.60}; expected one of {', '.join(map(str, arguments))}")
        return value
    if kind is Any:
        return value
    if kind is float:
        # YAML 1.1 reads 1e-3 as text, because it lacks a dot.
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise RecipeError(f"{where} is {value!r:.60}; expected a number") from None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {int: "a whole number", str: "text", bool: "true or false"}
        raise RecipeError(f"{where} is {value!r:.60}; expected {names[kind]}")
    return value


def _build_dataclass(kind: Any, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise RecipeError(f"{where} is {tree!r:.60}; expected keys and values")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0)[0]
            raise RecipeError(f"unknown key {key!r} in {where}; the nearest known key is {near!r}")
    needed = {entry.name for entry in dataclasses.fields(kind) if _is_required(entry)}
    missing = sorted(needed - set(tree))
    if missing:
        raise RecipeError(f"{where} lacks {', '.join(missing)}")
    prefix = "" if where == "recipe" else f"{where}."
    return kind(**{key: _build(hints[key], value, prefix + key) for key, value in tree.items()})


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
