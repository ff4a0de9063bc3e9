"""Multimodal language models that look at much: hundreds of pictures, hours of video, dense pages.

    import longview
    engine = longview.load("demo")              # or a checkpoint folder, or a hub id
    print(engine.answer([longview.ask("What is on the left?", longview.image("photo.jpg"))]))

Importing it is cheap: torch is imported when a model is opened, so that `longview --help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from longview.errors import LongviewError
from longview.messages import Answer, Message, Part, Piece, Receipt, ask, image, video
from longview.requests import Limits, MediaOptions, SamplingParams

__version__ = "0.1.0"

_LAZY = {
    "load": "longview.engine",
    "Engine": "longview.engine",
    "Budget": "longview.engine",
    "Hook": "longview.engine",
    "apply_liger_kernel": "longview.models.liger",
    "AutoConfig": "longview.models.auto",
    "AutoModel": "longview.models.auto",
    "AutoModelForCausalLM": "longview.models.auto",
    "AutoModelForImageTextToText": "longview.models.auto",
    "AutoProcessor": "longview.models.auto",
    "AutoTokenizer": "longview.models.auto",
}

if TYPE_CHECKING:
    from longview.engine import Budget, Engine, Hook, load
    from longview.models.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )
    from longview.models.liger import apply_liger_kernel

__all__ = [
    "Answer",
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoProcessor",
    "AutoTokenizer",
    "Budget",
    "Engine",
    "Hook",
    "Limits",
    "LongviewError",
    "MediaOptions",
    "Message",
    "Part",
    "Piece",
    "Receipt",
    "SamplingParams",
    "apply_liger_kernel",
    "ask",
    "image",
    "load",
    "video",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'longview' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
