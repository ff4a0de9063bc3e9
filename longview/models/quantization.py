"""Weights of 8 or 4 bits for the language model; towers, connector and head keep theirs.

bitsandbytes quantises while a checkpoint is opened: LLM.int8 (arXiv 2208.07339) and NF4 with double quantisation
(arXiv 2305.14314), as the published command lines have it.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from longview.errors import MissingExtraError, RequestError


def quantization(model_class: Any, load_8bit: bool, load_4bit: bool, device: str, dtype: Any) -> BitsAndBytesConfig:
    """How a family's model is to be quantised: an argument of `from_pretrained`.

    Raises:
        RequestError: both are asked for, or the device cannot do it.
        MissingExtraError: bitsandbytes is not installed.
    """
    flag = "--load-8bit" if load_8bit else "--load-4bit"
    if load_8bit and load_4bit:
        raise RequestError("--load-8bit and --load-4bit contradict each other; choose one")
    kind = device.partition(":")[0]
    if kind == "mps":
        raise RequestError(
            f"{flag} needs bitsandbytes, which does not run on mps; leave it out, or choose --device cpu"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(flag, "bitsandbytes", "quant")
    kept = unquantised(model_class)
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    half = torch.float16 if kind == "cuda" else torch.bfloat16  # half precision crawls on a CPU
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else half,
        llm_int8_skip_modules=kept,
    )


def unquantised(model_class: Any) -> list[str]:
    """Patterns of the modules that stay as they are: every part of the model but the language model, and its head."""
    marks = [mark.strip(".") for part, names in model_class.parts.items() if part != "language" for mark in names]
    return [*(rf"(.*\.)?{mark}" for mark in marks), "lm_head"]
