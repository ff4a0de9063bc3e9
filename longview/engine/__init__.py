"""Model inputs in, tokens out: `load` opens a model, `Engine` answers."""

from longview.engine.engine import Budget, Engine
from longview.engine.hooks import Hook
from longview.engine.loading import load

__all__ = ["Budget", "Engine", "Hook", "load"]
