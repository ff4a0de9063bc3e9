"""What this machine can do, measured: how fast it multiplies matrices, and how fast it reads memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def median_seconds(work: Callable[[], Any], repeats: int = 5, device: torch.device | None = None) -> float:
    """The median of a few runs, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        began = now(device)
        work()
        found.append(now(device) - began)
    return statistics.median(found)


def now(device: torch.device | None) -> float:
    """Seconds on a clock, once a device has done what it was told; a CPU has."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matrix_rate(rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of (rows, inner) · (inner, columns), a multiplication and an addition each."""
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(columns, inner, dtype=dtype, device=device)  # as a linear layer holds it
    seconds = median_seconds(lambda: torch.nn.functional.linear(left, right), 5, device)
    return 2 * rows * inner * columns / seconds


def read_rate(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes a second when a large tensor is read once."""
    held = torch.ones(size // 4, device=device)
    return size / median_seconds(held.sum, 5, device)


def vector_rate(inner: int, columns: int, dtype: torch.dtype, device: torch.device, size: int = 1 << 29) -> float:
    """Bytes a second when matrices that fit no cache are multiplied by one vector each, as decoding does."""
    count = max(2, size // (inner * columns * dtype.itemsize))
    matrices = torch.ones(count, columns, inner, dtype=dtype, device=device)
    vector = torch.ones(1, inner, dtype=dtype, device=device)

    def work() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(vector, matrix)

    return matrices.numel() * dtype.itemsize / median_seconds(work, 3, device)


def limits_of(model: Any) -> dict[str, float]:
    """The limits for the shapes of one model: of its tower, of reading words, of decoding; and of plain reading."""
    device, dtype = model.device, model.dtype
    words = model.language_model.config
    found = {
        "read bytes/s": read_rate(device),
        "decode bytes/s": vector_rate(words.hidden_size, words.intermediate_size, dtype, device),
        "prefill flop/s": matrix_rate(512, words.hidden_size, words.intermediate_size, dtype, device),
    }
    tower = tower_of(model.config)
    if tower is not None:
        patches = (tower.image_size // tower.patch_size) ** 2
        found["tower flop/s"] = matrix_rate(patches, tower.hidden_size, tower.intermediate_size, dtype, device)
    return found


def tower_of(config: Any) -> Any:
    """The config of a model's (first) vision tower."""
    visual = getattr(config, "visual_tokenizer_config", None)
    return visual.backbone_config if visual is not None else getattr(config, "vision_config", None)
