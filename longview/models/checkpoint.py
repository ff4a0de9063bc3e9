"""The only code that touches weight files: inspect a checkpoint before loading it, refuse what is unsafe.

Nothing in a checkpoint folder is ever executed: no `auto_map` code, no pickle. Weights are safetensors; two files that
a family requests by name may be PyTorch's, of which nothing but tensors is loaded.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedConfig

from longview.errors import CheckpointError
from longview.hubs import hub_errors, is_hub_id, line, reach_hub
from longview.models import llama_tokenizer
from longview.models.sources import read_json, resolve
from longview.names import ATTENTION, check_attention

_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")


# ── inspection before loading ────────────────────────────────────────────────────────────────────────────────────────


def peek(name: str, *, revision: str | None = None) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A folder with the model's config.json, and the shapes of its tensors; a hub's weights are not downloaded.

    Raises:
        CheckpointError: as `resolve` and `tensor_shapes`.
    """
    if not is_hub_id(name):
        folder = resolve(name, revision=revision)
        return folder, tensor_shapes(folder)
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    reach_hub(name)
    with hub_errors(name):
        config = hf_hub_download(name, "config.json", revision=revision)
        files = get_safetensors_metadata(name, revision=revision).files_metadata
    shapes = {key: tuple(tensor.shape) for file in files.values() for key, tensor in file.tensors.items()}
    return Path(config).parent, shapes


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    return read_json(folder, "config.json")


def open_config(config_class: Any, folder: Path, **options: Any) -> Any:
    """A family's config from a folder.

    Raises:
        CheckpointError: config.json is missing, or a value in it is of the wrong type; names it.
    """
    read_config(folder)
    try:
        config = config_class.from_pretrained(folder, **options)
        if "attn_implementation" not in options:
            _clear_attention(config, keep=())
        return config
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe this family: {line(error)}") from error


def _clear_attention(config: Any, keep: Iterable[str] = ATTENTION) -> None:
    """Take out of a config, nested ones included, how attention is computed, but for names to `keep`.

    A folder does not decide that: for a name with a slash in it transformers fetches native code from the hub.
    """
    if config._attn_implementation not in keep:
        config._attn_implementation = None
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            _clear_attention(value, keep)


def as_transformers_4(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config's fields as transformers 4 spells them, on which the authors' code runs."""
    newer = ("rope_parameters", "layer_types", "dtype", "transformers_version", "_name_or_path")
    written = {key: value for key, value in fields.items() if key not in newer}
    rope = dict(fields.get("rope_parameters") or {})
    kind = rope.pop("rope_type", "default")
    if "rope_theta" in rope:
        written["rope_theta"] = rope.pop("rope_theta")
    if "rope_theta" in written:
        written["rope_scaling"] = None if kind == "default" else {"type": kind, "rope_type": kind, **rope}
    return written


def open_tokenizer(folder: Path, **options: Any) -> Any:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not any(
        (folder / file).exists() for file in ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
    ):
        raise CheckpointError(
            f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); fetch it again"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
        return llama_tokenizer.follow(tokenizer, folder) if isinstance(tokenizer, LlamaTokenizer) else tokenizer
    except Exception as error:  # the tokenizers library raises nothing more particular
        raise CheckpointError(f"the tokenizer of {folder} cannot be read ({line(error)}); fetch it again") from error


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor of a checkpoint, from the headers of its safetensors files alone.

    Raises:
        CheckpointError: no safetensors, a shard that is missing or cut short, or a tensor that its shard lacks.
    """
    index = folder / "model.safetensors.index.json"
    placed: Mapping[str, str] | None = None
    if (folder / "model.safetensors").exists():  # transformers prefers it to an index, so it is what will be loaded
        files = ["model.safetensors"]
    elif index.exists():
        listed = read_json(folder, index.name)
        placed = listed.get("weight_map")
        lists = isinstance(placed, dict) and all(isinstance(file, str) for file in placed.values())
        if not lists or not isinstance(listed.get("metadata"), dict) or placed is None:
            raise CheckpointError(f"{index} is not a safetensors index (metadata and weight_map); fetch it again")
        files = sorted(set(placed.values()))
    else:
        raise CheckpointError(_no_weights(folder))
    missing = [file for file in files if Path(file).name != file or not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(files)} weight files: {_some(missing)}; fetch them again"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{folder / file} is damaged or cut short ({error}); fetch it again or compare its checksum"
            ) from None
    lost = [name for name in placed or () if name not in shapes]
    if lost:
        raise CheckpointError(
            f"{folder}: {len(lost)} tensors of the index are in no shard: {_some(lost)}; fetch it again"
        )
    return shapes


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} holds pickled weights ({_some(pickles)}), which can run code when opened; `longview "
            f"convert-weights {folder}` rewrites them as safetensors, without running it"
        )
    if (folder / "pytorch_model.bin.index.json").exists():
        return (
            f"{folder} lacks its weights, which are published pickled only; download all of it to a folder, and "
            "`longview convert-weights FOLDER` rewrites them as safetensors"
        )
    return f"{folder} holds no model.safetensors and no model.safetensors.index.json; name the folder of a checkpoint"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of one file: safetensors, or PyTorch's format through its reader of plain data, which runs no code.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as tensors ({line(error)}); fetch it again") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise CheckpointError(f"{path} holds more than tensors by name; fetch it again")
    return found


