"""A recipe's settings of a user's rows: where they are, and how they pass the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from longview.errors import RecipeError
from longview.train.data.rows import KINDS, NAMES
from longview.train.settings import bounded, check_bounds, check_number, nearest

if TYPE_CHECKING:
    from longview.train.recipe import Recipe, Stage


@dataclass(frozen=True)
class DatasetSettings:
    """Conversations or captions; sources.py lists where they may be, rows.py their spellings."""

    path: str  # file, info.json:NAME, folder or hub name[:SUBSET]; with #2000 behind it, so many rows drawn at random
    weight: float = bounded(1.0, 0, 10**6, above=True)  # how often an epoch holds each row; of streams: the share
    folder: str | None = None  # where relative paths of pictures and videos begin; default: the file's own folder
    ignore: list[str] = field(default_factory=list)  # columns to be left out of account
    columns: dict[str, str] = field(default_factory=dict)  # names of its own → known ones: {text: response}
    query: str | None = None  # the question of every row, where the rows hold none
    split: str = "train"  # of a folder or a hub name
    streaming: bool = False  # rows are read on the way and never all held; #2000: the first ones
    buffer: int = bounded(1000, 1, 10**7)  # rows of a stream that are shuffled together
    text_rich: bool = False  # its pictures are full of text: they are the kind "text" of crop and max_partition

    def check(self, where: str) -> None:
        """
        Raises:
            RecipeError: a value is impossible.
        """
        check_bounds(self, where)
        if self.buffer != DatasetSettings(self.path).buffer and not self.streaming:
            raise RecipeError(f"{where}.buffer means nothing without streaming; leave it out")
        for column in self.columns.values():
            if column not in NAMES:
                raise RecipeError(
                    f"{where}.columns names unknown {column!r}; the nearest known column is {nearest(column, NAMES)!r}"
                )


@dataclass(frozen=True)
class DataSettings:
    """`data` of a stage: it learns from a user's rows.

    Objectives:
        supervised: Next-token loss on the assistant's tokens.
        preference: DPO (arXiv 2305.18290) on answers and rejected ones, against the model that the run starts from.
    """

    OBJECTIVES: ClassVar[dict[str, str]] = {
        "supervised": "longview.train.objectives.supervised:Supervised",
        "preference": "longview.train.objectives.preference:Preference",
    }
    MODELS: ClassVar[dict[str, str]] = {}

    datasets: list[DatasetSettings]
    batch: int = bounded(64, 1, 10**6)  # samples a step
    micro_batch: int = bounded(1, 1, 10**6)  # samples that pass the model at a time; their gradients are added up
    pack: int = bounded(0, 0, 10**7)  # in place of micro_batch: positions of a row that samples share; 0: no packing
    max_length: int = bounded(0, 0, 10**7)  # positions of a sample; a longer one is skipped. 0: what the model takes
    template: Literal["chat", "plain"] = "chat"  # plain: the answer right behind the pictures; so are captions always
    frames: int = bounded(0, 0, 10**5)  # of a video at most; 0: as many as the model's family takes
    fps: float = bounded(0.0, 0, 1000)  # frames a second of a video; 0: as the family chooses them
    crop: dict[str, float] = field(default_factory=dict)  # share of the samples of a kind whose pictures are cut
    max_partition: dict[str, int] = field(default_factory=dict)  # crops of a picture at most, in samples of a kind
    group_by_length: bool = False  # a step holds samples with pictures, or without; lengths are evened out in it
    quarantine: float = bounded(0.01, 0, 1)  # the run ends when a larger share of samples is broken
    beta: float = bounded(0.1, 0, above=True)  # preference: how much leaving the reference costs
    validation: float = bounded(0.0, 0)  # rows that are judged by and never learned from: a share below 1, or how many

    def check(self, recipe: Recipe, stage: Stage, where: str) -> None:
        """Make sure that a stage's values are possible, as far as is known without its model and its rows.

        Raises:
            RecipeError: names the value and what was expected.
        """
        if not self.datasets:
            raise RecipeError(f"{where}.data.datasets is empty; name one file or more")
        for index, dataset in enumerate(self.datasets):
            dataset.check(f"{where}.data.datasets.{index}")
        if bool(stage.steps) == bool(stage.epochs):
            raise RecipeError(f"{where} has steps {stage.steps} and epochs {stage.epochs:g}; give one of them")
        streamed = next((dataset.path for dataset in self.datasets if dataset.streaming), None)
        if streamed is not None and (stage.epochs or self.group_by_length):
            what = "epochs means" if stage.epochs else "data.group_by_length means"
            raise RecipeError(
                f"{where}.{what} nothing to {streamed}, a stream, whose rows are not known; give steps alone"
            )
        for key, (low, high) in {"crop": (0, 1), "max_partition": (1, 10**4)}.items():
            for kind, value in getattr(self, key).items():
                if kind not in KINDS:
                    raise RecipeError(f"{where}.data.{key} holds {kind!r}; the kinds of samples are {', '.join(KINDS)}")
                check_number(f"{where}.data.{key}.{kind}", value, low, high)
        if self.validation:
            self._check_validation(recipe, where)
        if stage.objective == "preference":
            self._check_preference(recipe, stage, where)
        elif self.beta != DataSettings(self.datasets).beta:
            raise RecipeError(f"{where}.data.beta means nothing to objective {stage.objective!r}; leave it out")

    def _check_validation(self, recipe: Recipe, where: str) -> None:
        if self.validation > 1 and not self.validation.is_integer():
            raise RecipeError(f"{where}.data.validation is {self.validation:g}; give a share below 1, or how many rows")
        streamed = next((dataset.path for dataset in self.datasets if dataset.streaming), None)
        if streamed is not None:
            raise RecipeError(
                f"{where}.data.validation means nothing to {streamed}, a stream, whose rows are not known; leave it out"
            )
        if recipe.parallel != "ddp":
            raise RecipeError(f"{where}.data.validation is for whole models in one place; take parallel=ddp")

    def _check_preference(self, recipe: Recipe, stage: Stage, where: str) -> None:
        if self.template != "chat":
            raise RecipeError(f"{where}.data.template {self.template!r} means nothing to objective 'preference'; "
                              "leave it out")  # fmt: skip
        if self.pack:
            raise RecipeError(f"{where}.data.pack means nothing to objective 'preference', whose answers come in pairs")
        if stage is not recipe.stages[0] and recipe.model.adapter is None:
            raise RecipeError(
                f"{where} compares with the model that the recipe starts from, so it must be the first stage; move it "
                "into a recipe of its own, or learn an adapter"
            )
