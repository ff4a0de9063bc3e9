"""Where models come from: the name of a model, or the folder of an adapter, → a folder on this machine.

No torch here, so that a wrong name is told at once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError, MissingExtraError
from longview.versions import warn_of_untested

DEMOS = {"demo": "owl3", "demo-owl3": "owl3", "demo-ovis2": "ovis2", "demo-mgm": "mgm"}
"""Names of the embedded models, and their folders under `longview/demo`."""
TOWERS = {"demo-siglip": "siglip"}
"""The same for the SigLIP that chooses frames for them."""
ADAPTER_CONFIG = "adapter_config.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
CONNECT_SECONDS, REACH_SECONDS = 5.0, 8.0
"""To connect to the hub, and to have its answer, name lookup included."""
REMEMBER_SECONDS = 60.0
_reached: dict[str, tuple[float, str]] = {}
"""Hub → when it was last tried, and why it could not be reached; empty where it could."""


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
    folder = _local(name)
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


def is_hub_id(name: str) -> bool:
    """Whether a name is that of a repository, and of nothing on this machine."""
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith(".") and len(name) < 200 and _local(name) is None


def _local(name: str) -> Path | None:
    """What lies at a path, if anything does."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, no such user, a null byte: no path
        path = Path(name).expanduser()
        return path if path.exists() else None
    return None


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
    folder = _local(str(name))
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


def line(error: Exception) -> str:
    """An error of another library as one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# ── hubs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": _WANTED}
    with hub_errors(name):
        try:
            reach_hub(name)
        except CheckpointError:
            with contextlib.suppress(LocalEntryNotFoundError):
                return Path(snapshot_download(name, local_files_only=True, **wanted))
            raise
        return Path(snapshot_download(name, **wanted))


def fetch_file(name: str, file: str) -> Path:
    """One file of a hub id, downloaded once.

    Raises:
        CheckpointError: it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(name):
        return Path(hf_hub_download(name, file))


def reach_hub(name: str) -> None:
    """See that the hub can be reached: its own client repeats what fails for minutes, and name lookups have no bound.

    Raises:
        CheckpointError: it cannot, for a model of that name.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    began, reason = _reached.get(constants.ENDPOINT, (-REMEMBER_SECONDS, ""))
    if time.monotonic() - began >= REMEMBER_SECONDS:
        reason = _fail_to_reach(constants.ENDPOINT)
        _reached[constants.ENDPOINT] = time.monotonic(), reason
    if reason:
        raise CheckpointError(
            f"{name!r} is no folder here, and the hub at {constants.ENDPOINT} cannot be reached ({reason}); check the "
            "network, or give a local folder"
        )


def _fail_to_reach(endpoint: str) -> str:
    """Why a hub cannot be reached; empty where it can."""
    from huggingface_hub.utils import get_session

    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=CONNECT_SECONDS)
            found.append("")
        except Exception as error:  # noqa: BLE001 - whatever it is, the hub was not reached
            found.append(line(error))

    thread = threading.Thread(target=ask, name="longview-hub", daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return found[0] if found else f"no answer in {REACH_SECONDS:.0f} s"


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
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
            f"{name!r} is no local folder and could not be fetched from the hub ({line(error)}); check the name, the "
            "network and, for a gated model, `hf auth login`, or give a local folder"
        ) from error


def _from_modelscope(name: str, revision: str | None) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise MissingExtraError("modelscope: ids", "modelscope") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # the client documents no exception classes
        raise CheckpointError(f"modelscope has no model {name!r} to fetch ({error}); check the name") from error