def shapes_of(model_class: Any, config: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a model of this config; nothing is allocated.

    Raises:
        CheckpointError: no model can be built from the config.
    """
    _clear_attention(config)
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    except Exception as error:  # whatever transformers and torch raise for sizes that fit no model
        raise CheckpointError(
            f"{folder / 'config.json'} describes no model that can be built: {line(error)}"
        ) from error


def check_blocks(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, configured: Any, folder: Path, unused: int = 0
) -> None:
    """Compare the number of blocks in a config with the blocks whose tensors are there.

    Args:
        prefix: What stands before a block's number in a tensor's name.
        unused: Blocks at the end that nothing uses, and that may be missing.

    Raises:
        CheckpointError: the numbers differ.
    """
    found = {name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)}
    if configured not in range(len(found), len(found) + unused + 1):
        raise CheckpointError(
            f"{folder} has {len(found)} blocks {prefix}N, but its config.json says {configured!r}; they do not belong "
            "together"
        )


def check_numbers(config: Any, names: Iterable[str], folder: Path) -> None:
    """
    Raises:
        CheckpointError: one of these fields of a config is not a finite number above zero.
    """
    for name in names:
        value = getattr(config, name, None)
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise CheckpointError(f"{folder / 'config.json'}: {name} is {value!r:.40}; expected a number above 0")


def check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    folder: Path,
    optional: Iterable[str] = (),
) -> None:
    """Compare the tensors a model needs with those a checkpoint has.

    Args:
        optional: Prefixes of tensors that may be missing, because nothing uses them.

    Raises:
        CheckpointError: tensors are missing or of another shape; names the first few.
    """
    missing = [name for name in expected if name not in found and not name.startswith(tuple(optional))]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(expected)} tensors: {_some(missing)}; the download is incomplete, "
            "or the weights belong to another model than its config.json"
        )
    wrong = [name for name, shape in expected.items() if name in found and found[name] != shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{folder}: {len(wrong)} tensors have the wrong shape, first {name}: {list(found[name])} instead of "
            f"{list(expected[name])}; config.json and weights do not belong together"
        )


def safe_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained` without those that could run code or load pickles."""
    safe = {key: value for key, value in arguments.items() if key not in ("trust_remote_code", "code_revision")}
    if arguments.get("trust_remote_code"):
        warnings.warn("trust_remote_code is ignored: longview never runs code from a checkpoint", stacklevel=3)
    if safe.get("attn_implementation") is not None:
        check_attention(safe["attn_implementation"])
    if "torch_dtype" in safe:
        safe.setdefault("dtype", safe.pop("torch_dtype"))
    return {**safe, "use_safetensors": True, "trust_remote_code": False}


def check_generation_config(folder: Path) -> None:
    """
    Raises:
        CheckpointError: there is a generation_config.json, and it is not a JSON object.
    """
    if (folder / "generation_config.json").exists():
        read_json(folder, "generation_config.json")


def with_device_map(model: Any, arguments: Mapping[str, Any], *info: Any) -> Any:
    """The model, with the `hf_device_map` that callers of `device_map` expect, on one device, too.

    Args:
        info: Of its loading, which is then returned beside it.
    """
    if "device_map" in arguments and not hasattr(model, "hf_device_map"):
        model.hf_device_map = {"": model.device}
    return (model, *info) if info else model


def size_on_disk(folder: Path) -> int:
    """Bytes of the folder's weight files."""
    return sum(os.path.getsize(path) for path in folder.glob("*.safetensors"))


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
