"""Whether a checkpoint is an Ovis2, whether its tensors fit its config, and the official trainer's names of components.

Official names ↔ ours: they are the same, so no weight is ever renamed and a saved folder is an official one.

| component                           | tensors                                                        |
|-------------------------------------|----------------------------------------------------------------|
| patches                             | `visual_tokenizer.backbone.preprocessor.patchifier.*`          |
| positions of patches                | `visual_tokenizer.backbone.preprocessor.pos_embed`             |
| block N of the tower                | `visual_tokenizer.backbone.trunk.blocks.N.*`                   |
| used by nothing (see `towers.py`)   | `visual_tokenizer.backbone.trunk.post_trunk_norm.weight`       |
| head                                | `visual_tokenizer.head.{0,1}.*`                                |
| visual embedding table              | `vte.weight`                                                   |
| language model                      | `llm.model.*`, as Qwen2's own                                  |
| its head; absent in some that tie it | `llm.lm_head.weight`                                          |

The names of transformers' port are in `port.py`.

SigLIP and CLIP towers are `visual_tokenizer.backbone.vision_model.*`, as in their own checkpoints.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError, RequestError
from longview.models import checkpoint
from longview.models.ovis2 import port
from longview.models.ovis2.config import NUM_INDICATORS, OvisConfig

_HEAD, _NORM, _TABLE = "visual_tokenizer.head.0.weight", "visual_tokenizer.head.1.weight", "vte.weight"
_PACKED = ("qweight", "qzeros", "scales", "g_idx")
"""What GPTQ leaves of a `weight`."""


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to Ovis2."""
    return config.get("model_type") == "ovis" or "Ovis" in (config.get("architectures") or []) or port.is_port(config)


