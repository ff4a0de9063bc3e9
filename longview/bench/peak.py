"""Peak memory of this process, or of its part on a GPU."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from pathlib import Path

import torch


def reset_peak_memory(device: str) -> None:
    """Reset the peak of memory to what is held now."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # elsewhere the peak includes loading
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: the peak becomes what is held now


def peak_memory(device: str) -> int:
    """Peak memory in bytes."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
