"""The port of Ovis2 in transformers (`Ovis2ForConditionalGeneration`, model_type "ovis2"): its folders ↔ the authors'.

| the port's                                             | the authors'                                         |
|--------------------------------------------------------|------------------------------------------------------|
| `model.language_model.*`, `lm_head.*`                  | `llm.model.*`, `llm.lm_head.*`                       |
| `model.visual_embeddings_table.*`                      | `vte.*`                                              |
| `model.vision_tower.head_{linear,norm}.*`              | `visual_tokenizer.head.{0,1}.*`                      |
| `….transformer.embeddings.{patch_embedding,rms_norm}.*` | `….backbone.preprocessor.patchifier.{proj,norm}.*`  |
| `….embeddings.position_embedding.weight` (N, d)        | `….preprocessor.pos_embed` (1, N, d)                 |
| `….encoder.layers.N.*`: queries, keys, values apart    | `….trunk.blocks.N.*`: one matrix                     |
| `….transformer.rms_norm.weight`, applied               | `….trunk.post_trunk_norm.weight`, not applied        |

Placeholders are tokens of the vocabulary there, negative ids here. What the port computes differently, and `tower_norm`
with which a model computes as it does, is in docs/official-ovis2.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, Ovis2Config

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.ovis2.config import NUM_INDICATORS, OvisConfig

MODEL_TYPE = "ovis2"
TOKENS = ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
"""The port's names of the placeholder and of the indicators, in the order of the visual embedding table's last rows."""
INDEX, WHOLE, PROCESSOR = "model.safetensors.index.json", "model.safetensors", "processor_config.json"

_TOWER, _BACKBONE = "model.vision_tower.transformer.", "visual_tokenizer.backbone."
_PREFIXES = (
    ("model.language_model.", "llm.model."),
    ("lm_head.", "llm.lm_head."),
    ("model.visual_embeddings_table.", "vte."),
    ("model.vision_tower.head_linear.", "visual_tokenizer.head.0."),
    ("model.vision_tower.head_norm.", "visual_tokenizer.head.1."),
    (f"{_TOWER}embeddings.patch_embedding.", f"{_BACKBONE}preprocessor.patchifier.proj."),
    (f"{_TOWER}embeddings.rms_norm.", f"{_BACKBONE}preprocessor.patchifier.norm."),
    (f"{_TOWER}embeddings.position_embedding.weight", f"{_BACKBONE}preprocessor.pos_embed"),
    (f"{_TOWER}rms_norm.", f"{_BACKBONE}trunk.post_trunk_norm."),
    (f"{_TOWER}encoder.layers.", f"{_BACKBONE}trunk.blocks."),
)
_IN_A_BLOCK = (
    (".rms_norm1.", ".norm_1."),
    (".rms_norm2.", ".norm_2."),
    (".attention.out_proj.", ".attn.proj."),
    (".ffn.gate_proj.", ".mlp.fc1."),
    (".ffn.up_proj.", ".mlp.fc3."),
    (".ffn.down_proj.", ".mlp.fc2."),
)
_PART = re.compile(
    rf"(?P<block>{re.escape(_BACKBONE)}trunk\.blocks\.\d+)\.attention\.(?P<part>[qkv])_proj\.(?P<kind>\w+)"
)
_POSITIONS = f"{_BACKBONE}preprocessor.pos_embed"
_SHARED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "rms_norm_eps",
    "attention_dropout",
    "qkv_bias",
    "initializer_range",
    "tower_norm",
)
"""Fields of the tower that have the same name in both."""
_OF_THE_PORT = (
    "text_config",
    "vision_config",
    "image_token_id",
    "visual_indicator_token_ids",
    "vocab_size",
    "hidden_size",
    "tie_word_embeddings",
)
"""Fields of the whole that are said in another way, or follow from others."""
Entry = TypeVar("Entry")


def is_port(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is the port's."""
    return config.get("model_type") == MODEL_TYPE


