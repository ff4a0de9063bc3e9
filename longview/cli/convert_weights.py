"""`longview convert-weights`: weights that are published pickled → safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.options import quieten


def convert_weights(
    folder: Annotated[
        Path, typer.Argument(help="Holds pytorch_model.bin, or its parts and their index.", show_default=False)
    ],
) -> None:
    """Rewrite pickled weights as safetensors, beside them, without running what a pickle may hold.

    Each file is read as tensors and nothing else, by a process of its own; what it holds is compared with config.json.

    Examples (Vicuna is published as .bin only; a first stage of MGM opens around it):
      hf download lmsys/vicuna-7b-v1.5 --local-dir vicuna
      longview convert-weights vicuna
      longview ask --model MGM-7B-Pretrain --model-base vicuna cat.jpg "What is it?"
    """
    quieten(show=False)
    from longview.models.pickles import convert

    for path in convert(folder.expanduser()):
        typer.echo(path)
