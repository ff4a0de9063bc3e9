"""Arguments of `from_pretrained` that are fields of the model's config, as transformers takes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from longview.errors import RequestError
from longview.models.stray import without_adapter

LOADING = ("attn_implementation", "dtype", "torch_dtype", "quantization_config", "name_or_path", "architectures")
"""Fields that transformers takes as arguments of loading."""


def configured(config: Any, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A config with the fields that are among the arguments: (its copy, those fields, the other arguments).

    A field is the model's, or else its language model's. One that is a config takes a dict of what changes in it.

    Raises:
        RequestError: a value of the wrong type.
    """
    config = copy.deepcopy(config)
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        owner = _owner(config, name)
        if owner is None:
            continue
        current = getattr(owner, name)
        if isinstance(current, PreTrainedConfig) and isinstance(value, Mapping):
            value = type(current)(**{**current.to_dict(), **value})
        kinds = (int, float) if isinstance(current, float) else type(current)
        if current is not None and value is not None and not isinstance(value, kinds):
            raise RequestError(f"{name} is {value!r:.40}, which is no {type(current).__name__}, as the config has it")
        setattr(owner, name, value)
        given[name] = value
    return config, given, {name: value for name, value in arguments.items() if name not in given}


def check_kept(config: Any, given: Mapping[str, Any]) -> None:
    """
    Raises:
        RequestError: the checkpoint's tensors decide one of the fields that were given, and otherwise.
    """
    for name, value in given.items():
        found = getattr(_owner(config, name), name)
        if not isinstance(value, PreTrainedConfig) and found != value:
            raise RequestError(f"{name} is {found!r:.40} by the checkpoint's tensors, not {value!r:.40}; leave it out")


def opened(open_model: Callable[..., Any], folder: Path | None, *args: Any, **arguments: Any) -> tuple[Any, ...]:
    """The model that transformers opens in a folder, without an adapter that lies there.

    Returns:
        The model, and with `output_loading_info=True` what transformers tells of its loading.

    Raises:
        RequestError: one of the arguments is none.
    """
    try:
        result = without_adapter(open_model, folder, *args, **arguments)
        return result if isinstance(result, tuple) else (result,)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        name = str(error).rsplit("argument", 1)[-1].strip()
        raise RequestError(
            f"{name} is no argument of from_pretrained and no field of this model's config; leave it out"
        ) from error


def _owner(config: Any, name: str) -> Any:
    """The config, this one or its language model's, that has a field."""
    if name in LOADING or name.startswith("_"):
        return None
    return next((own for own in (config, config.get_text_config()) if name in vars(own)), None)
