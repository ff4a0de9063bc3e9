"""torch.distributed helpers: rank, gather, and an error in one process that ends all of them.

torchrun starts the processes, one a device, and sets RANK, WORLD_SIZE and LOCAL_RANK; without it there is one process,
and everything here costs nothing. The first process alone prints, logs, and writes what there is once.

Tested with gloo on CPUs; what is for GPUs (nccl) has not been run.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from longview.errors import LongviewError, RecipeError

Value = TypeVar("Value")
NAMED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets beside WORLD_SIZE."""
EXIT_TIMEOUT = timedelta(seconds=20)
"""How long the processes of a run wait for one another at its end."""

_control: Any = None
"""The gloo group for Python objects, whatever device tensors are on."""


def count() -> int:
    """How many processes there are, as the environment has it.

    Raises:
        RecipeError: it contradicts itself.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit() or not int(text):
        raise RecipeError(f"WORLD_SIZE is {text!r:.40} in the environment; let torchrun set it, or unset it")
    lacking = [name for name in NAMED if not os.environ.get(name)]
    if int(text) > 1 and lacking:
        raise RecipeError(f"the environment has WORLD_SIZE={text} and no {lacking[0]}; let torchrun set them, or none")
    return int(text)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def device() -> torch.device:
    """The device of this process: its own GPU, where there are any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The process group of a run, from its beginning to its end."""
    global _control
    if count() == 1 or _control is not None:
        yield
        return
    cuda = torch.cuda.is_available()
    local, held = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if cuda and local >= held:
        raise RecipeError(f"process {local} of this machine has no GPU, as it holds {held}; start {held} processes")
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    _control = dist.new_group(backend="gloo")
    failed = True
    try:
        yield
        failed = False
    except (LongviewError, SystemExit, KeyboardInterrupt):
        failed = False
        raise
    finally:
        # Without it the first to leave would close the connection under the others; some may never come.
        if not failed:
            with contextlib.suppress(RuntimeError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dist.monitored_barrier(_control, EXIT_TIMEOUT)
        _control = None
        dist.destroy_process_group()


def gather(value: Value) -> list[Value]:
    """The values of all processes, in the order of their ranks."""
    if count() == 1:
        return [value]
    assert _control is not None, "values are gathered within `process_group`"
    gathered: list[Any] = [None] * count()
    dist.all_gather_object(gathered, value, group=_control)
    return gathered


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """A LongviewError in one process ends all of them; the first process reports it.

    Not to be nested: what an inner one raises has been gathered already.

    Raises:
        LongviewError: the first reason there is.
        SystemExit: in the other processes.
    """
    if count() == 1:
        yield
        return
    failed: LongviewError | None = None
    try:
        yield
    except LongviewError as error:
        failed = error
    reasons = gather(None if failed is None else str(failed))
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is None:
        return
    if not is_first():
        raise SystemExit(2)
    raise failed or LongviewError(reason)
