"""The two vision towers of MGM, and where their files are.

    low resolution    CLIP              its weights are in every checkpoint of MGM, its shape in its own folder
    high resolution   OpenCLIP ConvNeXt  a copy is in every checkpoint; the published file is used instead, unless
                                         `optimize_vision_tower_aux` means that it was trained

config.json names both by a path such as `model_zoo/OpenAI/…`. It is looked for in the current folder, in the
checkpoint's, and in each folder above that one; then the published tower of the same name is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, ConvNextConfig

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.mgm.config import CLIP_L_336, MGMConfig
from longview.models.mgm.fusion import resized
from longview.models.sources import fetch_file
from longview.models.transformers_seams import ConvNextEmbeddings, ConvNextStage

CLIP_HUB = "openai/clip-vit-large-patch14-336"
CONVNEXT_HUB = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
INSIDE = "checkpoint"
"""Given as the path of the high-resolution tower: take the copy in the checkpoint."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""How pixels are normalised for both towers."""
_PUBLISHED = {
    "clip-vit-large-patch14-336": CLIP_HUB,
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": CONVNEXT_HUB,
}
_FILES = ("open_clip_pytorch_model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


# ── architectures ────────────────────────────────────────────────────────────────────────────────────────────────────


def coarse_features(tower: CLIPVisionModel, pixels: Tensor, select_layer: int) -> Tensor:
    """(n, 3, R, R) → (n, P, C): the hidden state `select_layer` of CLIP without its class token.

    Later blocks are not run.
    """
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for block in tower.encoder.layers[: num_blocks(tower.config, select_layer)]:
        hidden = block(hidden, None)
    return hidden[:, 1:]


def num_blocks(config: Any, select_layer: int) -> int:
    """How many blocks of CLIP lead to a hidden state, of which there is one more than blocks.

    Raises:
        CheckpointError: there is no such hidden state.
    """
    numbers = range(config.num_hidden_layers + 1)
    if not -len(numbers) <= select_layer < len(numbers):
        raise CheckpointError(
            f"mm_vision_select_layer is {select_layer}, but the low-resolution tower has {len(numbers)} hidden states"
        )
    return numbers[select_layer]


class HighResolutionTower(nn.Module):
    """ConvNeXt: pixels (n, 3, S, S) → the outputs of all stages, concatenated, (n, Ca, S/4, S/4), as fine as the first.

    Nothing in it is random, in training either. The original drops blocks at random, in evaluation, too, because it is
    left in training mode.
    """

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = ConvNextEmbeddings(config)
        widths = config.hidden_sizes
        self.stages = nn.ModuleList(
            ConvNextStage(config, widths[max(number - 1, 0)], width, stride=2 if number else 1, depth=depth)
            for number, (width, depth) in enumerate(zip(widths, config.depths, strict=True))
        )

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.embeddings(pixels)
        stages: list[Tensor] = []
        for stage in self.stages:
            hidden = stage(hidden)
            stages.append(resized(hidden, stages[0].shape[-1]) if stages else hidden)
        return torch.cat(stages, dim=1)


def convnext_shape(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, list[int]] | None:
    """Depths and widths of a ConvNeXt, by the names and shapes of its tensors `{prefix}S.blocks.B.gamma`, or None."""
    blocks: dict[int, list[int]] = {}
    for name, shape in shapes.items():
        if name.startswith(prefix) and name.endswith(".gamma"):
            blocks.setdefault(int(name.removeprefix(prefix).split(".")[0]), []).append(shape[0])
    if not blocks:
        return None
    stages = [blocks[number] for number in sorted(blocks)]
    return {"depths": [len(stage) for stage in stages], "hidden_sizes": [stage[0] for stage in stages]}


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────


def find(path: str | None, folder: Path) -> Path | None:
    """The folder that a config's path of a tower means, from the current folder, the checkpoint's or one above it."""
    if not path:
        return None
    places = [Path(path).expanduser(), *(above / path for above in (folder.resolve(), *folder.resolve().parents))]
    return next((place for place in places if place.is_dir()), None)


def published(path: str | None) -> str | None:
    """The hub id of the tower that a path means by its last name, or that it is."""
    known = _PUBLISHED.get(Path(path or "").name)
    return path if path in _PUBLISHED.values() else known


def clip_shape(config: MGMConfig, folder: Path) -> dict[str, Any]:
    """The fields of the low-resolution tower's config. The published tower's are known without its folder.

    Raises:
        CheckpointError: its folder is not there; says what to do.
    """
    path = config.given.get("vision_tower", config.mm_vision_tower)
    place = find(path, folder)
    if place is not None:
        found = checkpoint.read_config(place)
        fields = found.get("vision_config", found)
        return {key: value for key, value in fields.items() if not key.endswith("attn_implementation")}
    if published(path) == CLIP_HUB:
        return dict(CLIP_L_336)
    raise CheckpointError(_missing("low", path, folder, CLIP_HUB, "its config.json"))


def fine_weights(config: MGMConfig, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The high-resolution tower's tensors under OpenCLIP's names, and the file they are from.

    Raises:
        CheckpointError: there is none, or it wants other pixels than the low-resolution tower.
    """
    path = config.given.get("vision_tower_aux", config.mm_vision_tower_aux)
    place = find(path, folder)
    if place is None and published(path) == CONVNEXT_HUB:
        try:
            return _opened(fetch_file(CONVNEXT_HUB, _FILES[0]))
        except CheckpointError as error:
            raise CheckpointError(_missing("high", path, folder, CONVNEXT_HUB, _FILES[0])) from error
    if place is None:
        raise CheckpointError(_missing("high", path, folder, CONVNEXT_HUB, _FILES[0]))
    if (place / "open_clip_config.json").exists():
        wants = checkpoint.read_json(place, "open_clip_config.json").get("preprocess_cfg", {})
        if any(list(wants.get(key, value)) != list(value) for key, value in (("mean", MEAN), ("std", STD))):
            raise CheckpointError(f"{place / 'open_clip_config.json'} wants other pixels than CLIP; it is no MGM tower")
    file = next((place / name for name in _FILES if (place / name).exists()), None)
    if file is None:
        raise CheckpointError(f"{place} holds none of {', '.join(_FILES)}; fetch {_FILES[0]} of {CONVNEXT_HUB}")
    return _opened(file)


def _opened(file: Path) -> tuple[Path, dict[str, Tensor]]:
    return file, checkpoint.read_tensors(file)


def _missing(which: str, path: str | None, folder: Path, hub: str, files: str) -> str:
    option = "vision-tower" if which == "low" else "vision-tower-aux"
    copy = f", or {INSIDE!r} for the copy in the checkpoint" if which == "high" else ""
    return (
        f"{folder} needs its {which}-resolution tower, and there is no folder {path!r} here, beside it or above it; "
        f"there are three ways: put {files} of {hub} there; or let the hub be reached, where config.json names the "
        f"published tower; or say where it is: --{option} FOLDER ({option.replace('-', '_')}= in Python){copy}"
    )
