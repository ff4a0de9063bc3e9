"""Settings of a processor that a training run may change; an adapter keeps them, as a whole model's folder does."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError, LongviewError
from longview.models import checkpoint

FILE = "preprocessor_config.json"
SETTINGS: dict[str, tuple[type, ...]] = {"cut_enable": (bool,), "max_partition": (int, type(None))}
"""How pictures are cut into crops."""


def change(processor: Any, settings: Mapping[str, Any], where: str, model: str, error: type[LongviewError]) -> None:
    """Change a processor's settings.

    Args:
        where: What stands before a setting's name where they are read, such as "model.processor.".

    Raises:
        error: the processor has no such setting, or a value has the wrong type.
    """
    for key, value in settings.items():
        if not _has(processor, key):
            raise error(f"{where}{key} is no setting of {model}; leave it out")
        if type(value) not in SETTINGS[key]:
            raise error(f"{where}{key} is {value!r:.40}; expected {SETTINGS[key][0].__name__}")
        setattr(processor, key, value)


def save(processor: Any, folder: Path) -> None:
    """Write what a run may have changed into the folder of its adapter."""
    kept = {key: getattr(processor, key) for key in SETTINGS if _has(processor, key)}
    (folder / FILE).write_text(json.dumps(kept, indent=2) + "\n")


def with_those_of(processor: Any, folder: Path, model: str) -> Any:
    """A copy of a processor with the settings that an adapter was trained with; itself, where its folder has none.

    Raises:
        CheckpointError: a setting has the wrong type.
    """
    if not (folder / FILE).is_file():
        return processor
    fields = checkpoint.read_json(folder, FILE)
    changed = copy.copy(processor)
    known = {key: value for key, value in fields.items() if _has(processor, key)}
    change(changed, known, f"{folder / FILE}: ", model, CheckpointError)
    return changed


def _has(processor: Any, key: str) -> bool:
    return key in SETTINGS and hasattr(processor, key)
