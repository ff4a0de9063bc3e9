"""The errors of this package: a medium over a limit, and whatever Pillow or FFmpeg raise while decoding.

`decoder_errors` is the one place where a library's exceptions become a `MediaError`: every call of Pillow or PyAV on
bytes from outside is inside it. Their own messages are never passed on: they differ between versions and have leaked
memory addresses.
"""

from __future__ import annotations

from types import TracebackType

from longview.errors import LongviewError, MediaError
from longview.requests import Limits, MiB
from longview.wording import counted

DAMAGED = "is truncated or damaged; save or download it again"


class DecoderMemoryError(MediaError):
    """A decoder could not allocate what it asked for."""


class decoder_errors:
    """Context manager: any exception of a decoder becomes a `MediaError` that names the medium.

    Damaged bytes make decoders raise nearly anything: OSError, SyntaxError, IndexError, struct.error, MemoryError.
    Ours (`LongviewError`) pass as they are. No code of a caller may run inside it.
    """

    __slots__ = ("name", "problem")

    def __init__(self, name: str, problem: str = DAMAGED) -> None:
        self.name = name
        self.problem = problem

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, MemoryError):
            message = f"{self.name} needs more memory to decode than there is; give a smaller one"
            raise DecoderMemoryError(message) from None
        if isinstance(error, Exception) and not isinstance(error, LongviewError):
            raise MediaError(f"{self.name} {self.problem}") from None


def over_limit(name: str, found: str, limits: Limits, field: str) -> MediaError:
    """The error for a medium over a limit: what was found, the limit, and the option that raises it."""
    value = getattr(limits, field)
    amount = (
        format_bytes(value)
        if field.endswith("_bytes")
        else f"{value:,} s"
        if field.endswith("_seconds")
        else f"{value:,}"
    )
    error = MediaError(
        f"{name} {found}; the limit is {amount}, raise it with --{field.replace('_', '-')} or Limits({field}=…)"
    )
    error.limit = field
    return error


def format_bytes(count: float) -> str:
    """A number of bytes in MiB; exact where rounding would make it look like a whole limit."""
    if count < MiB or (count % MiB and f"{count / MiB:.1f}".endswith(".0")):
        return counted(count, "byte")
    return f"{count / MiB:,.{1 if count % MiB else 0}f} MiB"
