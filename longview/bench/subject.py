"""The model that is measured: of given dimensions with random weights, or a real one, in the real engine.

Speed does not depend on the values of weights. Random ones are drawn once and repeated, because drawing billions takes
longer than many a measurement. The tokenizer has a token for each byte, but for the placeholder's five tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from longview.engine import Budget, Engine, load
from longview.engine.devices import best_device
from longview.engine.features import feature_key
from longview.errors import RequestError
from longview.media import open_media
from longview.messages import Message, ask, video
from longview.models import quantization
from longview.models.families import families
from longview.models.sources import DEMOS
from longview.models.transformers_seams import no_init_weights
from longview.requests import Limits

GiB = 1 << 30
MAX_FRAMES = Limits().max_frames
"""Of one video, where nothing else is said."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _qwen2(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }


QWEN2 = {
    "0.5b": _qwen2(896, 4864, 24, 14, 2, 151936, tied=True),
    "1.5b": _qwen2(1536, 8960, 28, 12, 2, 151936, tied=True),
    "7b": _qwen2(3584, 18944, 28, 28, 4, 152064, tied=False),
}
SMOLLM2 = {**_qwen2(576, 1536, 30, 9, 3, 49152, tied=True), "max_position_embeddings": 8192}
LONG_SMOLLM2 = {**SMOLLM2, "max_position_embeddings": 1 << 20}
"""With room for a thousand pictures in the sequence; a real one has been trained on 8,192 positions."""
SIGLIP_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
AIMV2_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "image_size": 448,
    "patch_size": 14,
}
AIMV2_SMALL = {**AIMV2_LARGE, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
CLIP_BASE = {**SIGLIP_BASE, "image_size": 336, "patch_size": 14}
CONVNEXT_TINY = {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}
VICUNA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}

DIMENSIONS: dict[str, tuple[str, dict[str, Any]]] = {
    # no model of this family is so small: a language model like SmolLM2-135M, a tower like SigLIP-B/16
    "owl3-0.2b": ("owl3", {**SMOLLM2, "vision_config": SIGLIP_BASE, "hyper_layers": [1, 11, 21, 30]}),
    # the same language model in the other families: 256 and 576 positions a picture, as in their releases
    "ovis2-0.2b": (
        "ovis2",
        {
            "llm_config": LONG_SMOLLM2,
            "multimodal_max_length": LONG_SMOLLM2["max_position_embeddings"],
            "visual_tokenizer_config": {
                "model_type": "aimv2_visual_tokenizer",
                "backbone_config": AIMV2_SMALL,
                "vocab_size": 4096,
                "hidden_stride": 2,
            },
        },
    ),
    "mgm-0.2b": (
        "mgm",
        {
            "text_config": {"model_type": "llama", **LONG_SMOLLM2},
            "vision_config": CLIP_BASE,
            "vision_aux_config": CONVNEXT_TINY,
            "mm_projector_type": "mlp2x_gelu",
        },
    ),
    "owl3-1b": ("owl3", {**QWEN2["0.5b"], "vision_config": SIGLIP, "hyper_layers": [1, 9, 17, 24]}),
    "owl3-2b": ("owl3", {**QWEN2["1.5b"], "vision_config": SIGLIP, "hyper_layers": [7, 15, 23, 26]}),
    "owl3-7b": ("owl3", {**QWEN2["7b"], "vision_config": SIGLIP, "hyper_layers": [7, 15, 23, 26]}),
    "ovis2-2b": (
        "ovis2",
        {
            "llm_config": QWEN2["1.5b"],
            "visual_tokenizer_config": {
                "model_type": "aimv2_visual_tokenizer",
                "backbone_config": AIMV2_LARGE,
                "vocab_size": 65536,
                "hidden_stride": 2,
            },
        },
    ),
    "mgm-7b": ("mgm", {"text_config": VICUNA_7B, "mm_projector_type": "mlp2x_gelu"}),
}
"""Family and config by name. `demo` and its like are the embedded models, with their weights."""


