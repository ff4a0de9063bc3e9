"""The Auto classes the authors' programs import: the same arguments, our families, and no foreign code.

They find a model as `longview.load` does (folder, hub id, `modelscope:` id, "demo"), then hand over to transformers'.
"""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Any

import transformers

from longview.models import checkpoint
from longview.models.families import families

families()  # registers them, so that transformers' own Auto classes know them too


class _Auto:
    _inner: Any

    @classmethod
    def from_pretrained(cls, name: str | PathLike, *args: Any, **kwargs: Any) -> Any:
        """As transformers' class of the same name; `trust_remote_code` is accepted and ignored."""
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        arguments = checkpoint.safe_arguments(kwargs)
        if not issubclass(cls, _AutoModelBase):
            arguments.pop("use_safetensors", None)
        return cls._inner.from_pretrained(folder, *args, **arguments)


class _AutoModelBase(_Auto):
    @classmethod
    def from_pretrained(cls, name: str | PathLike, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("attn_implementation")
        if wanted == "flash_attention_2" and not transformers.utils.is_flash_attn_2_available():
            warnings.warn(
                "flash_attention_2 is not installed here; using sdpa, which gives the same answers", stacklevel=2
            )
            kwargs["attn_implementation"] = "sdpa"
        return super().from_pretrained(name, *args, **kwargs)


class AutoConfig(_Auto):
    _inner = transformers.AutoConfig


class AutoTokenizer(_Auto):
    _inner = transformers.AutoTokenizer


class AutoProcessor(_Auto):
    _inner = transformers.AutoProcessor


class AutoModel(_AutoModelBase):
    _inner = transformers.AutoModel


class AutoModelForCausalLM(_AutoModelBase):
    _inner = transformers.AutoModelForCausalLM


class AutoModelForImageTextToText(_AutoModelBase):
    _inner = transformers.AutoModelForImageTextToText
