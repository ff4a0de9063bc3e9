"""The error of a medium that is over one of `longview.requests.Limits`, and sizes as people read them."""

from __future__ import annotations

from longview.errors import MediaError
from longview.requests import Limits, MiB


def beyond(name: str, found: str, limits: Limits, field: str) -> MediaError:
    """The error for a medium over a limit: what was found, the limit, and the option that raises it."""
    value = getattr(limits, field)
    amount = size(value) if field.endswith("_bytes") else f"{value:,} s" if field.endswith("_seconds") else f"{value:,}"
    return MediaError(
        f"{name} {found}; the limit is {amount}, raise it with --{field.replace('_', '-')} or Limits({field}=…)"
    )


def size(count: float) -> str:
    """Return a number of bytes as a user reads it; exact where rounding would make it look like a whole limit."""
    if count < MiB or (count % MiB and f"{count / MiB:.1f}".endswith(".0")):
        return f"{count:,} byte{'' if count == 1 else 's'}"
    return f"{count / MiB:,.{1 if count % MiB else 0}f} MiB"
