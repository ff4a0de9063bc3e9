"""Whether a checkpoint is an MGM, whether its tensors fit its config, and their official names.

| official                                            | ours                                   |
|-----------------------------------------------------|----------------------------------------|
| `model.{embed_tokens,layers,norm}.*`, `lm_head.*`   | `language_model.` before them          |
| `model.vision_tower.vision_tower.vision_model.*`    | `vision_tower.*`, as CLIP's own        |
| `model.vision_tower_aux.vision_{stem,stages}.*`     | `vision_tower_aux.*`, as ConvNeXt's own |
| `model.vlm_uni_{query,aux,val}_projector.*`         | `mining.{query,key,value}.*`           |
| `model.mm_projector.*`                              | `projector.*`                          |

Mixtral's experts are lists of matrices there and stacked here; transformers does that. Saving goes the other way, so a
saved folder has the official names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import ConvNextConfig

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.mgm import towers
from longview.models.mgm.config import CLIP_L_336, MGMConfig
from longview.models.transformers_seams import WeightRenaming

_CLIP, _AUX = "model.vision_tower.vision_tower.vision_model.", "model.vision_tower_aux."
_PREFIXES = (
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
    (_CLIP, "vision_tower."),
    (f"{_AUX}vision_stem.0.", "vision_tower_aux.embeddings.patch_embeddings."),
    (f"{_AUX}vision_stem.1.", "vision_tower_aux.embeddings.layernorm."),
    (f"{_AUX}vision_stages.", "vision_tower_aux.stages."),
    ("model.vlm_uni_query_projector.", "mining.query."),
    ("model.vlm_uni_aux_projector.", "mining.key."),
    ("model.vlm_uni_val_projector.", "mining.value."),
    ("model.mm_projector.", "projector."),
)
_IN_A_STAGE = (
    ("blocks", "layers"),
    ("downsample", "downsampling_layer"),
    ("conv_dw", "dwconv"),
    ("norm", "layernorm"),
    ("mlp.fc1", "pwconv1"),
    ("mlp.fc2", "pwconv2"),
    ("gamma", "layer_scale_parameter"),
)
_MINING, _PROJECTOR = "model.vlm_uni_", "model.mm_projector."
_TRUNK = "visual.trunk."
"""What OpenCLIP's names of the tower begin with."""
STAGE_ONE = ("mm_projector.safetensors", "mm_projector.bin")
"""What a folder of the first stage holds: towers, mining and projector, but no language model."""
_MODEL_TYPES = re.compile(r"(mgm|mini_gemini)(_(gemma|mixtral|mistral))?")
_ARCHITECTURES = re.compile(r"(MGM|MiniGemini)\w*ForCausalLM")