@dataclass
class Subject:
    """A model to measure."""

    name: str
    engine: Engine
    random_features: bool
    """The tower is left out: the feature cache is filled with random features before a question is asked."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`compile`, `quantize` and `kv_dtype`, where given."""

    @property
    def model(self) -> Any:
        return self.engine.model

    @property
    def pictures_in_sequence(self) -> bool:
        """Whether pictures take positions of the language sequence."""
        return bool(type(self.model).footprint(self.model.config, self.model.dtype).picture_positions)

    def question(self, num_pictures: int, text: str = "What do the pictures show?", first: int = 0) -> list[Message]:
        """A question about so many uncropped pictures: a video of that many frames, or several."""
        if not num_pictures:
            return [ask(text)]
        frames = [picture(first + number) for number in range(num_pictures)]
        each = -(-num_pictures // -(-num_pictures // MAX_FRAMES))
        videos = [video(frames[begin : begin + each]) for begin in range(0, num_pictures, each)]
        messages = [ask(text, *videos)]
        if self.random_features:
            self._cache_random_features(messages)
        return messages

    def _cache_random_features(self, messages: list[Message]) -> None:
        model, scheduler = self.model, self.engine.scheduler
        media = open_media(messages[0].media)
        encoder_inputs = self.engine.processor.prepare(messages, media).encoder_inputs
        shape = (
            encoder_inputs[0].num_pictures,
            model.config.patches_per_picture,
            model.get_input_embeddings().embedding_dim,
        )
        for encoder_input in encoder_inputs:
            features = torch.empty(shape, dtype=model.dtype, device=model.device)
            key = feature_key(scheduler.model_id, media[encoder_input.medium], encoder_input)
            self.engine.feature_cache.put(key, features.normal_(std=0.5))

    def clear_caches(self, features: bool = False) -> None:
        """Empty the prefix cache, and the feature cache too if `features`."""
        self.engine.prefix_cache.clear()
        if features:
            self.engine.feature_cache.clear()


def open_subject(
    dims: str,
    random_features: bool,
    dtype: str | None,
    device: str | None,
    compile: bool = False,
    quantize: str | None = None,
    kv_dtype: str | None = None,
) -> Subject:
    """A model of named dimensions with random weights; or a real one: embedded, a folder, a hub id.

    Raises:
        RequestError: no such dimensions, or they do not fit into this machine's memory.
    """
    given = {"compile": compile, "quantize": quantize, "kv_dtype": kv_dtype}
    options = {name: value for name, value in given.items() if value}
    if dims in DIMENSIONS:
        place = device or best_device()
        model, processor = random_model(dims, dtype or "bfloat16", "cpu" if quantize is not None else place)
        budget = Budget(features=8 * GiB, kv_cache=64 * GiB, prefixes=2 * GiB)
        if quantize is not None:
            if place != "cpu":
                raise RequestError("--quantize of random weights runs on a CPU; add --device cpu, or name a checkpoint")
            quantization.check(quantize, place, model.dtype)
            quantization.quantize(model, quantize)
        if kv_dtype is not None:
            if not hasattr(model.config, "kv_dtype"):
                raise RequestError(f"{dims} keeps pictures in the language sequence; --kv-dtype is of mPLUG-Owl3")
            model.config.kv_dtype = kv_dtype
        return Subject(dims, Engine(model.to(place), processor, dims, None, budget, compile), random_features, options)
    check_name(dims)
    engine = load(dims, device=device, dtype=dtype, compile=compile, quantize=quantize, kv_dtype=kv_dtype)
    return Subject(dims, engine, random_features, options)


def check_name(dims: str) -> None:
    """
    Raises:
        RequestError: `dims` is none of DIMENSIONS and cannot be the name of a model.
    """
    if not (dims in DEMOS or "/" in dims or ":" in dims):
        known = ", ".join([*DIMENSIONS, *DEMOS])
        raise RequestError(f"unknown --dims {dims!r}; give {known}, a checkpoint folder, or a hub id")


def random_model(dims: str, dtype: str, device: str = "cpu") -> tuple[Any, Any]:
    """A model of named dimensions, made where it is to be, and its processor."""
    name, fields = DIMENSIONS[dims]
    family = families()[name]
    config = family.Config(**fields)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(getattr(torch, dtype))
        with no_init_weights(), torch.device(device):
            model = family.Model(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    fill(model)
    return model, family.Processor(byte_tokenizer(), config)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Random weights: matrices small enough that nothing overflows, norms one, biases zero."""
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        if parameter.dim() < 2:
            flat.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        drawn = (block * parameter.shape[-1] ** -0.5).to(parameter.device, parameter.dtype)
        for begin in range(0, len(flat), len(drawn)):
            piece = flat[begin : begin + len(drawn)]
            piece.copy_(drawn[: len(piece)])


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, Qwen2's special tokens, and `image`, so that the placeholder has five tokens as in Qwen2."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("i", "m"), ("im", "a"), ("ima", "g"), ("imag", "e")]
    vocabulary = {token: number for number, token in enumerate([*letters, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=list(SPECIALS), eos_token=SPECIALS[0]
    )


def picture(number: int, side: int = 64) -> Image.Image:
    """A picture of random pixels, by number."""
    noise = torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return Image.fromarray(noise.numpy())
