"""Baselines, measured in the same run and with the same shapes.

Interleaved     the same language model, with the pictures in its sequence, as LLaVA-NeXT-Interleave does
recomputation   keys and values of pictures recomputed for every token, as mPLUG-Owl3's authors' code does
transformers    its own `generate`, one request at a time
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config

from longview.bench.subject import Subject, fill
from longview.engine.devices import now
from longview.media import open_media
from longview.models.transformers_seams import CACHE_NAME, no_init_weights


class Interleaved:
    """The subject's language model without hyper attention, with random embeddings for pictures.

    Args:
        layers: How many of its layers are built and run; 0: all. Their time is multiplied, as all cost the same; the
            embedding and the head are counted once.
    """

    def __init__(self, subject: Subject, layers: int = 0) -> None:
        plain = subject.model.language_model.config
        config = copy.deepcopy(plain) if plain.model_type != "mplugowl3" else _qwen2_of(plain)
        self.num_layers = config.num_hidden_layers
        self.layers = min(layers or self.num_layers, self.num_layers)
        config.num_hidden_layers = self.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.layers]
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(subject.model.dtype)
            with no_init_weights(), subject.model.device:
                self.model = AutoModelForCausalLM.from_config(config).eval()
        finally:
            torch.set_default_dtype(before)
        self.model.tie_weights()
        fill(self.model)
        self.patches = subject.model.config.patches_per_picture
        self.config = config

    @property
    def scale(self) -> float:
        """The factor that the time of the layers is multiplied by."""
        return self.num_layers / self.layers

    @torch.inference_mode()
    def first_token(self, num_pictures: int, num_tokens: int) -> float:
        """Seconds from features to the first token."""
        positions = num_pictures * self.patches + num_tokens
        embeds = torch.randn(1, positions, self.config.hidden_size).to(self.model.device, self.model.dtype) * 0.02
        return self._seconds(inputs_embeds=embeds, **{CACHE_NAME: DynamicCache(config=self.config)})

    @torch.inference_mode()
    def token(self, num_pictures: int, num_tokens: int, repeats: int) -> float:
        """Seconds a token, with zeros as keys and values of so many pictures in the cache."""
        positions = num_pictures * self.patches + num_tokens
        cache = DynamicCache(config=self.config)
        heads, width = self.config.num_key_value_heads, self.config.hidden_size // self.config.num_attention_heads
        for layer in range(self.layers):
            states = torch.zeros(1, heads, positions, width, dtype=self.model.dtype, device=self.model.device)
            cache.update(states, states.clone(), layer)
        ids = torch.zeros(1, 1, dtype=torch.long, device=self.model.device)
        seconds = [self._seconds(input_ids=ids, **{CACHE_NAME: cache}) for _ in range(repeats + 1)]
        return sorted(seconds[1:])[repeats // 2]

    def _seconds(self, **inputs: Any) -> float:
        """Seconds of a forward pass through all layers, extrapolated, and of choosing a token."""
        start = now(self.model.device)
        hidden = self.model.model(**inputs, use_cache=True).last_hidden_state
        layers = now(self.model.device) - start
        self.model.lm_head(hidden[:, -1:]).argmax()
        return layers * self.scale + (now(self.model.device) - start - layers)

    def bytes_per_picture(self) -> int:
        """Bytes of keys and values of one picture, in all layers: measured on a cache that holds one."""
        cache = DynamicCache(config=self.config)
        with torch.inference_mode():
            shape = (1, self.patches, self.config.hidden_size)
            embeds = torch.zeros(shape, dtype=self.model.dtype, device=self.model.device)
            self.model.model(inputs_embeds=embeds, use_cache=True, **{CACHE_NAME: cache})
        held = sum(_size(layer.keys) + _size(layer.values) for layer in cache.layers)
        return int(held * self.scale)


def _qwen2_of(config: Any) -> Any:
    plain = Qwen2Config.from_dict({**config.to_dict(), "model_type": "qwen2"})
    plain._attn_implementation = "sdpa"
    return plain


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@torch.inference_mode()
def visual_kv_bytes(subject: Subject, num_pictures: int) -> int:
    """Bytes of the keys and values of pictures in the hyper layers: measured on a cache that holds them."""
    model, messages = subject.model, subject.question(num_pictures)
    inputs = subject.engine.processor.prepare(messages, open_media(messages[0].media))
    shape = (num_pictures, model.config.patches_per_picture, model.config.hidden_size)
    features = torch.zeros(shape, dtype=model.dtype, device=model.device)
    return model(**model.embed_pictures(inputs.text_inputs, features=features), use_cache=True).side_cache.nbytes()


@torch.inference_mode()
def recomputation(subject: Subject, num_pictures: int, max_measured: int = 25) -> float:
    """Seconds to compute the keys and values of all pictures in all hyper layers once.

    Measured on some pictures and extrapolated: each costs the same.
    """
    config, model = subject.model.config, subject.model
    some = min(num_pictures, max_measured)
    shape = (some, config.patches_per_picture, config.hidden_size)
    features = torch.zeros(shape, dtype=model.dtype, device=model.device)
    layers = [model.language_model.model.layers[number - 1] for number in config.hyper_layers]
    layers[0].project(features[:1], [0])
    start = now(model.device)
    for layer in layers:
        layer.project(features, list(range(some)))
    return (now(model.device) - start) * num_pictures / some


@torch.inference_mode()
def generate(subject: Subject, messages: list[Any], max_tokens: int) -> float:
    """Seconds of transformers' `generate` for one question, media and tower included."""
    start = now(subject.model.device)
    parts = [part for message in messages for part in message.media]
    inputs = subject.engine.processor.prepare(messages, open_media(parts))
    settings = {"max_new_tokens": max_tokens, "min_new_tokens": max_tokens, "do_sample": False}
    subject.model.generate(**inputs.load_pixels().to(subject.model.device), **settings)
    return now(subject.model.device) - start
