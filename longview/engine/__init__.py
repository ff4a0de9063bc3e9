"""ModelInputs in, tokens out."""

from longview.engine.engine import Budget, Engine, load

__all__ = ["Budget", "Engine", "load"]
