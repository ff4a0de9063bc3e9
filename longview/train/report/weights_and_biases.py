"""The numbers of a run's log, to Weights & Biases, where it is installed: `longview train --wandb`."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longview.errors import MissingExtraError, RecipeError
from longview.files import replace_text
from longview.train.recipe import Recipe, to_tree

ID = "wandb-id"
"""The file of a run's folder by which a resumed run goes on under its own name there."""
PROJECT = "longview"


def check_wandb() -> None:
    """
    Raises:
        MissingExtraError: wandb is not installed.
    """
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--wandb", "wandb") from error


class WandbRun:
    """A run there; its own settings (WANDB_PROJECT, WANDB_MODE, …) hold.

    Raises:
        RecipeError: it cannot begin.
    """

    def __init__(self, output: Path, recipe: Recipe) -> None:
        import wandb

        path = output / ID
        if not path.exists():
            replace_text(path, uuid.uuid4().hex[:8])
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=path.read_text(encoding="utf-8").strip(),
                resume="allow",
                name=output.resolve().name,
                dir=str(output),
                config=to_tree(recipe),
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecipeError(
                f"--wandb: a run cannot begin there ({reason}); `wandb login`, or set WANDB_MODE=offline"
            ) from error

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send a line of the log. What fails there ends no training: it is told once, and nothing more is sent."""
        if self._run is None:
            return
        try:
            self._run.log(dict(numbers), step=step)
        except Exception as error:  # noqa: BLE001 - a tracker's failure, of whatever kind
            warnings.warn(f"--wandb: nothing more is sent ({' '.join(str(error).split())[:200]})", stacklevel=2)
            self._run = None

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
