"""Owl3Config: every hyper-parameter of the three mPLUG-Owl3 releases; a release is three fields, not a class.

| release | `gate`     | `projector_layers` | token t attends to a picture at s if | MI-RoPE position |
|---------|------------|--------------------|--------------------------------------|------------------|
| 240728  | `"token"`  | 1                  | t > s                                | s + 1            |
| 241014  | `"vector"` | 1                  | t > s                                | s + 1            |
| 241101  | `"none"`   | 2                  | t ≥ s                                | s                |

s is the index of the placeholder's first token. The released config.json files do not say which release they are of;
`convert.complete` finds it in the tensors.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, SiglipVisionConfig

from longview.models.transformers_seams import SubConfigSpec

GATES = {"240728": "token", "241014": "vector", "241101": "none"}
"""How each release fuses text and pictures."""


@strict
class Owl3Config(Qwen2Config):
    """A Qwen2 language model, a SigLIP tower, and the blocks in which text tokens attend to pictures.

    The language model's fields are `Qwen2Config`'s, flat, as in the official config.json.
    """

    model_type = "mplugowl3"
    variants = tuple(GATES)
    sub_configs_defaults = {"vision_config": SubConfigSpec(SiglipVisionConfig)}  # noqa: RUF012 (a plain dict upstream)

    vision_config: Any = None
    """The tower: a `SiglipVisionConfig`, or its fields."""
    hyper_layers: list[int] = field(default_factory=lambda: [1, 9, 17, 25])
    """Blocks with hyper attention, counted from 1 as in the checkpoints: [1, 9, 17, 25] are blocks 0, 8, 16, 24."""
    gate: str = "none"
    """How text and pictures are fused: by a gate per token, by a gate vector, or in one softmax; see `GATES`."""
    projector_layers: int = 2
    """Linear layers between tower and language model; two have an exact GELU between them."""
    vision_batch_size: int = 16
    """Pictures the tower encodes at a time; bounds memory, does not change results."""
    kv_dtype: str | None = None
    """"int8": keys and values of pictures are kept in 8 bits; see `longview.models.owl3.int8`."""

    @property
    def release(self) -> str:
        return next(release for release, gate in GATES.items() if gate == self.gate)

    @property
    def joint_softmax(self) -> bool:
        """One softmax over pictures and text (241101), instead of two and a gate."""
        return self.gate == "none"

    @property
    def grid_side(self) -> int:
        """Patches along one side of a picture."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def patches_per_picture(self) -> int:
        return self.grid_side**2

    @property
    def picture_size(self) -> int:
        """Side in pixels that the processor resizes pictures to: 378 for 241101, 384 before (the tower drops 6)."""
        return self.grid_side * self.vision_config.patch_size if self.joint_softmax else self.vision_config.image_size

    @classmethod
    def tiny(cls, release: str = "241101", **changes: Any) -> Owl3Config:
        """A model of a few hundred kilobytes with every mechanism of a release in it, for tests."""
        settings: dict[str, Any] = {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "hyper_layers": [1, 3],
            "gate": GATES[release],
            "projector_layers": 2 if release == "241101" else 1,
            "tie_word_embeddings": release == "241014",
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
        }
        return cls(**{**settings, **changes})