def recognises(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to MGM; most of the released ones have no `model_type`."""
    named = (name for name in config.get("architectures") or [] if isinstance(name, str))
    kind = config.get("model_type")
    return any(map(_ARCHITECTURES.fullmatch, named)) or (isinstance(kind, str) and bool(_MODEL_TYPES.fullmatch(kind)))


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def renamings() -> list[WeightRenaming]:
    """The table as transformers applies it in loading and, reversed, in saving."""
    whole = [WeightRenaming("^" + re.escape(theirs), "^" + re.escape(ours)) for theirs, ours in _PREFIXES]
    stage, block = r"vision_tower_aux\.stages\.\d+", r"vision_tower_aux\.stages\.\d+\.layers\.\d+"
    return whole + [
        WeightRenaming(
            rf"({stage if ours in ('layers', 'downsampling_layer') else block})\.{re.escape(theirs)}",
            rf"\1.{ours}",
        )
        for theirs, ours in _IN_A_STAGE
    ]


def ours(name: str) -> str:
    """An official name as one of ours."""
    for theirs, own in _PREFIXES:
        if name.startswith(theirs):
            name = own + name.removeprefix(theirs)
            break
    if name.startswith("vision_tower_aux.stages."):
        for theirs, own in _IN_A_STAGE:
            name = re.sub(rf"\.{re.escape(theirs)}(?=\.|$)", f".{own}", name)
    return name


def official(name: str) -> str:
    """One of our names as the official one."""
    if name.startswith("vision_tower_aux.stages."):
        for theirs, own in _IN_A_STAGE:
            name = re.sub(rf"\.{own}(?=\.|$)", f".{theirs}", name)
    for theirs, own in _PREFIXES:
        if name.startswith(own):
            return theirs + name.removeprefix(own)
    return name


def expected_shapes(config: MGMConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A model's names and shapes as a checkpoint has them."""
    experts = config.language == "mixtral"
    return {
        name: size
        for own, shape in shapes.items()
        for name, size in (_split_experts(official(own), shape) if experts else [(official(own), shape)])
    }


def _split_experts(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The matrices that a stack of experts consists of."""
    layer, _, rest = name.partition(".mlp.")
    if rest == "gate.weight":
        yield f"{layer}.block_sparse_moe.gate.weight", shape
    elif rest == "experts.gate_up_proj":
        for expert in range(shape[0]):
            for matrix in ("w1", "w3"):
                yield f"{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight", (shape[1] // 2, shape[2])
    elif rest == "experts.down_proj":
        for expert in range(shape[0]):
            yield f"{layer}.block_sparse_moe.experts.{expert}.w2.weight", shape[1:]
    else:
        yield name, shape


def optional(config: MGMConfig) -> tuple[str, ...]:
    """Prefixes of official names that a checkpoint may lack: what nothing uses, and what comes from elsewhere."""
    vision = config.vision_config
    used = towers.num_blocks(vision, config.mm_vision_select_layer)
    unused = [f"{_CLIP}encoder.layers.{number}." for number in range(used, vision.num_hidden_layers)]
    return (
        *unused,
        f"{_CLIP}post_layernorm.",
        *(["lm_head."] if config.tied else []),
        *([_AUX] if uses_tower_file(config) else []),
    )


# ── what belongs together ────────────────────────────────────────────────────────────────────────────────────────────


def uses_tower_file(config: MGMConfig) -> bool:
    """Whether the high-resolution tower's weights are those of its own file rather than the checkpoint's."""
    given = config.given.get("vision_tower_aux")
    if given is not None:
        return given != towers.INSIDE
    return "vision_tower_aux" not in config.described and not config.optimize_vision_tower_aux


def complete(config: MGMConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Set the fields of `config` that only tensors and towers' folders determine: towers' sizes, the vocabulary.

    Raises:
        CheckpointError: these are not the tensors of an MGM, or contradict the config, or a tower is missing.
    """
    for what, prefix in (("patch info mining", _MINING), ("projector", _PROJECTOR)):
        if not any(name.startswith(prefix) for name in shapes):
            raise CheckpointError(
                f"{folder} holds no {what} (no tensors {prefix}*), so it is not an MGM checkpoint or not all of one; "
                "name a folder with the official weights"
            )
    _complete_towers(config, shapes, folder)
    text, vision = config.text_config, config.vision_config
    positive = ("hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps", "max_position_embeddings")
    checkpoint.check_numbers(text, positive, folder)
    checkpoint.check_numbers(vision, ("hidden_size", "num_attention_heads", "image_size", "patch_size"), folder)
    checkpoint.check_numbers(config, ("image_size_aux", "vision_batch_size"), folder)
    checkpoint.check_blocks(shapes, "model.layers.", text.num_hidden_layers, folder)
    used = towers.num_blocks(vision, config.mm_vision_select_layer)
    unused = vision.num_hidden_layers - used
    checkpoint.check_blocks(shapes, f"{_CLIP}encoder.layers.", vision.num_hidden_layers, folder, unused=unused)
    text.vocab_size = shapes.get("model.embed_tokens.weight", (text.vocab_size,))[0]
    step = 4 * config.image_grid * (vision.image_size // vision.patch_size)
    if config.image_size_aux % step or config.image_size_aux % 2 ** (1 + len(config.vision_aux_config.depths)):
        raise CheckpointError(
            f"{folder / 'config.json'}: image_size_aux is {config.image_size_aux}; the fine features divide among the "
            f"coarse patches where it is a multiple of {step}"
        )


def _complete_towers(config: MGMConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    if "vision_tower" not in config.described:
        positions = shapes.get(f"{_CLIP}embeddings.position_embedding.weight")
        released = positions == (577, CLIP_L_336["hidden_size"])
        fields = dict(CLIP_L_336) if released else towers.clip_shape(config, folder)
        config.vision_config = type(config.vision_config)(**{k: v for k, v in fields.items() if k != "model_type"})
    if "vision_tower_aux" in config.described:
        return
    found = towers.convnext_shape(shapes, f"{_AUX}vision_stages.")
    if found is None and uses_tower_file(config):
        _, tensors = towers.fine_weights(config, folder)
        found = towers.convnext_shape({name: tuple(t.shape) for name, t in tensors.items()}, f"{_TRUNK}stages.")
    if found is None:
        raise CheckpointError(f"{folder} and its towers hold no high-resolution tower (no tensors {_AUX}*)")
    config.vision_aux_config = ConvNextConfig(**found)


def high_resolution_state(config: MGMConfig, folder: Path) -> dict[str, Tensor]:
    """The high-resolution tower's own file under the names of `HighResolutionTower`.

    Raises:
        CheckpointError: it is not there, or is another tower than the checkpoint was made with.
    """
    file, tensors = towers.fine_weights(config, folder)
    state = {
        ours(f"{_AUX}vision_{name.removeprefix(_TRUNK)}").removeprefix("vision_tower_aux."): tensor
        for name, tensor in tensors.items()
        if name.startswith((f"{_TRUNK}stem.", f"{_TRUNK}stages."))
    }
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = checkpoint.shapes_of(towers.HighResolutionTower, config.vision_aux_config, folder)
    checkpoint.check_shapes(expected, found, file)
    return state


def stage_one_file(folder: Path) -> Path | None:
    """The file of a folder that holds a first stage only, or None."""
    complete = any(folder.glob("model*.safetensors*"))
    return None if complete else next((folder / name for name in STAGE_ONE if (folder / name).exists()), None)


def official_config(config: MGMConfig, folder: Path) -> dict[str, Any]:
    """The config.json of the releases; ours beside it describe the towers, too.

    Raises:
        CheckpointError: config.json names no published towers, and the authors' code builds no others.
    """
    for path in ("mm_vision_tower", "mm_vision_tower_aux"):
        if not getattr(config, path):
            raise CheckpointError(
                f"{folder / 'config.json'} has no {path}: this model's towers are its own, and the authors' code "
                "builds published ones only; leave out --official"
            )
    trained = {"tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False, "mm_projector_lr": None}
    return {
        **checkpoint.as_transformers_4(config.to_dict()),
        **trained,
        "vision_config": checkpoint.as_transformers_4(config.vision_config.to_dict()),
        "vision_aux_config": checkpoint.as_transformers_4(config.vision_aux_config.to_dict()),
        "image_grid_pinpoints": None,
        "mm_hidden_size": config.vision_config.hidden_size,
        "mm_hidden_size_aux": sum(config.vision_aux_config.hidden_sizes),
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
    }
