"""ModelInputs in, tokens out."""

from longview.engine.engine import Budget, Engine, load
from longview.engine.sampling import SamplingParams

__all__ = ["Budget", "Engine", "SamplingParams", "load"]
