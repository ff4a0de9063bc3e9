"""OvisConfig: every hyper-parameter of Ovis2; the six releases differ in sizes only.

    OvisConfig                       model_type "ovis"
    ├── llm_config                   Qwen2Config
    └── visual_tokenizer_config      VisualTokenizerConfig, "aimv2_visual_tokenizer" | "siglip_…" | "clip_…"
        └── backbone_config          Aimv2BackboneConfig | SiglipVisionConfig | CLIPVisionConfig

The official config.json opens as it is and is written back in the same form. transformers has an `Ovis2Config` and an
"aimv2" of its own, with other fields: ours have other names, or are found by their place in the tree and never
registered, so they do not collide. A config.json of the former opens as well.
"""

from __future__ import annotations

import copy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, PreTrainedConfig, Qwen2Config, SiglipVisionConfig

from longview.errors import CheckpointError
from longview.models.transformers_seams import SubConfigSpec

NUM_INDICATORS = 5
"""Rows at the end of the visual embedding table that are looked up, never mixed: see `fusion.py`."""
TOKENIZE_FUNCTIONS = ("softmax", "st_argmax", "gumbel_argmax")


@strict
class Aimv2BackboneConfig(PreTrainedConfig):
    """The tower of the released models."""

    model_type = "aimv2"

    hidden_size: int = 1024
    intermediate_size: int = 2816
    num_hidden_layers: int = 24
    num_attention_heads: int = 8
    num_channels: int = 3
    image_size: int = 224
    """Side of a crop, in pixels."""
    patch_size: int = 14
    rms_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    projection_dropout: float = 0.0
    qkv_bias: bool = False
    use_bias: bool = False
    initializer_range: float = 0.02
    tower_norm: bool = False
    """The norm after the last block is applied: not by the releases, but by transformers' port; see `port.py`."""


BACKBONES: dict[str, type[PreTrainedConfig]] = {
    "aimv2": Aimv2BackboneConfig,
    "siglip": SiglipVisionConfig,
    "clip": CLIPVisionConfig,
}


