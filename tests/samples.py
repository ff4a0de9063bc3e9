"""Pictures made of noise, and tiny random models in which every mistake shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import PreTrainedTokenizerFast

from longview.models.families import Family, families

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FOUR_BITS = {"mgm": ("plain", "text_config"), "owl3": ("241101", ""), "ovis2": ("softmax", "llm_config")}
"""A variant of each family, and where its config has that of the language model."""
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


def four_bit_folders(tokenizer: PreTrainedTokenizerFast, root: Path) -> dict[str, Path]:
    """A tiny model of each family, with rows of 64 weights, as bitsandbytes' kernel for answers on CPUs takes them."""
    found, wide = {}, {"intermediate_size": 128}
    for name, (variant, words) in FOUR_BITS.items():
        config = families()[name].Config
        changes = {words: {**getattr(config.tiny(variant), words).to_dict(), **wide}} if words else wide
        model, processor = tiny_model(families()[name], variant, tokenizer, **changes)
        found[name] = root / name
        model.save_pretrained(found[name])
        processor.save_pretrained(found[name])
    return found


def sharpen(model: torch.nn.Module) -> None:
    """Freshly drawn weights barely attend to anything; larger ones make every mistake visible in the logits."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name:
                parameter.mul_(4 if "embed" in name else 2)
            elif "bias" in name:
                parameter.normal_(std=0.1)


def sign(*lines: str, size: int = 40) -> Image.Image:
    """Dark letters on white, one line under another."""
    picture = Image.new("RGB", (640, 60 + 80 * len(lines)), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((30, 30 + 80 * number), line, "black", ImageFont.load_default(size))
    return picture


def tiny_painter(folder: Path) -> Path:
    """An SDXL pipeline of a few hundred kilobytes with random weights, saved; its pictures are 64 × 64."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=64,
    )
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {token: n for n, token in enumerate([*letters, *(f"{c}</w>" for c in letters)])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    words = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, hidden_act="gelu",
    )  # fmt: skip
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(words),
        text_encoder_2=CLIPTextModelWithProjection(words),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder
