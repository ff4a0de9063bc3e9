"""`longview info`: what a model is, what it needs, and how many pictures fit on this machine."""

from __future__ import annotations

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli.config_file import read_config
from longview.cli.options import Device, dtype_option, import_libraries
from longview.cli.terminal import is_terminal
from longview.wording import counted

if TYPE_CHECKING:
    from longview.models.base import Footprint

PICTURES = (1, 10, 50, 100, 200, 400)
USABLE = 0.9
"""Share of the memory that a model may take; the rest is the system's and the program's own."""


def info(
    model: Annotated[
        str | None, typer.Argument(help="demo, a checkpoint folder, a hub id, modelscope:ID, or an alias.")
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, dtype_option("as ask chooses")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a model is, what it needs, and what fits here.

    Examples (weights are not loaded, and not downloaded from the hub):
      longview info
      longview info mPLUG/mPLUG-Owl3-7B-241101 --dtype bfloat16
      longview info ./my-checkpoint --json
    """
    from longview.models.sources import check_name

    model = read_config().model_named(model)
    check_name(model)
    import_libraries(is_terminal() and not json)
    from longview.engine.devices import best_device, check_device, memory_of
    from longview.models.stray import adapter_beside

    device = device or best_device()
    check_device(device)
    footprint, kind = measure(model, device, dtype, revision)
    beside = adapter_beside(Path(model).expanduser())
    memory = memory_of(device)
    rows = [
        {
            "pictures": count,
            "bytes": footprint.needed(count),
            "fits": footprint.needed(count) <= USABLE * memory and footprint.holds(count),
        }
        for count in PICTURES
    ]
    if json:
        machine = {"device": device, "memory_bytes": memory, "dtype": kind}
        told = {"warnings": [beside] if beside else []}
        typer.echo(jsonlib.dumps({"model": model, **asdict(footprint), **machine, "fits": rows, **told}))
        return
    facts = {
        "model": f"{model}: {footprint.family}, release {footprint.release}",
        "parameters": f"{footprint.parameters:,}",
        "weights": f"{amount(footprint.weight_bytes)} in {kind}",
        "a picture": f"{footprint.patches_per_picture:,} tokens, {amount(footprint.picture_bytes)} of keys and values",
        "a token": f"{amount(footprint.token_bytes)} of keys and values, {footprint.context_length:,} tokens at most",
        "machine": f"{device}, {amount(memory)} of memory, of which {USABLE:.0%} may be used",
    }
    if beside is not None:
        facts["beside"] = beside
    for name, fact in facts.items():
        typer.echo(f"{name:<12}{fact}")
    for row in rows:
        pictures = f"{counted(row['pictures'], 'picture')}:"
        why = "" if footprint.holds(row["pictures"]) else f", {footprint.picture_positions * row['pictures']:,} tokens"
        typer.echo(f"{pictures:<14}{'yes' if row['fits'] else 'no'}, {amount(row['bytes'])}{why}")


def measure(model: str, device: str, dtype: str | None, revision: str | None) -> tuple[Footprint, str]:
    """The footprint of a model in the dtype that loading it would choose, and the name of that dtype."""
    import torch

    from longview.engine.devices import FP32_ON_CPU_BYTES, dtype_of
    from longview.models import checkpoint
    from longview.models.families import family_of

    folder, shapes = checkpoint.peek(model, revision=revision)
    family: Any = family_of(folder)
    config = checkpoint.open_config(family.Config, folder)
    family.Model.check(config, shapes, folder)
    stored = dtype_of(config.dtype) if config.dtype is not None else torch.float32
    chosen = dtype_of(dtype) if dtype else stored
    footprint = family.Model.footprint(config, chosen)
    if dtype is None and device == "cpu" and footprint.weight_bytes < FP32_ON_CPU_BYTES:
        chosen = torch.float32
        footprint = family.Model.footprint(config, chosen)
    return footprint, str(chosen).removeprefix("torch.")


def amount(size: float) -> str:
    """Bytes for people: 11.3 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
