"""Decoding in compiled functions of fixed shapes: `load(…, compile=True)`.

Neighbouring blocks of the language model become one compiled function: all of them, or, where a row has pictures that
stand outside its sequence, those between the blocks that look at pictures. Shapes are those of a decode batch's whole
table, which grows by doubling, so few are ever met; rows that nobody stands in are computed along and not looked at. Reading
prompts and looking at pictures stay as they are: their shapes change each time, and their matrices are large.

On CUDA each such function is a CUDA graph; on a CPU the gain is fused loops and less time in Python.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longview.engine.kv_cache import SHORT, DecodeBatch
from longview.errors import RequestError
from longview.models.transformers_seams import CACHE_NAME, cache_argument


class StaticLayer:
    """Keys and values (S, Hkv, C, D) of a decode batch in one block, in place of transformers' cache."""

    rows: Tensor
    ends: Tensor
    """Where each of the rows ends now; set before each pass."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        for tensor in (keys, values):
            torch._dynamo.mark_static_address(tensor, guard=False)

    def get_seq_length(self, *_: Any) -> int:
        """Where the next position counts from: behind everything, as all that a row holds stands before it."""
        return self.keys.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write (S, Hkv, 1, D) at each row's end; returns the whole table."""
        self.keys[self.rows, :, self.ends] = key_states[:, :, 0]
        self.values[self.rows, :, self.ends] = value_states[:, :, 0]
        return self.keys, self.values


class StaticDecodeBatch(DecodeBatch):
    """A decode batch whose passes go over all of its slots and positions, taken or not."""

    def __init__(self, num_layers: int, kind: int = SHORT) -> None:
        super().__init__(num_layers, kind)
        self._static: list[StaticLayer] = []

    @property
    def width(self) -> int:
        return self.slots

    def mask(self, device: torch.device) -> Tensor:
        """Who sees what when each row adds one position: bool (S, 1, 1, C)."""
        _, ends = self.ends_on(device)
        return (torch.arange(self.capacity, device=device) <= ends[:, None])[:, None, None]

    def layer(self, number: int) -> StaticLayer:
        """The table in one block, and where its rows end now."""
        layer = self.layers[number]
        rows, ends = self.ends_on(layer.keys.device)
        if len(self._static) != len(self.layers) or self._static[number].keys is not layer.keys:
            self._static = [StaticLayer(one.keys, one.values) for one in self.layers]
        self._static[number].rows, self._static[number].ends = rows, ends
        return self._static[number]

    def _resize(self, slots: int, capacity: int) -> None:
        super()._resize(slots, capacity)
        self._measure()
        self._join()

    def _measure(self) -> None:
        super()._measure()
        self.ends = [*self.lengths, *[0] * (self.slots - len(self.lengths))]

    def _join(self) -> None:
        present = [side_cache for side_cache in self._side_caches if side_cache is not None]
        empty = [None] * (self.slots - len(self._side_caches))
        self.side_cache = type(present[0]).joined([*self._side_caches, *empty]) if present else None


def check_compile(model: Any) -> None:
    """
    Raises:
        RequestError: nothing can be compiled for this model here.
    """
    device = model.device.type
    if device not in ("cpu", "cuda"):
        raise RequestError(f"compile=True runs on cpu and cuda, not on {device}; leave it out")
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    if len(places) > 1:
        found = ", ".join(sorted(places))
        raise RequestError(f"compile=True is for a model on one device, and this one lies on {found}; name one device")
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


def compile_blocks(model: Any, backend: str = "inductor") -> None:
    """Make the blocks of a model's language model run compiled where they are given a `StaticDecodeBatch`, in place.

    Args:
        backend: Of `torch.compile`.
    """
    check_compile(model)
    settings: dict[str, Any] = {"backend": backend, "dynamic": False}
    if backend == "inductor" and model.device.type == "cuda":
        settings["mode"] = "reduce-overhead"
    elif backend == "inductor":
        settings["options"] = {"cpp_wrapper": True}
    blocks = list(model.language_model.model.layers)
    kinds = getattr(model.language_model.config, "layer_types", None) or [None] * len(blocks)
    together = CompiledBlocks(blocks, kinds, settings)
    for number, block in enumerate(blocks):
        block.forward = functools.partial(together.forward, number, block.forward)


class CompiledBlocks:
    """The blocks of a language model in runs, each of which becomes one function for each shape that it meets.

    Args:
        kinds: Of attention, a block each; a run is of one kind.
        settings: Of `torch.compile`.
    """

    def __init__(self, blocks: Sequence[nn.Module], kinds: Sequence[Any], settings: Mapping[str, Any]) -> None:
        self.blocks, self.settings = blocks, settings
        self.looks = [getattr(block, "looks", False) for block in blocks]
        self.runs = {
            False: runs_of(kinds, [False] * len(blocks)),
            True: runs_of(kinds, self.looks),
        }
        """By whether there are pictures that blocks look at themselves."""
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
        """One block, in place of its own `forward`. The first block of a run answers for all of it."""
        given = {} if side_cache is None else {"side_cache": side_cache}
        batch = cache_argument(options)
        if not isinstance(batch, StaticDecodeBatch):
            return plain(hidden, **given, **options)
        if side_cache is not None and self.looks[number]:  # pictures are ragged: hardly a shape of theirs comes twice
            return plain(hidden, **given, **options | {CACHE_NAME: batch.layer(number)})
        run = self.runs[side_cache is not None].get(number)
        if run is None:
            return hidden
        tables = [batch.layer(each) for each in run]
        options = {name: option for name, option in options.items() if name != CACHE_NAME}
        return self._function(run, tables[0].keys.shape)([self.blocks[each] for each in run], tables, hidden, **options)

    def _function(self, run: range, shape: torch.Size) -> Callable[..., Tensor]:
        """What is compiled for a run and the shape (S, Hkv, C, D) of its tables.

        Each is made from a code object of its own: PyTorch keeps but a few variants of one, and then gives up.
        """
        if (run, shape) not in self._compiled:
            own = types.FunctionType(_follow.__code__.replace(), globals(), _follow.__name__)
            self._compiled[run, shape] = torch.compile(own, **self.settings)
        return self._compiled[run, shape]


def _follow(blocks: Sequence[nn.Module], tables: Sequence[StaticLayer], hidden: Tensor, **options: Any) -> Tensor:
    """Neighbouring blocks one after another: hidden states (S, 1, D) → (S, 1, D)."""
    for number, block in enumerate(blocks):
        hidden = type(block).forward(block, hidden, **{CACHE_NAME: tables[number]}, **options)
    return hidden


def runs_of(kinds: Sequence[Any], alone: Sequence[bool]) -> dict[int, range]:
    """Neighbouring blocks of one kind of attention, by the number of the first; some stand alone and are left out."""
    runs: dict[int, range] = {}
    begin = 0
    for number in range(len(kinds)):
        if number and (kinds[number] != kinds[number - 1] or alone[number] or alone[number - 1]):
            begin = number
        if not alone[number]:
            runs[begin] = range(begin, number + 1)
    return runs
