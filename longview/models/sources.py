"""Where models come from: the name of a model, or the folder of an adapter, → a folder on this machine.

No torch here, so that a wrong name is told at once.
"""

from __future__ import annotations

import difflib
import functools
import json
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError, MissingExtraError
from longview.hubs import fetch, fetch_from_modelscope, hub_errors, is_hub_id, line, local_path
from longview.versions import warn_of_untested

DEMOS = {
    "demo": "owl3",
    "demo-owl3": "owl3",
    "demo-ovis2": "ovis2",
    "demo-mgm": "mgm",
    "demo-owl3-print": "owl3-print",  # these read small print as well, each by its family's own mechanism
    "demo-ovis2-print": "ovis2-print",
    "demo-mgm-print": "mgm-print",
    "demo-owl3-many": "owl3-many",  # finds one of up to 400 numbered pictures
    "demo-owl3-knowledge": "owl3-knowledge",  # answers from pieces of knowledge as well: `longview ask --knowledge`
}
"""Names of the embedded models, and their folders under `longview/demo`."""
TOWERS = {"demo-siglip": "siglip"}
"""The same for the SigLIP that chooses frames for them."""
ADAPTER_CONFIG = "adapter_config.json"

_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def resolve(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a model: "demo", a folder, a Hugging Face id, or `modelscope:` and an id there.

    Hub files are downloaded once, with a progress bar, into the hub's own cache. Only configuration, tokenizer and
    safetensors files are fetched.

    Raises:
        CheckpointError: there is no such model or folder, it cannot be reached, or it holds no whole model.
    """
    warn_of_untested()
    if (folder := embedded(name)) is not None:
        return folder
    if name.startswith("modelscope:"):
        return _from_modelscope(name.removeprefix("modelscope:"), revision)
    folder = local_path(name)
    if folder is not None and folder.is_dir():
        _check_whole(name, folder)
        return folder
    if folder is not None:
        raise CheckpointError(f"{name} is a file; name the folder that holds config.json and the safetensors files")
    if is_hub_id(name):
        return _from_hub(name, revision)
    if "/" in name or name.startswith(("~", ".")):
        raise CheckpointError(f"there is no folder {name!r}; check the path")
    near = difflib.get_close_matches(name, DEMOS, n=1)
    hint = f"did you mean {near[0]!r}? Else give" if near else "give"
    raise CheckpointError(
        f"no model or folder is called {name!r}; {hint} a folder, a hub id (mPLUG/mPLUG-Owl3-7B-241101), or 'demo'"
    )


def check_name(name: str) -> None:
    """See that a model may exist; of a hub, nothing is asked.

    Raises:
        CheckpointError: it names no embedded model and no folder of one, nor can it be an id.
    """
    if not name.startswith("modelscope:") and not is_hub_id(name):
        resolve(name)


def embedded(name: str) -> Path | None:
    """The folder of an embedded model, or None."""
    found = DEMOS.get(name) or TOWERS.get(name)
    return None if found is None else Path(__file__).parent.parent / "demo" / found


def _check_whole(name: str, folder: Path) -> None:
    """
    Raises:
        CheckpointError: a folder without a config.json is that of an adapter, or of a run of training.
    """
    if (folder / "config.json").exists():
        return
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{name} is a LoRA adapter and no whole model; give it as --adapter {name}")
    if (folder / "adapter" / ADAPTER_CONFIG).exists():
        raise CheckpointError(f"{name} is the folder of a run that left an adapter; give it as --adapter {name}")
    if (folder / "model" / "config.json").exists():
        raise CheckpointError(f"{name} is the folder of a run; its model is {Path(name) / 'model'}")


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def adapter_folder(name: str | Path) -> Path:
    """The folder of a LoRA adapter, from its own path or that of the run that left it.

    Raises:
        CheckpointError: there is no such folder, or no adapter in it.
    """
    folder = local_path(str(name))
    if folder is None:
        raise CheckpointError(f"there is no folder {str(name)!r}; check the path of the adapter")
    for found in (folder, folder / "adapter"):
        if (found / ADAPTER_CONFIG).is_file():
            return found
    if (folder / "config.json").is_file():
        raise CheckpointError(f"{name} is a whole model and no adapter; give it as --model {name}")
    if (folder / "recipe.json").is_file():
        raise CheckpointError(f"the run in {name} has left no adapter yet; longview export {name} FOLDER writes one")
    raise CheckpointError(f"{name} holds no {ADAPTER_CONFIG}; name the folder of a LoRA adapter")


def base_of(folder: str | Path) -> str:
    """The model that an adapter was trained on, as its folder names it.

    Raises:
        CheckpointError: the folder is no adapter's, or names no model.
    """
    folder = adapter_folder(folder)
    name = read_json(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG} does not say on which model it was trained; give --model")
    return name


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """One of a folder's JSON files.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {name}; name the folder of a checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({line(error)}); fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch it again")
    return content


# ── hubs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    download = functools.partial(snapshot_download, name, revision=revision, allow_patterns=_WANTED)
    with hub_errors(name):
        return Path(fetch(name, download))


def fetch_file(name: str, file: str) -> Path:
    """One file of a hub id, downloaded once.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(name):
        return Path(fetch(name, functools.partial(hf_hub_download, name, file)))


def _from_modelscope(name: str, revision: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise MissingExtraError("modelscope: ids", "modelscope") from error
    download = functools.partial(snapshot_download, name, revision=revision, allow_patterns=_WANTED)
    return Path(fetch_from_modelscope(f"model {name!r}", download, CheckpointError))
