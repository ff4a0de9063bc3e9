"""Where longview depends on transformers' insides, each place with its reason.

transformers 5.24 calls the cache argument of models, layers and `generate` `cache`; before, it was `past_key_values`.
Our models take it as `past_key_values` under both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from transformers import AttentionInterface, Qwen2Model
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, eager_attention_forward

__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "CausalLMOutputWithPast",
    "Qwen2DecoderLayer",
    "attention_implementation",
    "cache_argument",
    "takes_cache_by_either_name",
]

Method = TypeVar("Method", bound=Callable[..., Any])

CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(name for name in CACHE_NAMES if name in inspect.signature(Qwen2Model.forward).parameters)
"""What the installed transformers calls the cache argument; passing the other name warns at each call."""


def takes_cache_by_either_name(method: Method) -> Method:
    """Let a method with an argument `past_key_values` be called with `cache=`, as `generate` of 5.24 does."""

    @functools.wraps(method)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        if "cache" in kwargs:
            kwargs["past_key_values"] = kwargs.pop("cache")
        return method(*args, **kwargs)

    return renamed  # type: ignore[return-value]


def cache_argument(arguments: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments that a language model hands its decoder layers, or None."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def attention_implementation(config: Any) -> Callable[..., Any]:
    """transformers' function for the implementation of attention that a model is set to (`attn_implementation`)."""
    return AttentionInterface().get_interface(config._attn_implementation, eager_attention_forward)
