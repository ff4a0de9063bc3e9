"""Devices: which there are, their memory and speed; dtypes and attention implementations by name."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from longview import names
from longview.errors import RequestError
from longview.models.transformers_seams import is_flash_attn_2_available
from longview.wording import counted

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
    names.check_device(device)
    kind, _, index = device.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        found = ", ".join(name for name, found in there.items() if found)
        raise RequestError(f"this machine or this build of PyTorch has no {kind} device; choose one of: {found}")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise RequestError(f"there is no device {device!r}; CUDA devices here: 0 … {torch.cuda.device_count() - 1}")


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """A floating-point type by its name, which may be short: bf16.

    Raises:
        RequestError: there is no such type.
    """
    chosen = getattr(torch, names.full_dtype(name), None) if isinstance(name, str) else name
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise RequestError(f"unknown dtype {name!r:.40}; expected {names.dtypes()}")
    return chosen


def check_attention(name: str) -> None:
    """
    Raises:
        RequestError: there is no such implementation of attention, or its library is missing.
    """
    names.check_attention(name)
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


def name_of(device: str) -> str:
    """The product name of a device; for a CPU with the number of threads in use."""
    if device.split(":")[0] == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {counted(threads, 'thread')}"


def processor() -> str:
    """The product name of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def median_seconds(work: Callable[[], Any], repeats: int = 5, device: torch.device | None = None) -> float:
    """The median time of a few calls, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        began = now(device)
        work()
        seconds.append(now(device) - began)
    return statistics.median(seconds)


def now(device: torch.device | None) -> float:
    """`time.perf_counter`, after everything that was queued on the device is done."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a matrix product (rows, inner) · (inner, columns); 2 per multiply-add."""
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(columns, inner, dtype=dtype, device=device)  # transposed, as the weight of a linear layer
    seconds = median_seconds(lambda: torch.nn.functional.linear(left, right), 5, device)
    return 2 * rows * inner * columns / seconds
