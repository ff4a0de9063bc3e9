"""Families are found by folder name: each package under `longview.models` is one. Whose checkpoint is this?

A family's package offers `Config`, `Model`, `Processor`, `recognises(config: dict) -> bool` and
`official_config(config, folder) -> dict`. A fourth family is one new folder; nothing is edited here.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from longview.errors import CheckpointError
from longview.models import checkpoint


class Family(Protocol):
    """What the package of a family offers."""

    __name__: str
    Config: Any
    Model: Any
    Processor: Any

    def recognises(self, config: Mapping[str, Any]) -> bool: ...

    def official_config(self, config: Any, folder: Path) -> dict[str, Any]: ...


@functools.cache
def families() -> dict[str, Family]:
    """Every family by name; the first call also registers them with transformers' Auto classes."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if not module.ispkg:
            continue
        family: Any = importlib.import_module(f"longview.models.{module.name}")
        found[module.name] = family
        AutoConfig.register(family.Config.model_type, family.Config)
        AutoProcessor.register(family.Config, family.Processor)
        for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
            auto.register(family.Config, family.Model)
    return found


def family_of(folder: Path) -> Family:
    """The family that a checkpoint folder belongs to, by its config.json.

    Raises:
        CheckpointError: no family recognises it; says what it claims to be.
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