# ── config ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def official_fields(port: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the port's config.json as those of `OvisConfig`.

    Raises:
        CheckpointError: it describes what no Ovis2 of the authors' is.
    """
    defaults = Ovis2Config().to_dict()
    vision = defaults["vision_config"] | dict(port.get("vision_config") or {})
    text = dict(port.get("text_config") or {})
    text["tie_word_embeddings"] = port.get("tie_word_embeddings", defaults["tie_word_embeddings"])
    _expect("vision_config.num_visual_indicator_tokens", vision["num_visual_indicator_tokens"], NUM_INDICATORS)
    _expect("vision_config.hidden_act", vision["hidden_act"], "silu")
    _expect("vision_config.qkv_bias", vision["qkv_bias"], vision["mlp_bias"])
    backbone = {name: _side(vision[name]) for name in _SHARED if name in vision}
    visual = {name: vision[name] for name in ("vocab_size", "hidden_stride", "tokenize_function")}
    return {
        **{key: value for key, value in port.items() if key not in _OF_THE_PORT},
        "model_type": OvisConfig.model_type,
        "architectures": ["Ovis"],
        "llm_config": text,
        "visual_tokenizer_config": {
            "model_type": "aimv2_visual_tokenizer",
            **visual,
            "backbone_config": {**backbone, "use_bias": vision["mlp_bias"]},
        },
    }


def _expect(name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise CheckpointError(f"config.json says {name} {found!r:.40}, and Ovis2 has {expected!r}; it is no Ovis2")


def _side(value: Any) -> Any:
    """A side in pixels, which may stand there as a height and a width."""
    return value[0] if isinstance(value, (list, tuple)) and len(set(value)) == 1 else value


def port_fields(config: OvisConfig, first_token: int, vocab_size: int) -> dict[str, Any]:
    """The port's config.json of a model.

    Args:
        first_token: The id of the placeholder; those of the indicators follow it.
        vocab_size: Rows of the table of text embeddings.

    Raises:
        CheckpointError: the port computes no such model.
    """
    visual = config.visual_tokenizer_config
    backbone = visual.backbone_config
    if visual.kind != "aimv2":
        raise _unportable(f"its tower is {visual.kind!r}, and the port has AIMv2's only")
    if visual.tokenize_function == "gumbel_argmax" and visual.tau != 1:
        raise _unportable(f"tau is {visual.tau}, and the port has 1 only")
    if backbone.qkv_bias != backbone.use_bias:
        raise _unportable("qkv_bias and use_bias of its tower differ")
    if (backbone.image_size // backbone.patch_size) % visual.hidden_stride:
        side = backbone.image_size // backbone.patch_size
        raise _unportable(f"a crop has {side} × {side} patches, which it cannot merge by {visual.hidden_stride}")
    vision = {name: getattr(backbone, name) for name in _SHARED}
    text = config.llm_config.to_dict() | {"vocab_size": vocab_size}
    written = Ovis2Config(
        text_config={key: value for key, value in text.items() if key != "architectures"},
        vision_config={
            **vision,
            "mlp_bias": backbone.use_bias,
            "vocab_size": visual.vocab_size,
            "hidden_stride": visual.hidden_stride,
            "tokenize_function": visual.tokenize_function,
        },
        image_token_id=first_token,
        visual_indicator_token_ids=list(range(first_token + 1, first_token + len(TOKENS))),
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        tie_word_embeddings=config.tied,
    )
    return {**written.to_dict(), "architectures": ["Ovis2ForConditionalGeneration"]}


def _unportable(reason: str) -> CheckpointError:
    return CheckpointError(f"transformers' port of Ovis2 has no such model ({reason}); leave out --transformers")


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def official_name(name: str) -> str:
    """The authors' name of one of the port's tensors; parts of `qkv` keep a name of their own, see `official`."""
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if name.startswith(f"{_BACKBONE}trunk.blocks."):
        for theirs, ours in _IN_A_BLOCK:
            name = name.replace(theirs, ours)
    return name


def port_name(name: str) -> str:
    """The other way round."""
    if name.startswith(f"{_BACKBONE}trunk.blocks."):
        for theirs, ours in _IN_A_BLOCK:
            name = name.replace(ours, theirs)
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def official(
    entries: Mapping[str, Entry], joined: Callable[[list[Entry]], Entry], as_batch: Callable[[Entry], Entry]
) -> dict[str, Entry]:
    """The port's tensors, or their shapes, under the authors' names.

    Args:
        joined: Queries, keys and values → one matrix.
        as_batch: Positions (N, d) → (1, N, d).
    """
    found: dict[str, Entry] = {}
    parts: dict[str, dict[str, Entry]] = {}
    for theirs, entry in entries.items():
        name = official_name(theirs)
        if part := _PART.fullmatch(name):
            parts.setdefault(f"{part['block']}.attn.qkv.{part['kind']}", {})[part["part"]] = entry
        else:
            found[name] = as_batch(entry) if name == _POSITIONS else entry
    whole = {name: [apart[part] for part in "qkv"] for name, apart in parts.items() if len(apart) == 3}
    return found | {name: joined(apart) for name, apart in whole.items()}


def names_in(names: Iterable[str]) -> bool:
    """Whether tensors have the port's names."""
    return any(name.startswith("model.vision_tower.") for name in names)


