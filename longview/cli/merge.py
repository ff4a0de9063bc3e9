"""`longview merge`: a model and an adapter → one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longview.cli.config_file import read_config
from longview.cli.export import HubOptions, Target, check_target
from longview.cli.options import dtype_option, import_libraries
from longview.cli.terminal import is_terminal
from longview.files import new_folder, writing


def merge(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of an adapter, as `longview train` leaves it.", show_default=False)
    ],
    folder: Target,
    hub: HubOptions,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model it was trained on; default: the one it names.")
    ] = None,
    dtype: Annotated[str | None, dtype_option("the checkpoint's")] = None,
) -> None:
    """Add a LoRA adapter to the weights of its model: one whole model.

    Examples:
      longview merge runs/lora/adapter my-model
      longview merge runs/lora/adapter my-model --model AIDC-AI/Ovis2-2B --dtype bfloat16
      longview merge runs/lora/adapter my-model --official --push-to-hub you/my-model
    """
    check_target(folder)
    hub.check()
    from longview.models.sources import adapter_folder, base_of, check_name

    base = base_of(adapter) if model is None else read_config().model_named(model)
    adapter = adapter_folder(adapter)
    check_name(base)
    import_libraries(is_terminal())
    from longview.engine import load
    from longview.engine.devices import dtype_of
    from longview.models import checkpoint
    from longview.models.official import files_beside, make
    from longview.train.saved.export import export as write

    source = checkpoint.resolve(base)
    files_beside(source)  # which may refuse
    kind = dtype_of(dtype or checkpoint.read_config(source).get("dtype") or "float32")
    with new_folder(folder) as unfinished:
        # added in fp32: a small change would be lost among the digits of half precision
        engine = load(base, adapter=adapter, dtype="float32", device="cpu")
        with writing(folder):
            engine.processor.save_pretrained(unfinished)
            write(engine.model, engine.processor, unfinished, kind)
            if hub.form is not None:
                make(hub.form, unfinished, source)
    typer.echo(folder)
    address = hub.push(folder, base, adapter.parent)
    if address is not None:
        typer.echo(address)
