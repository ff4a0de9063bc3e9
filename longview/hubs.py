"""Hubs of models and datasets: what is fetched from one or found in its cache, and what is said of one out of reach.

Their own clients repeat what fails for minutes, and name lookups have no bound; here a hub that does not answer is told
within seconds. Nothing that takes time to import is imported here.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from longview.errors import CheckpointError, LongviewError

CONNECT_SECONDS, REACH_SECONDS = 5.0, 8.0
"""To connect to a hub, and to have its answer, name lookup included."""
REMEMBER_SECONDS = 60.0
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_reached: dict[str, tuple[float, str]] = {}
"""Hub → when it was last tried, and why it could not be reached; empty where it could."""

Fetched = TypeVar("Fetched")


def is_hub_id(name: str) -> bool:
    """Whether a name is that of a repository, and of nothing on this machine."""
    return bool(_HUB_ID.fullmatch(name)) and not name.startswith(".") and len(name) < 200 and local_path(name) is None


def local_path(name: str) -> Path | None:
    """What lies at a path, if anything does."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, no such user, a null byte: no path
        path = Path(name).expanduser()
        return path if path.exists() else None
    return None


def fetch(name: str, download: Callable[..., Fetched]) -> Fetched:
    """What `download` brings of a Hugging Face id; where the hub cannot be reached, from the hub's cache.

    Args:
        download: Takes `local_files_only`.

    Raises:
        CheckpointError: the hub cannot be reached, and the cache has nothing of that name.
    """
    try:
        reach_hub(name)
    except CheckpointError:
        with contextlib.suppress(OSError):  # it is not in the cache
            return download(local_files_only=True)
        raise
    return download()


def fetch_from_modelscope(
    what: str, download: Callable[..., Fetched], error_class: Callable[[str], LongviewError]
) -> Fetched:
    """What `download` brings from ModelScope's hub; where that cannot be reached, from its cache.

    Args:
        what: For the message: model 'some/model'.
        download: Of ModelScope's client; takes `local_files_only`.
    """
    endpoint = f"https://{os.environ.get('MODELSCOPE_DOMAIN', 'www.modelscope.cn')}"
    reason = _unreachable(endpoint)
    try:
        return download(local_files_only=True) if reason else download()
    except Exception as error:  # the client documents no exception classes
        if reason:
            raise error_class(
                f"modelscope's {what} is not here, and its hub at {endpoint} cannot be reached ({reason}); check the "
                "network"
            ) from error
        raise error_class(f"modelscope has no {what} to fetch ({line(error)}); check the name") from error


def reach_hub(name: str) -> None:
    """See that Hugging Face's hub can be reached.

    Raises:
        CheckpointError: it cannot, for a model of that name.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    reason = _unreachable(constants.ENDPOINT)
    if reason:
        raise CheckpointError(
            f"{name!r} is no folder here, and the hub at {constants.ENDPOINT} cannot be reached ({reason}); check the "
            "network, or give a local folder"
        )


def _unreachable(endpoint: str) -> str:
    """Why a hub cannot be reached, asked once a minute; empty where it can."""
    began, reason = _reached.get(endpoint, (-REMEMBER_SECONDS, ""))
    if time.monotonic() - began >= REMEMBER_SECONDS:
        reason = _fail_to_reach(endpoint)
        _reached[endpoint] = time.monotonic(), reason
    return reason


def _fail_to_reach(endpoint: str) -> str:
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
    """What can go wrong with Hugging Face's hub, as one line."""
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


def line(error: Exception) -> str:
    """An error of another library as one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
