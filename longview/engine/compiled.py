"""Compiled decoding with static shapes: `load(…, compile=True)`.

A run of consecutive decoder layers becomes one compiled function: all layers, or, where a row has a side cache, the
layers between those that attend to it themselves. A pass goes over all rows and positions that are allocated, which
grow by doubling, so that few shapes occur; rows without a request are computed along and ignored. Prefilling and
encoding are not compiled: their shapes differ each time, and large matrix products take most of their time.

On CUDA each function is a CUDA graph; on a CPU the gain is fused loops and less time in Python.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longview.engine.decode_batch import SMALLEST_BUCKET, DecodeBatch
from longview.errors import RequestError
from longview.models.base import Model, SideCache
from longview.models.transformers_seams import CACHE_NAME, cache_argument
from longview.versions import UntestedWarning

WRONG_ON_CUDA = (
    "compile=True on CUDA gave other answers than plain decoding where it was tested (an H200, PyTorch 2.11); "
    "compare answers with and without it before you rely on them"
)


class StaticLayer:
    """Keys and values (rows, Hkv, positions, D) of a decode batch in one layer, in place of transformers' cache."""

    rows: Tensor
    write_positions: Tensor
    """Where the next token of each row is written; set before each pass."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        for tensor in (keys, values):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def get_seq_length(self, *_: Any) -> int:
        """Positions that are allocated. Taken as the position of the new tokens, it is behind all pictures of a row."""
        return self.keys.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append (rows, Hkv, 1, D); returns everything that is allocated."""
        self.keys[self.rows, :, self.write_positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.write_positions] = value_states[:, :, 0]
        return self.keys, self.values


class StaticDecodeBatch(DecodeBatch):
    """A decode batch whose passes go over all rows and positions that are allocated."""

    def __init__(self, num_layers: int, bucket: int = SMALLEST_BUCKET) -> None:
        super().__init__(num_layers, bucket)
        self._static: list[StaticLayer] = []

    @property
    def rows_per_pass(self) -> int:
        return self.row_capacity

    def mask(self, device: torch.device) -> Tensor:
        """What each row attends to in a pass of one token a row: bool (rows, 1, 1, positions)."""
        _, write_positions = self.write_positions_on(device)
        return (torch.arange(self.position_capacity, device=device) <= write_positions[:, None])[:, None, None]

    def layer(self, number: int) -> StaticLayer:
        """One layer, with the write positions of the next pass."""
        keys, _ = self.layers[number].tensors()
        if len(self._static) != len(self.layers) or self._static[number].keys is not keys:
            self._static = [StaticLayer(*layer.tensors()) for layer in self.layers]
        layer = self._static[number]
        layer.rows, layer.write_positions = self.write_positions_on(keys.device)
        return layer

    def _resize(self, rows: int, positions: int) -> None:
        before = self.row_capacity
        super()._resize(rows, positions)
        if self.row_capacity != before:
            self._lengths_changed()
            self.side_cache = self._joined(self._side_caches)

    def _lengths_changed(self) -> None:
        super()._lengths_changed()
        self.write_positions = [*self.lengths, *[0] * (self.row_capacity - len(self.lengths))]

    def _joined(self, side_caches: Sequence[SideCache | None]) -> SideCache | None:
        return super()._joined([*side_caches, *[None] * (self.row_capacity - len(side_caches))])


def check_compile(model: Model) -> None:
    """
    Raises:
        RequestError: nothing can be compiled for this model here.
    """
    device = model.device.type
    if device not in ("cpu", "cuda"):
        raise RequestError(f"compile=True runs on cpu and cuda, not on {device}; leave it out")
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    if len(places) > 1:
        devices = ", ".join(sorted(places))
        raise RequestError(
            f"compile=True is for a model on one device, and this one lies on {devices}; name one device"
        )
    if getattr(model, "quantization_method", None) is not None:
        raise RequestError(
            "compile=True does not go with bitsandbytes; use quantize on a CPU, or leave one of them out"
        )
    if model.config._attn_implementation.startswith("flash"):
        raise RequestError("compile=True does not go with flash_attention_2; leave attn_implementation out")
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise RequestError(
                "compile=True needs a C++ compiler on a CPU; install g++ or clang, or leave it out"
            ) from None


