"""The vision towers of Ovis2: AIMv2 under its official names, which transformers lacks; SigLIP and CLIP around theirs.

pixels (n, 3, R, R) ── patches + positions (n, P, d) ── blocks ── features (n, P, d), without the final norm
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel, GradientCheckpointingLayer, PreTrainedModel, SiglipVisionModel

from longview.models.fused_gelu import fuse_gelu
from longview.models.ovis2.config import Aimv2BackboneConfig, VisualTokenizerConfig
from longview.models.transformers_seams import Aimv2RMSNorm, attention_implementation


class Aimv2Patchifier(nn.Module):
    """Pixels (n, 3, R, R) → patches (n, P, d), row after row."""

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.norm = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.norm(self.proj(pixel_values).flatten(2).transpose(1, 2))


class Aimv2Preprocessor(nn.Module):
    """Patches plus the embeddings of their positions."""

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.patchifier = Aimv2Patchifier(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_size // config.patch_size) ** 2, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patchifier(pixel_values)
        return patches + self.pos_embed[:, : patches.shape[1]].to(patches.device)


class Aimv2Attention(nn.Module):
    """Every patch attends to every patch. Queries, keys and values come out of one matrix."""

    is_causal = False
    num_key_value_groups = 1

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        heads = (3, self.config.num_attention_heads, -1)
        query, key, value = self.qkv(hidden).unflatten(-1, heads).permute(2, 0, 3, 1, 4)  # (n, H, P, head width)
        dropout = self.config.attention_dropout if self.training else 0.0
        scaling = query.shape[-1] ** -0.5
        attend = attention_implementation(self.config)
        attended, _ = attend(self, query, key, value, None, is_causal=False, scaling=scaling, dropout=dropout)
        return functional.dropout(self.proj(attended.flatten(2)), self.config.projection_dropout, self.training)


class Aimv2FeedForward(nn.Module):
    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        wide, bias = config.intermediate_size, config.use_bias
        self.fc1 = nn.Linear(config.hidden_size, wide, bias=bias)
        self.fc2 = nn.Linear(wide, config.hidden_size, bias=bias)
        self.fc3 = nn.Linear(config.hidden_size, wide, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(functional.silu(self.fc1(hidden)) * self.fc3(hidden))


class Aimv2Block(GradientCheckpointingLayer):
    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.norm_1 = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Aimv2Attention(config)
        self.norm_2 = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Aimv2FeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm_1(hidden))
        return hidden + self.mlp(self.norm_2(hidden))


class Aimv2Trunk(nn.Module):
    """The blocks. The norm after them is in every checkpoint, and Ovis2 was trained without applying it.

    `tower_norm` of the config applies it.
    """

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Aimv2Block(config) for _ in range(config.num_hidden_layers)])
        self.post_trunk_norm = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self._applies_norm = config.tower_norm

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return self.post_trunk_norm(hidden) if self._applies_norm else hidden


class Aimv2Backbone(PreTrainedModel):
    """AIMv2: pixels (n, 3, R, R) → features (n, P, d), the last block's output.

    transformers' AIMv2 computes the same with three matrices in place of `qkv`; this one has the official names.
    """

    config_class = Aimv2BackboneConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Aimv2Block"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__(config)
        self.preprocessor = Aimv2Preprocessor(config)
        self.trunk = Aimv2Trunk(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Aimv2Preprocessor):
            nn.init.normal_(module.pos_embed, std=self.config.initializer_range)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.trunk(self.preprocessor(pixel_values))


class ContrastiveBackbone(nn.Module):
    """A SigLIP or CLIP tower: pixels (n, 3, R, R) → features (n, P, d), CLIP's with its class token first."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.vision_model.embeddings(pixel_values)
        if hasattr(self.vision_model, "pre_layrnorm"):
            hidden = self.vision_model.pre_layrnorm(hidden)
        return self.vision_model.encoder(inputs_embeds=hidden).last_hidden_state


def make_backbone(config: VisualTokenizerConfig) -> nn.Module:
    """The tower that a visual tokenizer names."""
    if config.kind == "aimv2":
        return Aimv2Backbone(config.backbone_config)
    tower = (SiglipVisionModel if config.kind == "siglip" else CLIPVisionModel)(config.backbone_config)
    fuse_gelu(tower)
    return ContrastiveBackbone(tower)
