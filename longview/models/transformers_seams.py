"""Where longview depends on transformers' insides, each place with its reason.

Public, and imported anywhere, is what transformers exports itself (`from transformers import …`). All else comes
through here, so that what a release of transformers may break is a screen long; a test, test_transformers_seams.py,
reads the package for other places.

Besides, by attribute and argument, each held by golden numbers: layers of SigLIP, CLIP and ConvNeXt towers and of
language models are called one by one with hidden states (`encoder.layers`, `model.layers`); the state-dict names of all
of these are the official checkpoints'.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from transformers import AttentionInterface, Qwen2Model, SiglipVisionConfig
from transformers.activations import GELUTanh
from transformers.configuration_utils import SubConfigSpec
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.aimv2.modeling_aimv2 import Aimv2RMSNorm
from transformers.models.convnext.modeling_convnext import ConvNextEmbeddings, ConvNextLayer, ConvNextStage
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, eager_attention_forward
from transformers.models.siglip.modeling_siglip import SiglipMLP
from transformers.utils import is_flash_attn_2_available

IMPORTED: dict[Any, str] = {
    Aimv2RMSNorm: "Ovis2's tower has AIMv2's norms under other names",
    CausalLMOutputWithPast: "mPLUG-Owl3's output is this one and a side cache",
    ConvNextEmbeddings: "MGM's high-resolution tower is ConvNeXt with the outputs of all stages side by side",
    ConvNextLayer: "its layer scales are initialised by the config's value",
    ConvNextStage: "as ConvNextEmbeddings",
    GELUTanh: "the activation that oneDNN computes with the linear layer before it",
    Qwen2DecoderLayer: "a hyper block is built as one and found as one, for instance where hidden states are returned",
    SiglipMLP: "SigLIP's feed-forward layers, whose GELU is fused with the linear layer before it",
    SubConfigSpec: "nested configs are declared by it under 5.20, and by a class since 5.23",
    WeightRenaming: "MGM's tensors have other names than its modules; transformers' loader renames them",
    eager_attention_forward: "attn_implementation='eager' is in no public registry",
    is_flash_attn_2_available: "whether flash_attention_2 can be used here",
    no_init_weights: "bench fills weights itself; drawing billions of numbers takes minutes",
    register_checkpoint_conversion_mapping: "as WeightRenaming",
}
"""Names without a public home."""

OVERRIDDEN = {
    "_init_weights": "parameters of our own modules, when a model is made from nothing",
    "_no_split_modules": "layers that device_map keeps in one place",
    "_skip_keys_device_placement": "arguments that device_map does not move",
    "_supports_attention_backend": "attn_implementation may be set",
    "_supports_flash_attn": "as _supports_attention_backend",
    "_supports_sdpa": "as _supports_attention_backend",
    "HyperDecoderLayer.forward": "called by the language model with hidden states, and by keyword: attention_mask, "
    "position_embeddings, the cache (see CACHE_NAMES), and what forward was given beside",
    "KVCacheLayer": "all that layers and masks ask of a cache layer: rows grow in place and differ in length",
    "Owl3Cache.crop": "pictures that stood in what is removed are removed, too",
}
"""Private attributes of transformers' classes that classes of ours override, and methods of its layers and caches."""

USED = {
    "_attn_implementation": "the implementation of attention that is set has no public getter",
    "_from_config": "a model from a config, with dtype and attn_implementation, as the Auto classes make it",
    "_name_or_path": "where a tower's weights came from is written beside them",
}
"""Private attributes of transformers' objects that are read, called or set."""

UNDECLARED = {SiglipVisionConfig: {"vision_use_head"}}
"""Fields of configs that are read though not declared: this one is declared since 5.23."""

__all__ = [
    "CACHE_NAME",
    "CACHE_NAMES",
    "UNDECLARED",
    "Aimv2RMSNorm",
    "CausalLMOutputWithPast",
    "ConvNextEmbeddings",
    "ConvNextLayer",
    "ConvNextStage",
    "GELUTanh",
    "Qwen2DecoderLayer",
    "SiglipMLP",
    "SubConfigSpec",
    "WeightRenaming",
    "attention_implementation",
    "cache_argument",
    "is_flash_attn_2_available",
    "no_init_weights",
    "register_checkpoint_conversion_mapping",
    "takes_cache_by_either_name",
]

# ── the cache argument ───────────────────────────────────────────────────────────────────────────────────────────────

CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(name for name in CACHE_NAMES if name in inspect.signature(Qwen2Model.forward).parameters)
"""What transformers calls the cache argument of models, layers and `generate`: `past_key_values`, since 5.24 `cache`.

Passing it by the other name warns at each call. Our models call it `past_key_values` under all versions.
"""

Method = TypeVar("Method", bound=Callable[..., Any])


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


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────

ATTENTION = AttentionInterface()
"""All implementations of attention, those that are registered later included."""


@contextlib.contextmanager
def attention_set_to(config: Any, implementation: str) -> Iterator[None]:
    """Another implementation of attention for a while, by its name in transformers' registry."""
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def masks_of_any_form(config: Any) -> contextlib.AbstractContextManager[None]:
    """Attention that takes a mask (B, 1, T, S): sdpa where it was flash attention, which takes none."""
    before = config._attn_implementation
    return attention_set_to(config, "sdpa" if before is not None and before.startswith("flash") else before)


def attention_implementation(config: Any) -> Callable[..., Any]:
    """transformers' function for the implementation of attention that a model is set to (`attn_implementation`).

    The module that calls it has `is_causal` and `num_key_value_groups`.
    """
    return ATTENTION.get_interface(config._attn_implementation, eager_attention_forward)
