"""Weights of the language model in 8 or 4 bits: less memory, and faster decoding, which reads all of them for a token.

`quantize`: on a CPU, by PyTorch's own weight-only kernels, which torchao calls as well (its own packing of 4 bits does
not run on CPUs). `bitsandbytes_config`: on CUDA and CPUs, LLM.int8 (arXiv 2208.07339) and NF4 with double quantisation
(arXiv 2305.14314) while a checkpoint is opened, as the published command lines have it.

Only the linear layers of the language model's blocks are quantised. The vision tower, the connector (`v_kv_proj` and
gates), the embeddings and the head stay as they are: they are small, or the answers depend on them most.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from longview.errors import MissingExtraError, RequestError
from longview.models.base import Model
from longview.names import check_one_quantization, check_quantize

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of a kernel on a hub
KEPT = ("v_kv_proj", "self_attn.gate_proj", "router", "block_sparse_moe.gate")
"""What the names of layers contain, within the language model's blocks, that stay as they are."""
GROUP = 32
"""Neighbouring weights of a row that share a scale, in 4 bits."""
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in NF4: 64 share a scale of a byte, and 256 scales one of fp32 (arXiv 2305.14314, section 3)."""
FEW = 16
"""Rows up to which the 8-bit kernel is faster than dequantising the weights."""


def check(kind: str, device: str, dtype: torch.dtype | None) -> None:
    """
    Raises:
        RequestError: there is no such kind, or not on this device or in this dtype.
    """
    check_quantize(kind)
    place = device.partition(":")[0]
    if place == "mps":
        raise RequestError(
            f"quantize={kind!r} runs on cpu and cuda, not on mps; choose another device, or leave it out"
        )
    if place == "cpu" and dtype not in (None, torch.bfloat16):
        raise RequestError(f"quantize={kind!r} computes in bfloat16 on a CPU, not in {dtype}; leave dtype out")


def quantize(model: Model, kind: str) -> Model:
    """Replace the linear layers of the language model's blocks, in place, one by one, so that memory never doubles."""
    quantized = Int8Linear if kind == "int8" else Int4Linear
    for block in model.language_model.model.layers:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.Linear) and not any(mark in name for mark in KEPT):
                parent, _, last = name.rpartition(".")
                setattr(block.get_submodule(parent), last, quantized(module))
    return model


def bitsandbytes_config(
    model_class: type[Model], load_8bit: bool, load_4bit: bool, device: str, dtype: Any, option: str | None = None
) -> BitsAndBytesConfig:
    """How a family's model is to be quantised: an argument of `from_pretrained`.

    Args:
        option: The option behind it, for the errors; default: the flag.

    Raises:
        RequestError: both are given, or the device has no kernels for it.
        MissingExtraError: bitsandbytes is not installed.
    """
    flag = option or ("--load-8bit" if load_8bit else "--load-4bit")
    check_one_quantization(None, load_8bit, load_4bit)
    kind = device.partition(":")[0]
    if kind == "mps":
        raise RequestError(
            f"{flag} needs bitsandbytes, which does not run on mps; leave it out, or choose --device cpu"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(flag, "bitsandbytes")
    kept = unquantised(model_class)
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    half = torch.float16 if kind == "cuda" else torch.bfloat16  # fp16 is slow on a CPU
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else half,
        llm_int8_skip_modules=kept,
    )


def unquantised(model_class: type[Model]) -> list[str]:
    """Patterns of the modules that stay as they are: every component but the language model, and its head."""
    marks = [mark.strip(".") for part, names in model_class.parts.items() if part != "language" for mark in names]
    return [*(rf"(.*\.)?{mark}" for mark in marks), "lm_head"]


# ── layers for CPUs ──────────────────────────────────────────────────────────────────────────────────────────────────


class Int8Linear(nn.Module):
    """A linear layer whose weights are 8-bit integers with a scale a row: w = integer · scale."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        self.register_buffer("weight", (weight / scale[:, None]).round_().to(torch.int8))
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2)
        if len(rows) <= FEW:
            output = torch.ops.aten._weight_int8pack_mm(rows.contiguous(), self.weight, self.scale)
            output = output if self.bias is None else output + self.bias
        else:
            weight = self.weight.to(hidden.dtype) * self.scale[:, None]
            output = nn.functional.linear(rows, weight, self.bias)
        return output.view(*hidden.shape[:-1], self.out_features)


class Int4Linear(nn.Module):
    """A linear layer whose weights are 4-bit integers; `GROUP` neighbours share a scale and a zero point."""

    weight: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        if self.in_features % GROUP:
            raise RequestError(
                f"quantize='int4' needs rows of a multiple of {GROUP} weights, and one has {self.in_features}; "
                "use quantize='int8'"
            )
        groups = linear.weight.detach().float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-12)
        whole = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, 15).flatten(1).to(torch.int32)
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1))
        middles = low + 8 * scale  # the kernel's zero is the middle of the sixteen levels
        pairs = torch.stack([scale, middles], dim=-1).transpose(0, 1).contiguous()  # (groups, out, 2)
        self.register_buffer("scales", pairs.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2).contiguous()
        output = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scales)
        output = output if self.bias is None else output + self.bias
        return output.view(*hidden.shape[:-1], self.out_features)
