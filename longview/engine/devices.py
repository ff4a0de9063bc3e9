"""Where a model runs: devices, number formats, kinds of attention, memory. What is not there is said in one line."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers.utils import is_flash_attn_2_available

from longview.errors import RequestError

FP32_ON_CPU_BYTES = 1 << 30
"""Checkpoints smaller than this run in fp32 on a CPU: exact, and no slower at that size."""


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """
    Raises:
        RequestError: there is no such device here.
    """
    kind, _, index = device.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there or (index and not index.isdigit()):
        raise RequestError(f"unknown device {device!r}; expected cpu, cuda, cuda:N or mps")
    if not there[kind]:
        found = ", ".join(name for name, found in there.items() if found)
        raise RequestError(f"this machine or this build of PyTorch has no {kind} device; choose one of: {found}")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise RequestError(f"there is no device {device!r}; CUDA devices here: 0 … {torch.cuda.device_count() - 1}")


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """A floating-point type by name.

    Raises:
        RequestError: there is no such type.
    """
    found = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RequestError(f"unknown dtype {name!r}; expected float32, bfloat16 or float16")
    return found


def check_attention(name: str) -> None:
    """
    Raises:
        RequestError: there is no such implementation of attention, or its library is missing.
    """
    if name not in ("sdpa", "eager", "flash_attention_2"):
        raise RequestError(f"unknown attention {name!r}; expected sdpa, eager or flash_attention_2")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise RequestError("flash_attention_2 needs the flash-attn package and a GPU it supports; use sdpa here")


def memory_of(device: str) -> int:
    """Bytes of memory of a device; for the CPU, no more than this process may have."""
    kind = device.split(":")[0]
    if kind == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if kind == "mps":
        return torch.mps.recommended_max_memory()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            memory = min(memory, int(text))
    return memory
