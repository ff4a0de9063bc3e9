"""A recipe's settings of the synthetic world: the scenes that are painted, and the samples of a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, ClassVar

from longview.errors import RecipeError
from longview.train.settings import INFINITE, bounded, check_number
from longview.world.questions import PICTURE_KINDS, SET_KINDS

if TYPE_CHECKING:
    from longview.train.recipe import Recipe, Stage

MAX_PICTURES = 8
"""Of a sample of the synthetic world that does not say how many; its clips have as many frames."""
MOST_PICTURES = 999
"""Of any sample: numbers of pictures are read digit by digit, and have three."""
OTHER_SAMPLES = ("many", "close", "clip", "film", "knowledge", "passages")
"""Kinds of samples but those of 1 … `MAX_PICTURES` pictures."""
PICTURES = ("batch",)
"""Settings of objectives that draw pictures."""
TEXT = ("text_probe", "text_probe_weight", "shift")
"""Settings of objectives that read the text of pictures."""
CONVERSATIONS = (
    "tokens", "mix", "most", "least", "numbers", "frames", "grow", "simple", "kinds", "turns", "captions",
    "probe_layer", "probe_weight", "probe_from", *TEXT,
)  # fmt: skip
"""Settings of objectives that draw conversations."""
READ = {
    "contents": (*PICTURES, *TEXT), "places": (*PICTURES, *TEXT), "contrastive": PICTURES,
    "answers": CONVERSATIONS, "words": CONVERSATIONS,
}  # fmt: skip


@dataclass(frozen=True)
class PoolSettings:
    """`pool` of a recipe: how many scenes of each kind are painted before training."""

    pictures: int = bounded(20_000, 1, 10**6)
    clips: int = bounded(1_000, 0, 10**6)
    simple: float = bounded(0.3, 0, 1)  # share of pictures that hold one thing and no sign
    signs: float = bounded(0.25, 0, 1)  # share of the other pictures that hold a sign
    prints: float = bounded(0.0, 0, 1)  # share of the other pictures that hold small print; with close: of those alone
    close: int = bounded(0, 0, 10**6)  # pictures more, which are shown in crops, as the family cuts a single picture


@dataclass(frozen=True)
class WorldSettings:
    """`world` of a stage: it learns from the synthetic world.

    Objectives:
        contents: What stands in each place of a picture, read by a linear probe from the mean of its features.
        places: The same, read from the features of each place: for models that take places one by one.
        answers: Next-token loss on the assistant's tokens in conversations about pictures, clips and films.
        words: `answers` about scenes that are described in text: for a language model without pictures.
        contrastive: Of two towers (family siglip): which texts fit which pictures.
    """

    OBJECTIVES: ClassVar[dict[str, str]] = {
        "contents": "longview.curriculum.contents:Contents",
        "places": "longview.curriculum.contents:Places",
        "answers": "longview.curriculum.conversations:Answers",
        "words": "longview.curriculum.conversations:Words",
        "contrastive": "longview.curriculum.contrastive:Contrastive",
    }
    MODELS: ClassVar[dict[str, str]] = {"siglip": "longview.curriculum.siglip:open_towers"}

    batch: int = bounded(64, 1, 10**6)  # contents, places, contrastive: pictures a step
    tokens: int = bounded(2500, 1, 10**7)  # answers, words: text tokens a step, about
    mix: dict[str, float] = field(
        default_factory=lambda: {"1": 1.0}
    )  # shares of samples: 1 … 8 pictures, many, close, clip, film, knowledge, passages
    most: int = bounded(MAX_PICTURES, 1, MOST_PICTURES)  # pictures of a sample of many, each numbered: so many at most
    least: int = bounded(1, 1, MOST_PICTURES)  # and at least
    numbers: int = bounded(0, 0, MOST_PICTURES)  # many: half the samples leave numbers out, up to this one; 0: none
    frames: int = bounded(MAX_PICTURES, MAX_PICTURES, MOST_PICTURES)  # of a film, 8 to so many
    grow: int = bounded(0, 0, 10**9)  # steps in which most and frames grow to what they are, from 8
    simple: float = bounded(0.0, 0, 1)  # share of samples whose pictures hold one thing, or one sign, each
    kinds: dict[str, float] = field(default_factory=dict)  # how much more often than others a kind of question is asked
    turns: int = bounded(8, 1, 64)  # questions about the same media in one sample
    captions: float = bounded(0.0, 0, 1)  # share of samples that begin with descriptions of numbered pictures
    probe_layer: int = bounded(
        0, 0, 10**4
    )  # the block whose placeholders are probed for their picture's contents; 0: none
    probe_weight: float = bounded(0.0, 0)
    probe_from: int = bounded(
        0, 0, 10**9
    )  # steps in which probes alone learn from what they read; the model after them
    text_probe: int = bounded(0, 0, 10**6)  # pictures a step more, close ones if any, whose text a probe reads
    text_probe_weight: float = bounded(0.2, 0)
    shift: int = bounded(
        0, 0, 100
    )  # close pictures and those of text_probe are moved by up to so many pixels, at random

    def check(self, recipe: Recipe, stage: Stage, where: str) -> None:
        """Make sure that a stage's values are possible, as far as is known without its model.

        Raises:
            RecipeError: names the value and what was expected.
        """
        check_number(f"{where}.steps", stage.steps, 1, 10**9)
        if stage.epochs:
            raise RecipeError(f"{where}.epochs counts passes over a user's rows, and the world has none; give steps")
        if recipe.model.adapter is not None or recipe.model.dtype != "float32" or recipe.model.liger:
            raise RecipeError(f"model.adapter, model.dtype and model.liger are for stages with data, and {where} has "
                              "world; leave them out")  # fmt: skip
        blank = WorldSettings()
        for key in (entry.name for entry in fields(self) if entry.name not in READ[stage.objective]):
            if getattr(self, key) != getattr(blank, key):
                raise RecipeError(f"{where}.world.{key} means nothing to objective {stage.objective!r}; leave it out")
        _check_mix(f"{where}.world.mix", self.mix)
        _check_kinds(f"{where}.world.kinds", self.kinds)
        if self.least > self.most:
            raise RecipeError(f"{where}.world.least is {self.least}, and most is {self.most}; give no more than that")
        if 0 < self.numbers < self.most:
            raise RecipeError(
                f"{where}.world.numbers is {self.numbers}, and most is {self.most}; give {self.most} or more, or 0"
            )
        pool = recipe.pool or PoolSettings()
        if self.mix.get("clip") and not pool.clips:
            raise RecipeError(f"{where}.world.mix holds clip, but pool.clips is 0; give 1 or more")
        for kind, least in (("film", self.frames), ("many", self.most)):
            if self.mix.get(kind) and pool.pictures < least:
                raise RecipeError(
                    f"{where}.world.mix holds {kind}, but pool.pictures is {pool.pictures}; give {least} or more"
                )
        if self.mix.get("close") and not pool.close:
            raise RecipeError(f"{where}.world.mix holds close, but pool.close is 0; give 1 or more")
        if self.mix.get("knowledge") and not pool.simple:
            raise RecipeError(f"{where}.world.mix holds knowledge, but pool.simple is 0; give more")


def _check_mix(where: str, mix: Mapping[str, float]) -> None:
    unknown = [kind for kind in mix if not re.fullmatch(f"[1-{MAX_PICTURES}]|{'|'.join(OTHER_SAMPLES)}", kind)]
    if unknown or not mix:
        raise RecipeError(
            f"{where} holds {unknown}; its keys are 1 … {MAX_PICTURES} (pictures), "
            f"{', '.join(OTHER_SAMPLES[:-1])} and {OTHER_SAMPLES[-1]}"
        )
    for kind, share in mix.items():
        check_number(f"{where}.{kind}", share, 0)
    total = sum(mix.values())
    if not 0 < total < INFINITE:
        raise RecipeError(f"{where} adds up to {total}; give at least one share above 0")


def _check_kinds(where: str, kinds: Mapping[str, float]) -> None:
    known = (*PICTURE_KINDS, *SET_KINDS)
    for kind, share in kinds.items():
        if kind not in known:
            raise RecipeError(f"{where} holds {kind!r}; the kinds of questions are {', '.join(known)}")
        check_number(f"{where}.{kind}", share, 0, above=True)
