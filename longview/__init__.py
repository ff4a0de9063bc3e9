"""Multimodal language models that look at much: hundreds of pictures, hours of video, dense pages.

    import longview
    engine = longview.load("demo")              # or a checkpoint folder, or a hub id
    print(engine.answer([longview.ask("What is on the left?", longview.image("photo.jpg"))]))

Importing it is cheap: each name is imported when it is used first, and torch when a model is opened, so that
`longview --help` answers at once.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # typing takes half the time until Ctrl-C is heeded

__version__ = "0.1.0"

_LAZY = {
    "LongviewError": "longview.errors",
    **dict.fromkeys(("Answer", "Message", "Part", "Piece", "Receipt", "ask", "image", "video"), "longview.messages"),
    **dict.fromkeys(("Limits", "MediaOptions", "SamplingParams"), "longview.requests"),
    "load": "longview.engine",
    "Engine": "longview.engine",
    "Budget": "longview.engine",
    "Hook": "longview.engine",
    "Index": "longview.index.index",
    "apply_liger_kernel": "longview.models.liger",
    "AutoConfig": "longview.models.auto",
    "AutoModel": "longview.models.auto",
    "AutoModelForCausalLM": "longview.models.auto",
    "AutoModelForImageTextToText": "longview.models.auto",
    "AutoProcessor": "longview.models.auto",
    "AutoTokenizer": "longview.models.auto",
}

if TYPE_CHECKING:
    from typing import Any

    from longview.engine import Budget, Engine, Hook, load
    from longview.errors import LongviewError
    from longview.index.index import Index
    from longview.messages import Answer, Message, Part, Piece, Receipt, ask, image, video
    from longview.models.auto import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )
    from longview.models.liger import apply_liger_kernel
    from longview.requests import Limits, MediaOptions, SamplingParams

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
    "Index",
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
    found = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
