"""Whether a checkpoint is of this family, and whether its tensors fit its config. There are no official names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.models.halves.config import HalvesConfig

from longview.errors import CheckpointError


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to this family."""
    return config.get("model_type") == HalvesConfig.model_type


def official_config(config: HalvesConfig, folder: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: always; nobody else's code opens these models.
    """
    raise CheckpointError(f"{folder}: this family has no official form; leave out --official")
