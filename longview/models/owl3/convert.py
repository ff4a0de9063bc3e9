"""Whose checkpoint is this, and which release: decided from what the folder holds.

Official names ↔ ours: they are the same. What differs between releases:

| tensor                                                        | 240728          | 241014   | 241101                |
|---------------------------------------------------------------|-----------------|----------|-----------------------|
| `language_model.model.layers.N.self_attn.v_kv_proj.*`         | hyper layers    | same     | same                  |
| `….self_attn.gate_proj.0.{weight,bias}`                       | (D, D), (D)     | –        | –                     |
| `….self_attn.gate`                                            | –               | (hidden) | –                     |
| `vision2text_model.{weight,bias}` or `.0.*`, `.2.*`           | one layer       | one      | two, GELU between     |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from transformers import SiglipVisionConfig

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.owl3.config import Owl3Config

_POSITIVE = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
    *("max_position_embeddings", "vision_batch_size"),
)
_POSITIVE_VISION = ("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size")
_SO400M = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}
"""The tower of every release, which the authors' config class has where config.json has none."""
_HYPER = re.compile(r"language_model\.model\.layers\.(\d+)\.self_attn\.v_kv_proj\.weight")


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to mPLUG-Owl3."""
    return config.get("model_type") == "mplugowl3" or "mPLUGOwl3Model" in (config.get("architectures") or [])


def complete(config: Owl3Config, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Set the fields of `config` that only the tensors know: release, projector, hyper layers, vocabulary.

    Raises:
        CheckpointError: the tensors contradict the config, or are not those of an mPLUG-Owl3.
    """
    layers = sorted(int(match[1]) for name in shapes if (match := _HYPER.fullmatch(name)))
    if not layers:
        raise CheckpointError(
            f"{folder} holds no hyper attention (no tensor *.self_attn.v_kv_proj.weight), so it is not an mPLUG-Owl3 "
            "checkpoint; name a folder with the official weights"
        )
    _complete_tower(config, shapes, folder)
    vision = config.vision_config
    checkpoint.check_numbers(config, _POSITIVE, folder)
    checkpoint.check_numbers(vision, _POSITIVE_VISION, folder)
    checkpoint.check_blocks(shapes, "language_model.model.layers.", config.num_hidden_layers, folder)
    checkpoint.check_blocks(shapes, "vision_model.encoder.layers.", vision.num_hidden_layers, folder, unused=1)
    theta = config.rope_parameters.get("rope_theta")
    if not isinstance(theta, (int, float)) or not 0 < theta < float("inf"):
        raise CheckpointError(f"{folder / 'config.json'}: rope_theta is {theta!r:.40}; expected a number above 0")
    attention = f"language_model.model.layers.{layers[0]}.self_attn"
    if f"{attention}.gate_proj.0.weight" in shapes:
        config.gate = "token"
    elif f"{attention}.gate" in shapes:
        config.gate = "vector"
    else:
        config.gate = "none"
    config.projector_layers = 2 if "vision2text_model.0.weight" in shapes else 1
    config.hyper_layers = [layer + 1 for layer in layers]
    config.vocab_size = shapes.get("language_model.model.embed_tokens.weight", (config.vocab_size,))[0]
    config.vision_config.vision_use_head = "vision_model.head.probe" in shapes


def _complete_tower(config: Owl3Config, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Set the sizes of the tower that config.json leaves out, as the tensors or else the authors' class have them."""
    written = checkpoint.read_config(folder).get("vision_config") or {}
    left_out = set(_SO400M) - set(written)
    positions = shapes.get("vision_model.embeddings.position_embedding.weight", ())
    patches = shapes.get("vision_model.embeddings.patch_embedding.weight", ())
    wide = shapes.get("vision_model.encoder.layers.0.mlp.fc1.weight", ())
    if not left_out or len(positions) != 2 or len(patches) != 4 or len(wide) != 2:
        return
    blocks = {name.split(".")[3] for name in shapes if name.startswith("vision_model.encoder.layers.")}
    vision, side = config.vision_config, isqrt(positions[0])
    patch = patches[-1] if "patch_size" in left_out else vision.patch_size
    found = {
        "hidden_size": positions[1],
        "patch_size": patches[-1],
        "intermediate_size": wide[0],
        "num_hidden_layers": len(blocks),
        "num_attention_heads": 16 if not written or positions[1] == 1152 else vision.num_attention_heads,
        # several sizes have as many patches: 378 to 391 pixels have 27 of 14 a side
        "image_size": _SO400M["image_size"] if _SO400M["image_size"] // patch == side else side * patch,
    }
    defaults = SiglipVisionConfig()
    for name in left_out:
        if getattr(vision, name) == getattr(defaults, name):  # else it was set by the caller
            setattr(vision, name, found[name])


def optional(config: Owl3Config) -> tuple[str, ...]:
    """Prefixes of tensors that a checkpoint may lack: the tower's unread end, and a head tied to the embeddings."""
    unread = (
        f"vision_model.encoder.layers.{config.vision_config.num_hidden_layers - 1}.",
        "vision_model.post_layernorm.",
        "vision_model.head.",
    )
    return (*unread, "language_model.lm_head.") if config.tie_word_embeddings else unread


def official_config(config: Owl3Config, folder: Path) -> dict[str, Any]:
    """The config.json of the releases; which of them it is, their code knows by itself."""
    fields = checkpoint.as_transformers_4(config.to_dict())
    ours = ("gate", "projector_layers")
    written = {key: value for key, value in fields.items() if key not in ours}
    written["vision_config"] = checkpoint.as_transformers_4(config.vision_config.to_dict())
    return {**written, "architectures": ["mPLUGOwl3Model"]}
