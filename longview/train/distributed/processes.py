"""The processes that train together: which one this is, what they tell one another, and that none waits in vain.

torchrun starts them, one a device, and tells each who it is (RANK, WORLD_SIZE, LOCAL_RANK); without it there is one,
and everything here costs nothing. The first process alone prints, logs and writes what there is once.

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

Told = TypeVar("Told")
NAMED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets beside WORLD_SIZE."""
PARTING = timedelta(seconds=20)
"""How long the processes of a run wait for one another at its end, before each ends alone."""

_control: Any = None
"""The group that words go through, gloo's, whatever device tensors are on."""


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
def joined() -> Iterator[None]:
    """Meet the other processes, and part from them at the end."""
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
    at_odds = True
    try:
        yield
        at_odds = False
    except (LongviewError, SystemExit, KeyboardInterrupt):
        at_odds = False
        raise
    finally:
        # Without it the first to leave takes the connection away from the others, who may not all come.
        if not at_odds:
            with contextlib.suppress(RuntimeError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dist.monitored_barrier(_control, PARTING)
        _control = None
        dist.destroy_process_group()


def gather(value: Told) -> list[Told]:
    """What each process says, in order."""
    if count() == 1:
        return [value]
    assert _control is not None, "processes speak once they have joined"
    said: list[Any] = [None] * count()
    dist.all_gather_object(said, value, group=_control)
    return said


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What one process fails in, all give up: the first one tells the reason, the others end as it does.

    Not to be nested: what an inner one raises is agreed on already.

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
    reason = next((said for said in gather(None if failed is None else str(failed)) if said is not None), None)
    if reason is None:
        return
    if not is_first():
        raise SystemExit(2)
    raise failed or LongviewError(reason)
