"""The only code that touches weight files: find a checkpoint, look before loading, refuse what is unsafe or incomplete.

Nothing in a checkpoint folder is ever executed: no `auto_map` code, no pickle. Weights are safetensors.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer

from longview.errors import CheckpointError, MissingExtraError

DEMOS = {"demo": "owl3", "demo-owl3": "owl3"}
"""Names of the embedded models, and their folders under `longview/demo`."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")


# ── names → folders ──────────────────────────────────────────────────────────────────────────────────────────────────


def resolve(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a model: "demo", a folder, a Hugging Face id, or `modelscope:` and an id there.

    Hub files are downloaded once, with a progress bar, into the hub's own cache. Only configuration, tokenizer and
    safetensors files are fetched.

    Raises:
        CheckpointError: there is no such model or folder, or it cannot be reached.
    """
    if name in DEMOS:
        return Path(__file__).parent.parent / "demo" / DEMOS[name]
    if name.startswith("modelscope:"):
        return _from_modelscope(name.removeprefix("modelscope:"), revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name} is a file; name the folder that holds config.json and the safetensors files")
    if _is_hub_id(name):
        return _from_hub(name, revision)
    near = difflib.get_close_matches(name, DEMOS, n=1)
    hint = f"did you mean {near[0]!r}? Else give" if near else "give"
    raise CheckpointError(
        f"no model or folder is called {name!r}; {hint} a folder, a hub id (mPLUG/mPLUG-Owl3-7B-241101), or 'demo'"
    )


def peek(name: str, *, revision: str | None = None) -> tuple[Path, dict[str, tuple[int, ...]]]:
    """A folder with the model's config.json, and the shapes of its tensors; a hub's weights are not downloaded.

    Raises:
        CheckpointError: as `resolve` and `tensor_shapes`.
    """
    if not _is_hub_id(name):
        folder = resolve(name, revision=revision)
        return folder, tensor_shapes(folder)
    from huggingface_hub import get_safetensors_metadata, hf_hub_download

    with _hub_errors(name):
        config = hf_hub_download(name, "config.json", revision=revision)
        files = get_safetensors_metadata(name, revision=revision).files_metadata
    found = {key: tuple(tensor.shape) for file in files.values() for key, tensor in file.tensors.items()}
    return Path(config).parent, found


def _is_hub_id(name: str) -> bool:
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith(".") and not Path(name).exists()


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """What can go wrong with a hub, as one line."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
    )

    known = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, NotASafetensorsRepoError, OSError)
    try:
        yield
    except known as error:
        raise CheckpointError(
            f"{name!r} is no local folder and could not be fetched from the hub ({_line(error)}); check the name, the "
            "network and, for a gated model, `hf auth login`, or give a local folder"
        ) from error


def _from_modelscope(name: str, revision: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise MissingExtraError("modelscope: ids", "the modelscope package", "modelscope") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # the client documents no exception classes
        raise CheckpointError(f"modelscope has no model {name!r} to fetch ({error}); check the name") from error


# ── looking before loading ───────────────────────────────────────────────────────────────────────────────────────────


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json; name the folder of a checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); fetch it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch it again")
    return config


def open_config(config_class: Any, folder: Path) -> Any:
    """A family's config from a folder.

    Raises:
        CheckpointError: config.json is missing, or a value in it is of the wrong type; names it.
    """
    read_config(folder)
    try:
        return config_class.from_pretrained(folder)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe this family: {_line(error)}") from error


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if not any((folder / file).exists() for file in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise CheckpointError(
            f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); fetch it again"
        )
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing more particular
        raise CheckpointError(f"the tokenizer of {folder} cannot be read ({_line(error)}); fetch it again") from error


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor of a checkpoint, from the headers of its safetensors files alone.

    Raises:
        CheckpointError: no safetensors, a shard that is missing or cut short, or a tensor that its shard lacks.
    """
    index = folder / "model.safetensors.index.json"
    placed: Mapping[str, str] | None = None
    if index.exists():
        try:
            listed = json.loads(index.read_text(encoding="utf-8"))
            _, placed = listed["metadata"], listed["weight_map"]
            files = sorted(set(placed.values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index} is not a safetensors index ({error!r}); fetch it again") from None
    elif (folder / "model.safetensors").exists():
        files = ["model.safetensors"]
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
            f"{folder} holds pickled weights ({_some(pickles)}), which can run code when opened; longview reads "
            "safetensors only: convert them with the safetensors library on a machine you can spare"
        )
    return f"{folder} holds no model.safetensors and no model.safetensors.index.json; name the folder of a checkpoint"


def check_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    folder: Path,
    optional: Iterable[str] = (),
) -> None:
    """Compare the tensors a model needs with those a checkpoint has.

    Args:
        optional: Prefixes of tensors that may be missing, because nothing reads them.

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
    """Arguments of `from_pretrained` without those that could run code or read pickles."""
    safe = {key: value for key, value in arguments.items() if key not in ("trust_remote_code", "code_revision")}
    if arguments.get("trust_remote_code"):
        warnings.warn("trust_remote_code is ignored: longview never runs code from a checkpoint", stacklevel=3)
    if "torch_dtype" in safe:
        safe.setdefault("dtype", safe.pop("torch_dtype"))
    return {**safe, "use_safetensors": True}


def size_on_disk(folder: Path) -> int:
    """Bytes of the folder's weight files."""
    return sum(os.path.getsize(path) for path in folder.glob("*.safetensors"))


def _line(error: Exception) -> str:
    """An error of another library as one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
