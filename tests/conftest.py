"""What all tests share: one thread, a byte tokenizer, and pictures made of noise."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longview.models.families import Family, families

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and Qwen2's three special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=SPECIALS)


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


VARIANTS = [(name, variant) for name, family in sorted(families().items()) for variant in family.Config.variants]


@pytest.fixture(scope="session", params=VARIANTS, ids="-".join)
def tiny(request, tokenizer):
    """Each family's variants in turn, as a tiny random model and its processor: the laws hold for all."""
    name, variant = request.param
    return tiny_model(families()[name], variant, tokenizer)


def tiny_model(family: Family, variant: str, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> tuple[Any, Any]:
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
