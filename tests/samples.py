"""Pictures made of noise, and tiny random models in which every mistake shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from longview.models.families import Family

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
POSITIONS = 16  # tokens that the text tower of `towers` reads at once


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def tiny_model(family: Family, variant: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> tuple[Any, Any]:
    """A family's tiny random model and its processor."""
    torch.manual_seed(0)
    config = family.Config.tiny(variant, **changes)
    model = family.Model(config).eval()
    sharpen(model)
    return model, family.Processor(tokenizer, config)


def sharpen(model: torch.nn.Module) -> None:
    """Freshly drawn weights barely attend to anything; larger ones make every mistake visible in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.mul_(4 if "embed" in name else 2)
            elif "bias" in name:
                parameter.normal_(std=0.1)
