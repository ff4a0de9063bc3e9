"""Names of devices, dtypes, attention and quantisation as a user gives them. No torch here: a typing error is told at
once, and what this machine has is for `longview.engine.devices` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longview.errors import RequestError

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""What weights and arithmetic may be in, and the short name of each."""
DEVICES = ("cpu", "cuda", "mps")
ATTENTION = ("sdpa", "eager", "flash_attention_2")
"""Implementations of attention that are ever passed on to transformers."""
QUANTIZE = ("int8", "int4")
KV_DTYPES = ("int8",)


def full_dtype(name: Any) -> Any:
    """The full name of a dtype that may be short: `bf16` → `bfloat16`; anything else as it is."""
    return next((full for full, short in DTYPES.items() if name == short), name)


def dtypes(*names: str) -> str:
    """Dtypes with their short names, for a text; default: all."""
    return listed([f"{full} ({DTYPES[full]})" for full in names or DTYPES])


def check_dtype(name: str, known: Sequence[str] = tuple(DTYPES)) -> str:
    """The full name of a dtype.

    Raises:
        RequestError: there is no such dtype.
    """
    if full_dtype(name) not in known:
        raise RequestError(f"unknown dtype {name!r:.40}; expected {dtypes(*known)}")
    return full_dtype(name)


def check_device(name: str) -> str:
    """
    Raises:
        RequestError: no device can have this name.
    """
    kind, colon, index = name.partition(":")
    if kind not in DEVICES or (colon and not (index.isascii() and index.isdigit())):
        raise RequestError(f"unknown device {name!r:.40}; expected cpu, cuda, cuda:N or mps")
    return name


def check_attention(name: Any) -> Any:
    """
    Raises:
        RequestError: there is no such implementation of attention; transformers would look for it on the hub.
    """
    names = name.values() if isinstance(name, Mapping) else [name]
    unknown = next((each for each in names if each not in ATTENTION), None)
    if unknown is not None:
        raise RequestError(f"unknown attention {unknown!r:.80}; expected one of {', '.join(ATTENTION)}")
    return name


def check_quantize(kind: str) -> str:
    """
    Raises:
        RequestError: weights cannot be quantised so.
    """
    if kind not in QUANTIZE:
        raise RequestError(f"unknown quantize {kind!r:.40}; expected {' or '.join(QUANTIZE)}")
    return kind


def check_kv_dtype(name: str) -> str:
    """
    Raises:
        RequestError: keys and values of pictures cannot be kept so.
    """
    if name not in KV_DTYPES:
        raise RequestError(f"unknown kv_dtype {name!r:.40}; expected {listed(KV_DTYPES)}, or leave it out")
    return name


def check_one_quantization(quantize: str | None, load_8bit: bool, load_4bit: bool) -> None:
    """
    Raises:
        RequestError: weights are to be quantised in two ways.
    """
    if quantize is not None and (load_8bit or load_4bit):
        raise RequestError("quantize and load_8bit or load_4bit are two ways to the same; choose one")
    if load_8bit and load_4bit:
        raise RequestError("--load-8bit and --load-4bit contradict each other; choose one")


def listed(names: Sequence[str]) -> str:
    """Names with commas between them, and "or" before the last."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
