"""HalvesConfig: a Qwen2 language model's fields, and the size of a picture."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config


@strict
class HalvesConfig(Qwen2Config):
    """The language model's fields are `Qwen2Config`'s."""

    model_type = "halves"
    variants = ("colours",)

    picture_size: int = 32
    """R: side in pixels that pictures are resized to."""
    vision_batch_size: int = 64
    """Pictures encoded at a time; bounds memory, does not change results."""

    @property
    def release(self) -> str:
        """What tells one model of the family from another beside its sizes: nothing."""
        return "toy"

    @property
    def patches_per_picture(self) -> int:
        """P: a picture is two tokens."""
        return 2

    @classmethod
    def tiny(cls, variant: str = "colours", **changes: Any) -> HalvesConfig:
        """A model of a few hundred kilobytes, for tests."""
        settings: dict[str, Any] = {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        }
        return cls(**{**settings, **changes})
