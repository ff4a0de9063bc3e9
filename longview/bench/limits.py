"""Limits of this machine, measured: rates of matrix products, and memory bandwidth."""

from __future__ import annotations

from typing import Any

import torch

from longview.engine.devices import matrix_rate, median_seconds


def read_rate(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes a second when a large tensor is read once."""
    held = torch.ones(size // 4, device=device)
    return size / median_seconds(held.sum, 5, device)


def vector_rate(inner: int, columns: int, dtype: torch.dtype, device: torch.device, size: int = 1 << 29) -> float:
    """Bytes a second when matrices too large for any cache are multiplied by one vector each, as in decoding."""
    count = max(2, size // (inner * columns * dtype.itemsize))
    matrices = torch.ones(count, columns, inner, dtype=dtype, device=device)
    vector = torch.ones(1, inner, dtype=dtype, device=device)

    def multiply() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(vector, matrix)

    return matrices.numel() * dtype.itemsize / median_seconds(multiply, 3, device)


def limits_of(model: Any) -> dict[str, float]:
    """The limits for the shapes of one model: of its tower, of prefill, of decoding; and the memory bandwidth."""
    device, dtype = model.device, model.dtype
    language = model.language_model.config
    rates = {
        "read bytes/s": read_rate(device),
        "decode bytes/s": vector_rate(language.hidden_size, language.intermediate_size, dtype, device),
        "prefill flop/s": matrix_rate(512, language.hidden_size, language.intermediate_size, dtype, device),
    }
    tower = tower_of(model.config)
    if tower is not None:
        pictures = model.config.vision_batch_size if device.type == "cuda" else 1  # a GPU is not busy with one
        patches = pictures * (tower.image_size // tower.patch_size) ** 2
        rates["tower flop/s"] = matrix_rate(patches, tower.hidden_size, tower.intermediate_size, dtype, device)
    return rates


def tower_of(config: Any) -> Any:
    """The config of a model's (first) vision tower."""
    visual = getattr(config, "visual_tokenizer_config", None)
    return visual.backbone_config if visual is not None else getattr(config, "vision_config", None)