def official_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a folder's tensors as the authors have them; those of an official folder as they are."""
    if not names_in(shapes):
        return dict(shapes)
    return official(shapes, lambda parts: (sum(part[0] for part in parts), *parts[0][1:]), lambda shape: (1, *shape))


def stored(folder: Path) -> dict[str, Any]:
    """What a folder in the port's form holds, as arguments of `from_pretrained`: its tensors by the authors' names.

    Files are mapped into memory, and read as their tensors are used.
    """
    tensors: dict[str, Tensor] = {}
    for file in _files(folder):
        tensors |= load_file(folder / file)
    found: dict[str, Any] = {"state_dict": official(tensors, torch.cat, lambda positions: positions[None])}
    if (folder / "generation_config.json").exists():
        found["generation_config"] = GenerationConfig.from_pretrained(folder)
    return found


def _files(folder: Path) -> list[str]:
    if (folder / WHOLE).exists():
        return [WHOLE]
    return sorted(set(checkpoint.read_json(folder, INDEX)["weight_map"].values()))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}"
    "{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'text' %}{{ part['text'] }}{%- else %}{{ '<image>\\n' }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def write(folder: Path) -> None:
    """Rewrite a folder that was just written, in the authors' names, as one that transformers' own classes open.

    The vocabulary gets the port's tokens, in rows that no token has, or in new ones that begin as `<|im_start|>`, which
    no answer holds.

    Raises:
        CheckpointError: the port computes no such model.
    """
    config = checkpoint.open_config(OvisConfig, folder)
    shapes = checkpoint.tensor_shapes(folder)
    rows = shapes["llm.model.embed_tokens.weight"][0]
    tokenizer = checkpoint.open_tokenizer(folder)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(list(TOKENS))
    if ids != list(range(ids[0], ids[0] + len(TOKENS))):
        raise _unportable(f"its tokenizer has {TOKENS[0]} … {TOKENS[-1]} in another order: {ids}")
    vocab_size = max(rows, ids[-1] + 1)
    written = port_fields(config, ids[0], vocab_size)
    filler = tokenizer.convert_tokens_to_ids("<|im_start|>")
    placed: dict[str, str] = {}
    for file in _files(folder):
        tensors = dict(_port_tensors(load_file(folder / file), vocab_size, filler))
        unfinished = folder / f"{file}.unfinished"
        save_file(tensors, unfinished, metadata={"format": "pt"})
        unfinished.replace(folder / file)
        placed |= dict.fromkeys(tensors, file)
    if (folder / INDEX).exists():
        total = sum((folder / file).stat().st_size for file in set(placed.values()))
        _write(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    _write(folder / "config.json", written | {"dtype": checkpoint.read_config(folder).get("dtype")})
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    _write(folder / "generation_config.json", {"eos_token_id": [end, pad], "pad_token_id": pad})
    tokenizer.save_pretrained(folder)
    _write_processor(folder, config)


def _port_tensors(tensors: Mapping[str, Tensor], vocab_size: int, filler: int) -> Iterator[tuple[str, Tensor]]:
    for ours, tensor in tensors.items():
        name = port_name(ours)
        if ".attn.qkv." in ours:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace(".attn.qkv.", f".attention.{part}_proj."), rows.contiguous()
        elif ours == _POSITIONS:
            yield name, tensor[0].contiguous()
        elif ours in ("llm.model.embed_tokens.weight", "llm.lm_head.weight"):
            yield name, torch.cat([tensor, tensor[filler].expand(vocab_size - len(tensor), -1)])
        else:
            yield name, tensor


def _write_processor(folder: Path, config: OvisConfig) -> None:
    """The port's processor, with the authors' pixels; older versions of transformers read the second file."""
    path = folder / "preprocessor_config.json"
    side = config.picture_size
    own = checkpoint.read_json(folder, path.name) if path.exists() else {}
    pixels: dict[str, Any] = {
        key: own[key] for key in ("image_mean", "image_std", "resample", "rescale_factor") if key in own
    }
    images: dict[str, Any] = {
        "image_processor_type": "Ovis2ImageProcessor",
        "size": {"height": side, "width": side},
        "crop_to_patches": True,
        "max_patches": own.get("max_partition", 9),
        "do_convert_rgb": True,
        **pixels,
    }
    settings = {"image_seq_length": config.patches_per_picture, "image_token": "<image>"}
    _write(path, images | {"processor_class": "Ovis2Processor"})
    _write(folder / PROCESSOR, {**settings, "image_processor": images, "processor_class": "Ovis2Processor"})
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