def complete(config: OvisConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Set the fields of `config` that only the tensors determine: the sizes of both vocabularies.

    Raises:
        CheckpointError: head and table disagree, or these are not the tensors of an Ovis.
    """
    if _HEAD not in shapes or _TABLE not in shapes:
        raise CheckpointError(
            f"{folder} holds no visual tokenizer and table (no tensors {_HEAD} and {_TABLE}), so it is not an Ovis2 "
            "checkpoint; name a folder with the official weights"
        )
    outputs, rows = shapes[_HEAD][0], shapes[_TABLE][0]
    if outputs + NUM_INDICATORS != rows:
        raise CheckpointError(
            f"{folder}: the head has {outputs} outputs, so the table needs {outputs} + {NUM_INDICATORS} indicators = "
            f"{outputs + NUM_INDICATORS} rows, but {_TABLE} has {rows}; they come from different models"
        )
    visual = config.visual_tokenizer_config
    _complete_tower(config, shapes, folder)
    checkpoint.check_blocks(shapes, "llm.model.layers.", config.llm_config.num_hidden_layers, folder)
    checkpoint.check_blocks(shapes, _blocks(shapes), visual.backbone_config.num_hidden_layers, folder)
    checkpoint.check_numbers(config.llm_config, ("hidden_size", "num_attention_heads", "rms_norm_eps"), folder)
    visual.vocab_size = rows
    config.llm_config.vocab_size = shapes.get("llm.model.embed_tokens.weight", (config.llm_config.vocab_size,))[0]


def _complete_tower(config: OvisConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Set the side of a crop and of a merged square where config.json leaves them out and the tensors say otherwise."""
    visual = config.visual_tokenizer_config
    tower = visual.backbone_config
    written = checkpoint.read_config(folder).get("visual_tokenizer_config") or {}
    positions = shapes.get("visual_tokenizer.backbone.preprocessor.pos_embed", ())
    if "image_size" not in (written.get("backbone_config") or {}) and len(positions) == 3 and visual.kind == "aimv2":
        side = isqrt(positions[1])
        if tower.image_size // tower.patch_size != side:
            tower.image_size = side * tower.patch_size
    if "hidden_stride" not in written and tower.hidden_size:
        visual.hidden_stride = max(1, isqrt(shapes[_HEAD][-1] // tower.hidden_size))


def check_quantisation(config: OvisConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """
    Raises:
        CheckpointError: the language model is packed by GPTQ, and the libraries that unpack it are not installed.
    """
    if not any(name.endswith(".qweight") for name in shapes):
        return
    if getattr(config, "quantization_config", None) is None:
        raise CheckpointError(
            f"{folder} holds packed weights (*.qweight), but config.json has no quantization_config that says how to "
            "unpack them; fetch config.json again"
        )
    missing = [name for name in ("optimum", "gptqmodel") if importlib.util.find_spec(name) is None]
    if missing:
        raise CheckpointError(
            f"{folder} is packed by GPTQ, which needs {' and '.join(missing)}: pip install {' '.join(missing)}, or "
            "open the release that is not packed (its name without -GPTQ-Int4)"
        )


def expected_shapes(
    shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """A model's tensors with those left out that a checkpoint holds packed by GPTQ."""
    packed = {name.rsplit(".", 1)[0] for name in found if name.rsplit(".", 1)[-1] in _PACKED}
    return {name: shape for name, shape in shapes.items() if name.rsplit(".", 1)[0] not in packed}


def optional(config: OvisConfig) -> tuple[str, ...]:
    """Prefixes of tensors that a checkpoint may lack: the tower's unused end, and a head tied to the embeddings."""
    backbone = "visual_tokenizer.backbone"
    unused: tuple[str, ...] = (
        f"{backbone}.vision_model.post_layernorm.",
        f"{backbone}.vision_model.head.",
    )
    if not getattr(config.visual_tokenizer_config.backbone_config, "tower_norm", False):
        unused = (*unused, f"{backbone}.trunk.post_trunk_norm.")
    return (*unused, "llm.lm_head.") if config.tied else unused


def _blocks(names: Iterable[str]) -> str:
    """What the names of the tower's blocks begin with."""
    aimv2 = "visual_tokenizer.backbone.trunk.blocks."
    contrastive = "visual_tokenizer.backbone.vision_model.encoder.layers."
    return aimv2 if any(name.startswith(aimv2) for name in names) else contrastive


def _count(prefix: str, names: Iterable[str]) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def trainable(train_modules: str, names: Iterable[str]) -> list[str]:
    """The parameters that the official trainer's `--train_modules` trains; every other one is frozen.

    Args:
        train_modules: Joined by "|": all, llm, visual_tokenizer, visual_tokenizer.backbone, visual_tokenizer.head,
            vte, and visual_tokenizer.backbone.layer.N for a block (−1 is the last).

    Raises:
        RequestError: one of them names no component or no block.
    """
    names = list(names)
    blocks = _blocks(names)
    num_blocks = _count(blocks, names)
    trained: list[str] = []
    for module in train_modules.split("|"):
        if module == "all":
            return names
        layer = module.removeprefix("visual_tokenizer.backbone.layer.")
        if layer != module and layer.lstrip("-").isdigit() and -num_blocks <= int(layer) < num_blocks:
            trained.append(f"{blocks}{int(layer) % num_blocks}.")
        elif module in ("llm", "visual_tokenizer", "visual_tokenizer.backbone", "visual_tokenizer.head", "vte"):
            trained.append(f"{module}.")
        else:
            raise RequestError(
                f"train_modules names {module!r}; there are all, llm, visual_tokenizer, visual_tokenizer.backbone, "
                f"visual_tokenizer.head, vte and visual_tokenizer.backbone.layer.N, N from {-num_blocks} to "
                f"{num_blocks - 1}"
            )
    return [name for name in names if name.startswith(tuple(trained))]


def official_config(config: OvisConfig, folder: Path) -> dict[str, Any]:
    """The config.json of the releases."""
    if config.visual_tokenizer_config.backbone_config.to_dict().pop("tower_norm", False):
        raise CheckpointError(
            f"{folder} was trained with the norm after the tower (tower_norm), which the authors' code does not apply; "
            "leave out --official"
        )
    visual = checkpoint.as_transformers_4(config.visual_tokenizer_config.to_dict())
    backbone = checkpoint.as_transformers_4(config.visual_tokenizer_config.backbone_config.to_dict())
    visual["backbone_config"] = {key: value for key, value in backbone.items() if key != "tower_norm"}
    written = checkpoint.as_transformers_4(config.to_dict())
    written["llm_config"] = checkpoint.as_transformers_4(config.llm_config.to_dict())
    written["visual_tokenizer_config"] = {**visual, "depths": None, "backbone_kwargs": {}}
    return {**written, "architectures": ["Ovis"], "llm_attn_implementation": "sdpa"}
