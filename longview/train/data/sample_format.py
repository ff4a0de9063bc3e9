"""A stage's settings of its samples: frames of a film, and which pictures are cut into crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longview.errors import RecipeError
from longview.media import Medium, open_media
from longview.messages import Part
from longview.models.base import SampleFormat
from longview.requests import MediaOptions
from longview.train.data.datasets import Mixture
from longview.train.data.rows import Example
from longview.train.data.settings import DataSettings
from longview.train.recipe import Stage, data_of


def open_shown(parts: Sequence[Part], frames: int, fps: float, default: MediaOptions) -> list[Medium]:
    """Pictures and videos. A list of pictures has no times: `fps` is for films.

    Args:
        frames: Of a video at most; 0: as many as `default` says.
        fps: Frames a second of a film; 0: as `default` says.
    """
    plain = MediaOptions(frames=frames or None)
    if not fps:
        return open_media(parts, plain, default=default)
    timed = MediaOptions(frames=frames or None, fps=fps)
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


def sample_format_of(example: Example, settings: DataSettings, draw: float) -> SampleFormat:
    """How a sample is laid out: the row's own setting first, then the stage's for its kind, then the processor's."""
    kind = example.kind
    share = None if kind is None else settings.crop.get(kind)
    most = None if kind is None else settings.max_partition.get(kind)
    return SampleFormat(example.plain, None if share is None else draw < share, example.max_partition or most)


def check_cutting(stage: Stage, processor: Any, mixture: Mixture) -> None:
    """Make sure that the model's pictures can be cut as the stage, and rows of its data, ask for.

    Raises:
        RecipeError: they cannot.
    """
    for key, needed in (("crop", "cut"), ("max_partition", "max_partition")):
        if getattr(data_of(stage), key) and needed not in processor.crop_settings:
            raise RecipeError(
                f"stages.{stage.name}.data.{key} means nothing to this model, which decides itself how pictures are "
                "cut; leave it out"
            )
    named = next((data.path for data in mixture.datasets if data.cuts), None)
    if named is not None and "max_partition" not in processor.crop_settings:
        raise RecipeError(
            f"dataset {named} says max_partition, and this model cuts no picture into so many crops; name the column "
            "under ignore"
        )