@strict
class VisualTokenizerConfig(PreTrainedConfig):
    """A tower, and the head that turns its features into visual tokens."""

    model_type = "aimv2_visual_tokenizer"

    backbone_config: Any = None
    """The tower, or its fields; `kind` names which."""
    vocab_size: int = 16384
    """Visual words, of which the last five are indicators; 65536 in the releases."""
    tokenize_function: str = "softmax"
    """How head logits become a visual token: "softmax", "st_argmax" or "gumbel_argmax"."""
    tau: float = 1.0
    """Temperature of "gumbel_argmax"."""
    hidden_stride: int = 1
    """Patches along the side of the square that becomes one visual token; 2 in the releases."""
    drop_cls_token: bool = False
    """A CLIP tower's class token is left out."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.model_type = kwargs.pop("model_type", None) or self.model_type  # which of the three, per instance
        if self.kind not in BACKBONES:
            known = ", ".join(f"{kind}_visual_tokenizer" for kind in BACKBONES)
            raise CheckpointError(
                f"unknown visual tokenizer {self.model_type!r} in config.json; expected one of {known}"
            )
        if self.tokenize_function not in TOKENIZE_FUNCTIONS:
            raise CheckpointError(
                f"unknown tokenize_function {self.tokenize_function!r} in config.json; expected one of "
                f"{', '.join(TOKENIZE_FUNCTIONS)}"
            )
        if not isinstance(self.backbone_config, PreTrainedConfig):
            fields = {key: value for key, value in (self.backbone_config or {}).items() if key != "model_type"}
            self.backbone_config = BACKBONES[self.kind](**fields)
        self.drop_cls_token = self.drop_cls_token and self.kind == "clip"
        super().__post_init__(**kwargs)

    @property
    def kind(self) -> str:
        """The tower's name: "aimv2", "siglip" or "clip"."""
        return self.model_type.removesuffix("_visual_tokenizer")

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        return {"backbone_config": type(self.backbone_config)}

    @property
    def tokens_per_crop(self) -> int:
        """P: visual tokens of a crop; 256 in the releases."""
        backbone = self.backbone_config
        side = backbone.image_size // backbone.patch_size
        if self.kind == "clip" and not self.drop_cls_token:
            return side**2 + 1
        return (-(-side // self.hidden_stride)) ** 2

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "model_type": self.model_type}


@strict
class OvisConfig(PreTrainedConfig):
    """A Qwen2 language model, a visual tokenizer, and the table that embeds the visual tokens."""

    model_type = "ovis"
    variants = ("softmax", "st_argmax", "siglip", "clip")
    sub_configs_defaults = {  # noqa: RUF012 (transformers reads it as a plain dict)
        "llm_config": SubConfigSpec(Qwen2Config),
        "visual_tokenizer_config": SubConfigSpec(VisualTokenizerConfig),
    }

    llm_config: Any = None
    """The language model: a `Qwen2Config`, or its fields."""
    visual_tokenizer_config: Any = None
    """The visual tokenizer: a `VisualTokenizerConfig`, or its fields."""
    multimodal_max_length: int = 32768
    """Positions kept of text and pictures together: the first in training, the last in generation."""
    disable_tie_weight: bool = False
    """The head is a matrix of its own, whatever `llm_config.tie_word_embeddings` is."""
    conversation_formatter_class: str = "QwenConversationFormatter"
    vision_batch_size: int = 8
    """Crops that the visual tokenizer encodes at a time; bounds memory, does not change results."""

    def __post_init__(self, **kwargs: Any) -> None:
        kind = "qwen2"
        if isinstance(self.llm_config, dict):
            kind = self.llm_config.get("model_type", kind)
            # old versions of transformers wrote every key they knew; a null in place of a default breaks Qwen2
            known = Qwen2Config.__dataclass_fields__
            self.llm_config = {
                key: value for key, value in self.llm_config.items() if value is not None or key in known
            }
        if kind != "qwen2":
            raise CheckpointError(
                f"this Ovis has a {kind!r} language model; longview runs those with qwen2: Ovis2-1B, 2B, 4B, 8B, 16B, "
                "34B"
            )
        super().__post_init__(**kwargs)
        if self.disable_tie_weight:
            self.llm_config.tie_word_embeddings = False
        self.hidden_size = self.llm_config.hidden_size

    @classmethod
    def get_config_dict(cls, name: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of a folder's config.json, which may be that of transformers' port."""
        from longview.models.ovis2 import port  # which needs this module

        fields, rest = super().get_config_dict(name, **kwargs)
        return port.official_fields(fields) if port.is_port(fields) else fields, rest

    def get_text_config(self, *_: Any, **__: Any) -> Qwen2Config:
        return self.llm_config

    @property
    def tied(self) -> bool:
        """The head is the table of text embeddings."""
        return self.llm_config.tie_word_embeddings

    @property
    def release(self) -> str:
        """What tells one Ovis from another beside its sizes: the tower and the kind of visual token."""
        visual = self.visual_tokenizer_config
        return f"{visual.kind}, {visual.tokenize_function}"

    @property
    def patches_per_picture(self) -> int:
        """P: positions of the language sequence that one crop takes."""
        return self.visual_tokenizer_config.tokens_per_crop

    @property
    def picture_size(self) -> int:
        """R: pixels along the side of a crop."""
        return int(self.visual_tokenizer_config.backbone_config.image_size)

    @property
    def max_position_embeddings(self) -> int:
        """Positions of the language sequence, text and pictures together."""
        return min(self.llm_config.max_position_embeddings, self.multimodal_max_length)

    @classmethod
    def tiny(cls, variant: str = "softmax", **changes: Any) -> OvisConfig:
        """A model of a few hundred kilobytes with every mechanism of the family in it, for tests.

        "softmax" merges an odd grid and ties the head; "st_argmax" merges nothing; "siglip" and "clip" have those
        towers. "gumbel_argmax" is no variant of the laws: it draws at random, in evaluation too.
        """
        kind = variant if variant in BACKBONES else "aimv2"
        backbone = {
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 42 if variant == "softmax" else 28,
            "patch_size": 14,
        }
        settings: dict[str, Any] = {
            "llm_config": {
                "vocab_size": 320,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "tie_word_embeddings": variant == "softmax",
            },
            "visual_tokenizer_config": {
                "model_type": f"{kind}_visual_tokenizer",
                "backbone_config": backbone,
                "vocab_size": 96,
                "tokenize_function": variant if variant in TOKENIZE_FUNCTIONS else "softmax",
                "hidden_stride": 2 if variant in ("softmax", "siglip") else 1,
                "drop_cls_token": False,
            },
        }
        return cls(**copy.deepcopy({**settings, **changes}))