def compile_layers(model: Model, backend: str = "inductor") -> None:
    """Make the decoder layers of a model run compiled where their cache is a `StaticDecodeBatch`, in place.

    Args:
        backend: Of `torch.compile`.
    """
    check_compile(model)
    settings: dict[str, Any] = {"backend": backend, "dynamic": False}
    if backend == "inductor" and model.device.type == "cuda":
        warnings.warn(WRONG_ON_CUDA, UntestedWarning, stacklevel=2)
        settings["mode"] = "reduce-overhead"
    elif backend == "inductor":
        settings["options"] = {"cpp_wrapper": True}
    layers = list(model.language_model.model.layers)
    layer_types = getattr(model.language_model.config, "layer_types", None) or [None] * len(layers)
    compiled = CompiledLayers(layers, layer_types, settings)
    for number, layer in enumerate(layers):
        layer.forward = functools.partial(compiled.forward, number, layer.forward)


class CompiledLayers:
    """The decoder layers of a language model in runs; a run becomes one compiled function for each shape that occurs.

    Args:
        layer_types: The type of attention of each layer (transformers' `layer_types`); a run is of one type.
        settings: Of `torch.compile`.
    """

    def __init__(self, layers: Sequence[nn.Module], layer_types: Sequence[Any], settings: Mapping[str, Any]) -> None:
        self.layers, self.settings = layers, settings
        self.attends = [getattr(layer, "attends_to_side_cache", False) for layer in layers]
        """Which layers attend to the side cache."""
        self.runs = {
            False: runs_of(layer_types, [False] * len(layers)),
            True: runs_of(layer_types, self.attends),
        }
        """By whether there is a side cache."""
        self._compiled: dict[tuple[range, torch.Size], Callable[..., Tensor]] = {}

    def forward(
        self,
        number: int,
        plain: Callable[..., Tensor],
        hidden: Tensor,
        *,
        side_cache: Any = None,
        **options: Any,
    ) -> Tensor:
        """One layer, in place of its own `forward`. The first layer of a run computes all of the run."""
        given = {} if side_cache is None else {"side_cache": side_cache}
        batch = cache_argument(options)
        if not isinstance(batch, StaticDecodeBatch):
            return plain(hidden, **given, **options)
        if side_cache is not None and self.attends[number]:  # side caches are ragged: their shapes hardly ever recur
            return plain(hidden, **given, **options | {CACHE_NAME: batch.layer(number)})
        run = self.runs[side_cache is not None].get(number)
        if run is None:
            return hidden
        caches = [batch.layer(each) for each in run]
        options = {name: option for name, option in options.items() if name != CACHE_NAME}
        return self._function(run, caches[0].keys.shape)([self.layers[each] for each in run], caches, hidden, **options)

    def _function(self, run: range, shape: torch.Size) -> Callable[..., Tensor]:
        """The compiled function of a run, for keys of the shape (rows, Hkv, positions, D).

        Each has a code object of its own: PyTorch compiles a few variants of one code object, and then gives up.
        """
        if (run, shape) not in self._compiled:
            own = types.FunctionType(_run_layers.__code__.replace(), globals(), _run_layers.__name__)
            self._compiled[run, shape] = torch.compile(own, **self.settings)
        return self._compiled[run, shape]


def _run_layers(layers: Sequence[nn.Module], caches: Sequence[StaticLayer], hidden: Tensor, **options: Any) -> Tensor:
    """Consecutive layers: hidden states (rows, 1, D) → (rows, 1, D)."""
    for number, layer in enumerate(layers):
        hidden = type(layer).forward(layer, hidden, **{CACHE_NAME: caches[number]}, **options)
    return hidden


def runs_of(layer_types: Sequence[Any], left_out: Sequence[bool]) -> dict[int, range]:
    """Runs of consecutive layers of one type, by the number of their first layer; some layers belong to none."""
    runs: dict[int, range] = {}
    begin = 0
    for number in range(len(layer_types)):
        if number and (layer_types[number] != layer_types[number - 1] or left_out[number] or left_out[number - 1]):
            begin = number
        if not left_out[number]:
            runs[begin] = range(begin, number + 1)
    return runs
