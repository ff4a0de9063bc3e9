"""Families are found by folder name: each package in `longview.models.__path__` is one. Whose checkpoint is this?

A fourth family is one new folder beside these; nothing is edited here. One that lies elsewhere is found once the folder
around it is added to the path:

    import longview.models
    longview.models.__path__.append("examples/fourth_family")
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

import longview.models
from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.base import Config, Processor


class Family(Protocol):
    """What the package of a family exports; `longview.models.base` has the contracts of the three classes."""

    __name__: str
    Config: type[Config]
    Model: Any
    Processor: type[Processor]

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json, official or written by longview, belongs to the family."""

    def official_config(self, config: Any, folder: Path) -> dict[str, Any]:
        """The config.json with which the authors' code opens the weights that longview writes.

        Raises:
            CheckpointError: their code builds no such model.
        """


def families() -> dict[str, Family]:
    """Every family by name; they are registered with transformers' Auto classes."""
    return _found_in(tuple(longview.models.__path__))


@functools.cache
def _found_in(folders: tuple[str, ...]) -> dict[str, Family]:
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(folders):
        if not module.ispkg:
            continue
        family: Any = importlib.import_module(f"longview.models.{module.name}")
        found[module.name] = family
        AutoConfig.register(family.Config.model_type, family.Config, exist_ok=True)
        AutoProcessor.register(family.Config, family.Processor, exist_ok=True)
        for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
            auto.register(family.Config, family.Model, exist_ok=True)
    return found


def family_of(folder: Path) -> Family:
    """The family that a checkpoint folder belongs to, by its config.json.

    Raises:
        CheckpointError: no family recognises it; names what it claims to be.
    """
    config = checkpoint.read_config(folder)
    for family in families().values():
        if family.recognises(config):
            return family
    kind = config.get("model_type") or (config.get("architectures") or ["unknown"])[0]
    raise CheckpointError(
        f"{folder} is a checkpoint of kind {kind!r}, which belongs to none of longview's families: "
        f"{', '.join(families())}; name one of theirs, or 'demo'"
    )
