"""The authors' fixtures: a tiny official checkpoint, its variants, and the pictures of the cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[2] / "golden" / "ovis2"
TINY = GOLDEN / "tiny"
CASES: dict[str, dict] = json.loads((GOLDEN / "cases" / "manifest.json").read_text())["cases"]
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def synthetic(w: int, h: int, seed: int) -> Image.Image:
    """The picture whose formula the fixtures state."""
    y, x, c = np.mgrid[0:h, 0:w, 0:3]
    values = (x * (3 + seed) + y * (5 + 2 * seed) + 40 * c + ((x * y) >> 3)) & 255
    return Image.fromarray(values.astype(np.uint8))


def tensors_of(case: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "cases" / f"{case}.safetensors")


def pixels_of(golden: Mapping[str, torch.Tensor], sample: str = "") -> torch.Tensor | None:
    """The authors' pixels: as they are, or made of bytes and the box that is no padding."""
    if f"pixel_values{sample}" in golden:
        return golden[f"pixel_values{sample}"]
    if f"tiles_u8{sample}" not in golden:
        return None
    tiles, boxes = golden[f"tiles_u8{sample}"], golden[f"tiles_valid_box_x0y0x1y1{sample}"]
    pixels = torch.zeros(tiles.shape)
    for tile, (left, upper, right, lower), canvas in zip(tiles, boxes.tolist(), pixels, strict=True):
        bytes_ = tile.numpy()[:, upper:lower, left:right]
        values = torch.from_numpy((bytes_ * (1 / 255)).astype(np.float32))
        canvas[:, upper:lower, left:right] = (values - MEAN) / STD
    return pixels


def folder_of(case: str, place: Path, edit: Any = None) -> Path:
    """The checkpoint of a case: the tiny one, with the tensors and settings that the case changes."""
    folder = Path(shutil.copytree(TINY, place / case))
    (variant, overrides) = (CASES[case].get("variant"), CASES[case].get("config_overrides", {}))
    weights = load_file(folder / "model.safetensors")
    if variant:
        weights |= load_file(GOLDEN / f"variant_{variant}.safetensors")
    if edit is not None:
        edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in overrides.items():
        file, keys = "config.json", name.split(".")
        if keys[0] == "preprocessor":
            file, keys = "preprocessor_config.json", keys[1:]
            value = {"height": value, "width": value}
        settings = json.loads((folder / file).read_text())
        inner = settings
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / file).write_text(json.dumps(settings))
    return folder
