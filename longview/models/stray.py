"""What lies in the folder of a model and is no part of it, or is stored in a form that is not opened here.

An adapter beside a whole model is left out, and named: transformers applies it unasked. Weights that were stored
quantised are refused in one line: longview quantises while it opens the full ones.
"""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from longview.errors import CheckpointError
from longview.models import checkpoint
from longview.models.sources import ADAPTER_CONFIG

_MARKS = {"bitsandbytes": (".SCB", ".absmax", ".quant_map"), "gptq": (".qweight",)}
"""How names of tensors end that a scheme leaves; without any, the weights are whole."""
_opening: contextvars.ContextVar[bool] = contextvars.ContextVar("opening", default=False)


def adapter_beside(folder: Path) -> str | None:
    """That a folder holds an adapter beside its whole model, in one line."""
    if not (folder / ADAPTER_CONFIG).exists():
        return None
    return (
        f"{folder} holds an adapter beside its whole model ({ADAPTER_CONFIG}), which is left out; --adapter {folder} "
        "applies it, adapter= in Python"
    )


def without_adapter(open_model: Callable[..., Any], folder: Path | None, *args: Any, **arguments: Any) -> Any:
    """The model that transformers opens in a folder, without an adapter that lies there; warns of one."""
    told = None if folder is None else adapter_beside(folder)
    if told is not None:
        warnings.warn(told, stacklevel=4)
    token = _opening.set(True)
    try:
        return open_model(folder, *args, **arguments)
    finally:
        _opening.reset(token)


class WithoutStrayAdapters:
    """Mixin: while the model is being opened, transformers' call that would apply an adapter does nothing.

    What that call returns replaces what `output_loading_info=True` tells of the model, so it returns the latter.
    """

    _loading_info: Any = None

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As `PreTrainedModel.mark_tied_weights_as_initialized`."""
        self._loading_info = loading_info
        super().mark_tied_weights_as_initialized(loading_info)  # type: ignore[misc]

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """As `PreTrainedModel.load_adapter`."""
        if _opening.get():
            return self._loading_info
        return super().load_adapter(*args, **kwargs)  # type: ignore[misc]


def check_quantization(shapes: Iterable[str], folder: Path, opened: Iterable[str] = ()) -> None:
    """
    Args:
        shapes: Names of the checkpoint's tensors.
        opened: Schemes that the family opens itself.

    Raises:
        CheckpointError: config.json says that the weights are quantised by a scheme that is not opened here.
    """
    stated = checkpoint.read_config(folder).get("quantization_config")
    if stated is None:
        return
    fields = stated if isinstance(stated, dict) else {}
    bitsandbytes = fields.get("load_in_4bit") or fields.get("load_in_8bit")
    scheme = fields.get("quant_method") or ("bitsandbytes" if bitsandbytes else "an unknown scheme")
    marks = _MARKS.get(scheme)
    if marks is not None and not any(name.endswith(marks) for name in shapes):
        raise CheckpointError(
            f"{folder / 'config.json'} says that the weights are quantised by {scheme}, but they are whole: take "
            "quantization_config out of it, and open with --load-8bit or --load-4bit where they are to be"
        )
    if scheme in opened:
        return
    raise CheckpointError(
        f"{folder} holds weights that were quantised by {scheme!s:.40}, which are not opened here; open the release "
        "that is not quantised, with --quantize int8 or --load-4bit where memory is short"
    )
