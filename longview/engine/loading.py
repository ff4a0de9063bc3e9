"""Open a model, in the precision and on the device that are asked for, behind an engine."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from typing import Any

import torch

from longview.engine.devices import FP32_ON_CPU_BYTES, best_device, check_attention, check_device, dtype_of
from longview.engine.engine import Budget, Engine
from longview.engine.hooks import Hook
from longview.errors import RequestError
from longview.models import adapters, checkpoint, processor_settings, quantization
from longview.models.families import Family, families, family_of
from longview.models.similarity import default_for
from longview.names import check_kv_dtype, check_one_quantization

TRANSFORMERS_OPTIONS = (
    "device_map",
    "generation_config",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
    "trust_remote_code",
)
"""Arguments of transformers' `from_pretrained` that mean something for a folder; the last is ignored with a warning."""


def with_adapters(engine: Engine, folders: Mapping[str, str]) -> dict[str, Engine]:
    """An engine for each LoRA adapter, by name, beside that of the base, whose weights and memory it shares.

    Raises:
        CheckpointError: an adapter does not fit.
    """
    parts = len(folders) + 1
    engine.scheduler.max_bytes //= parts
    engine.feature_cache.max_bytes //= parts
    engine.prefix_cache.max_bytes //= parts
    budget = Budget(
        requests=engine.scheduler.max_requests,
        kv_cache=engine.scheduler.max_bytes,
        features=engine.feature_cache.max_bytes,
        prefixes=engine.prefix_cache.max_bytes,
    )
    engines = {}
    for name, folder in folders.items():
        model = adapters.beside(engine.model, folder)
        processor = processor_settings.with_those_of(engine.processor, adapters.adapter_folder(folder), name)
        engines[name] = Engine(model, processor, name, engine._similarity, budget, hooks=engine.hooks)
    return engines


