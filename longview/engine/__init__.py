"""Inputs in, tokens out."""

from longview.engine.engine import Engine, load
from longview.engine.sampling import SamplingParams

__all__ = ["Engine", "SamplingParams", "load"]
