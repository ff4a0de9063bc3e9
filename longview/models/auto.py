"""The Auto classes the authors' programs import: the same arguments, our families, and no foreign code.

They find a model as `longview.load` does (folder, hub id, `modelscope:` id, "demo") and its family by its config.json.
Code in a folder (`auto_map`) is ignored.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from longview.models import checkpoint
from longview.models.families import families, family_of
from longview.models.transformers_seams import is_flash_attn_2_available

families()  # registers them, so that transformers' own Auto classes know them too


def _find(name: str | PathLike, arguments: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The model's folder, and the arguments without those that could run code."""
    safe = checkpoint.safe_arguments(arguments)
    unsafe = ("use_safetensors", "trust_remote_code")
    folder = checkpoint.resolve(str(name), revision=safe.pop("revision", None))
    return folder, {key: value for key, value in safe.items() if key not in unsafe}


class AutoConfig:
    @classmethod
    def from_pretrained(cls, name: str | PathLike, **arguments: Any) -> Any:
        """A model's config. `trust_remote_code` is accepted and ignored."""
        folder, options = _find(name, arguments)
        return checkpoint.open_config(family_of(folder).Config, folder, **options)


class AutoTokenizer:
    @classmethod
    def from_pretrained(cls, name: str | PathLike, **arguments: Any) -> Any:
        """A model's tokenizer. `trust_remote_code` is accepted and ignored."""
        folder, options = _find(name, arguments)
        return checkpoint.open_tokenizer(folder, **options)


class AutoProcessor:
    @classmethod
    def from_pretrained(cls, name: str | PathLike, **arguments: Any) -> Any:
        """A model's processor. `trust_remote_code` is accepted and ignored."""
        folder, options = _find(name, arguments)
        return family_of(folder).Processor.from_pretrained(folder, **options)


class AutoModel:
    @classmethod
    def from_pretrained(cls, name: str | PathLike, **arguments: Any) -> Any:
        """A model; transformers' arguments, of which `trust_remote_code` is accepted and ignored."""
        folder, options = _find(name, arguments)
        if options.get("attn_implementation") == "flash_attention_2" and not is_flash_attn_2_available():
            message = "flash_attention_2 is not installed here; using sdpa, which gives the same answers"
            warnings.warn(message, stacklevel=2)
            options["attn_implementation"] = "sdpa"
        return family_of(folder).Model.from_pretrained(folder, **options)


class AutoModelForCausalLM(AutoModel):
    """The same models: all of ours generate text."""


class AutoModelForImageTextToText(AutoModel):
    """The same models: all of ours take pictures."""
