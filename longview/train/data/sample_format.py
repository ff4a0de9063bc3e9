"""What a stage says of its samples: how many frames of a film are seen, and which pictures are cut into crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longview.errors import RecipeError
from longview.media import Medium, open_media
from longview.messages import Part
from longview.models.base import SampleFormat
from longview.requests import MediaOptions
from longview.train.data.datasets import Mixture
from longview.train.data.rows import Example
from longview.train.recipe import OF_USERS, Recipe, Stage


def open_shown(parts: Sequence[Part], stage: Stage, default: MediaOptions) -> list[Medium]:
    """Pictures and videos, in so many frames as the stage says. A list of pictures has no times: fps is for films."""
    plain = MediaOptions(frames=stage.frames or None)
    if not stage.fps:
        return open_media(parts, plain, default=default)
    timed = MediaOptions(frames=stage.frames or None, fps=stage.fps)
    films = [part.type == "video" and not isinstance(part.source, (list, tuple)) for part in parts]
    opened = {
        is_film: iter(
            open_media(
                [part for part, film in zip(parts, films, strict=True) if film is is_film],
                timed if is_film else plain,
                default=default,
            )
        )
        for is_film in (True, False)
    }
    return [next(opened[film]) for film in films]


def sample_format_of(example: Example, stage: Stage, draw: float) -> SampleFormat:
    """How a sample is laid out: the row's own word first, then the stage's for its kind, then the processor's."""
    kind = example.kind
    share = None if kind is None else stage.crop.get(kind)
    most = None if kind is None else stage.max_partition.get(kind)
    return SampleFormat(example.plain, None if share is None else draw < share, example.max_partition or most)


def check_cutting(recipe: Recipe, processor: Any, mixtures: Mapping[str, Mixture]) -> None:
    """Make sure that the model's pictures can be cut as the stages, and rows of their data, say.

    Raises:
        RecipeError: they cannot.
    """
    for stage in recipe.stages:
        if stage.objective not in OF_USERS:
            continue
        for key, needed in (("crop", "cut"), ("max_partition", "max_partition")):
            if getattr(stage, key) and needed not in processor.crop_settings:
                raise RecipeError(
                    f"stages.{stage.name}.{key} means nothing to this model, which decides itself how pictures are "
                    "cut; leave it out"
                )
        said = next((data.path for data in mixtures[stage.name].datasets if data.cuts), None)
        if said is not None and "max_partition" not in processor.crop_settings:
            raise RecipeError(
                f"dataset {said} says max_partition, and this model cuts no picture into so many crops; name the "
                "column under ignore"
            )