def load(
    name: str | PathLike | None = None,
    *,
    adapter: str | PathLike | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    similarity: str | PathLike | None = None,
    quantize: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    kv_dtype: str | None = None,
    compile: bool = False,
    budget: Budget | None = None,
    hooks: Sequence[Hook] = (),
    **options: Any,
) -> Engine:
    """Open a model and make it answer.

    Args:
        name: "demo" (embedded, works offline), a folder, a Hugging Face id, or `modelscope:` and an id there; default:
            the model that the adapter was trained on, or "demo".
        adapter: Folder of a LoRA adapter. It is merged into the weights, unless these are quantised. Pictures are cut
            as they were where it was trained.
        device: "cpu", "cuda", "cuda:1", "mps"; default: the best there is. `device_map="auto"` spreads over several.
        dtype: "float32", "bfloat16", "fp16", …; default: the checkpoint's, but fp32 for small models on a CPU.
        attn_implementation: "sdpa" (default), "eager", or "flash_attention_2" where that library is installed.
        similarity: The SigLIP checkpoint that `media={"select": "mdp3"}` chooses frames by, a folder or hub id;
            opened when needed. Default: embedded for the demo models, google/siglip-so400m-patch14-384 for others.
        quantize: "int8" or "int4": weights of the language model in so many bits; see `longview.models.quantization`.
        load_8bit, load_4bit: Quantise the language model with bitsandbytes.
        kv_dtype: "int8": keep keys and values of pictures in 8 bits (mPLUG-Owl3); see `longview.models.owl3.int8`.
        compile: Compile the decode pass, which takes up to half a minute; see `longview.engine.compiled`.
        budget: What the engine may hold; see `Budget`.
        hooks: Code that changes the messages of every request, or makes something of its answer; see
            `longview.engine.hooks`.
        options: Further arguments of the family's `from_pretrained`, and those of transformers' that are named in
            `TRANSFORMERS_OPTIONS`. MGM has `vision_tower`, `vision_tower_aux` (folders) and `model_base` (the language
            model of a first stage), Ovis2 `multimodal_max_length`.

    Raises:
        CheckpointError: no such model, or its folder is incomplete, unsafe or of an unknown family.
        RequestError: no such argument; or no such device, dtype, attention or number of bits here.
    """
    began = time.perf_counter()
    _check_known(options)
    device = device or best_device()
    check_device(device)
    if dtype is not None:
        dtype = dtype_of(dtype)
    if attn_implementation is not None:
        check_attention(attn_implementation)
    check_one_quantization(quantize, load_8bit, load_4bit)
    if kv_dtype is not None:
        options["kv_dtype"] = check_kv_dtype(kv_dtype)
    if quantize is not None:
        quantization.check(quantize, device, dtype)
        dtype = torch.bfloat16
        if device != "cpu":
            load_8bit, load_4bit = quantize == "int8", quantize == "int4"
    if name is None:
        name = "demo" if adapter is None else adapters.base_of(str(adapter))
    folder = checkpoint.resolve(str(name), revision=revision)
    family = family_of(folder)
    if dtype is None:
        small = 0 < checkpoint.size_on_disk(folder) < FP32_ON_CPU_BYTES
        dtype = "float32" if device == "cpu" and small else "auto"
    if "device_map" not in options:
        options["device_map"] = device
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    taken = (*TRANSFORMERS_OPTIONS, "attn_implementation", *_named_by(family))
    foreign = next((option for option in options if option not in taken and option not in _fields_of(family)), None)
    if foreign is not None:
        raise RequestError(f"{name} has no such part or setting, so {foreign} has no meaning for it; leave it out")
    if load_8bit or load_4bit:
        compute_dtype = None if dtype == "auto" else dtype_of(dtype)
        wanted = quantization.bitsandbytes_config(family.Model, load_8bit, load_4bit, device, compute_dtype)
        options["quantization_config"] = wanted
    with warnings.catch_warnings():
        if adapter is not None:  # which may lie in the model's own folder
            warnings.filterwarnings("ignore", ".* holds an adapter beside its whole model")
        model = family.Model.from_pretrained(folder, dtype=dtype, **options).eval()
    if adapter is not None:
        adapters.open_into(model, str(adapter), merge=not (load_8bit or load_4bit))
    if quantize is not None and device == "cpu":
        quantization.quantize(model, quantize)
    processor = family.Processor.from_pretrained(folder, config=model.config)
    if adapter is not None:
        processor = processor_settings.with_those_of(processor, adapters.adapter_folder(str(adapter)), str(name))
    engine = Engine(model, processor, str(name), str(similarity or default_for(str(name))), budget, compile, hooks)
    engine.load_seconds = time.perf_counter() - began
    return engine


def _check_known(options: Mapping[str, Any]) -> None:
    """
    Raises:
        RequestError: neither `load` nor any family nor transformers takes an argument of this name; says the nearest.
    """
    own = [option for option in inspect.signature(load).parameters if option != "options"]
    own += [*TRANSFORMERS_OPTIONS, *dict.fromkeys(name for each in families().values() for name in _named_by(each))]
    unknown = next((option for option in options if option not in own and not _is_taken(option)), None)
    if unknown is None:
        return
    fields = [name for family in families().values() for name in _fields_of(family)]
    part = [name for name in own if unknown.endswith(f"_{name}")]  # torch_dtype is rather dtype than kv_dtype
    near = part or get_close_matches(unknown, own, n=1) or get_close_matches(unknown, fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise RequestError(
        f"unknown argument of longview.load {unknown!r}; there are {', '.join(own)}, and the fields of configs{hint}"
    )


def _is_taken(option: str) -> bool:
    return any(option in _fields_of(family) for family in families().values())


def _named_by(family: Family) -> list[str]:
    """The arguments that a family's `from_pretrained` has by name."""
    parameters = inspect.signature(family.Model.from_pretrained).parameters.values()
    return [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)][1:]


def _fields_of(family: Family) -> frozenset[str]:
    """The fields of a family's config and of its language models', which its `from_pretrained` takes, too."""
    configs = [family.Config.tiny(variant) for variant in family.Config.variants]
    return frozenset(name for config in configs for own in (config, config.get_text_config()) for name in vars(own))
