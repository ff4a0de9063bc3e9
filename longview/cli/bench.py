"""`longview bench`: how fast a model is here, beside the alternatives and the limits of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longview.cli.index import LIBRARIES as INDEX_LIBRARIES
from longview.cli.options import Device, KVDtype, Quantize, dtype_option, import_libraries, whole_numbers
from longview.cli.terminal import is_terminal, spinner
from longview.errors import MissingExtraError, RequestError
from longview.files import write_file
from longview.names import listed
from longview.versions import missing

if TYPE_CHECKING:
    from longview.bench.report import Result

PICTURES = {
    "first-token": (1, 4),
    "decode": (0, 50),
    "again": (32,),
    "video": (128,),
    "attention": (16, 100),
    "growth": (1, 3, 10, 30, 100, 300, 1000),
}
"""Numbers of pictures with which a measure takes about a minute on two cores, and growth some minutes."""
FEATURES = ("random", "tower")
_PLACE = ("device", "dtype")
_MODEL = ("dims", "features", "quantize", "kv_dtype", "compile", *_PLACE)
OPTIONS: dict[str, tuple[str, ...]] = {
    "first-token": (*_MODEL, "pictures", "interleaved", "layers", "repeats"),
    "decode": (*_MODEL, "pictures", "interleaved", "layers", "tokens", "repeats"),
    "batch": (*_MODEL, "tokens", "requests", "repeats"),
    "again": (*_MODEL, "pictures", "repeats"),
    "video": ("pictures", "minutes", "repeats"),
    "memory": (*_MODEL, "gigabytes", "layers"),
    "limits": _MODEL,
    "attention": ("dims", "pictures", "repeats", *_PLACE),
    "growth": ("dims", "pictures", "tokens", "repeats", "minutes", *_PLACE),
    "train": ("dims", "samples", "frames", "methods", "ways", "repeats", *_PLACE),
    "serve": ("dims", "clients", "url", "key_env", "kinds", "tokens", "requests", "repeats", "quantize", "kv_dtype",
              "compile", *_PLACE),
    "index": ("vectors",),
}  # fmt: skip
"""What means something to each measure, beside --json, --save and --plot."""
MEASURES = tuple(OPTIONS)


def bench(
    context: typer.Context,
    measure: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(MEASURES)}.", show_default=False)],
    dims: Annotated[
        str | None,
        typer.Option(
            help="Dimensions with random weights: owl3-0.2b, ovis2-0.2b, mgm-0.2b, owl3-1b, owl3-2b, owl3-7b, ovis2-2b "
            "or mgm-7b; or a model with its own: demo, a checkpoint folder, a hub id. In growth several, with commas; "
            "default: the three of 0.2b, and demo elsewhere.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str, typer.Option(help="random leaves the vision tower out, which all alternatives share; tower runs it.")
    ] = "tower",
    pictures: Annotated[
        str | None, typer.Option(help="Numbers of pictures or frames, as 1,10,50; default: what takes about a minute.")
    ] = None,
    interleaved: Annotated[
        int, typer.Option(metavar="N", help="Run the interleaved alternative up to so many pictures; it takes longest.")
    ] = 16,
    layers: Annotated[
        int, typer.Option(metavar="N", help="Run so many layers of the alternative, and multiply; 0 runs all.")
    ] = 2,
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of each answer, in decode, batch and growth.")] = 16,
    requests: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="In batch, all at once: 16. In serve, of each run: three a client, at least 64.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="In video, its length: 5. In growth, what one number of pictures may take: 1.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Samples of a step, in train.")] = 16,
    frames: Annotated[
        int, typer.Option(metavar="N", help="In train: a step is one sample, about a video of so many frames.")
    ] = 0,
    methods: Annotated[
        str | None, typer.Option(metavar="LIST", help="In train: some of full,LoRA,QLoRA; default: all.")
    ] = None,
    ways: Annotated[
        str | None, typer.Option(metavar="LIST", help="In train: some of plain,padded,packed; default: all.")
    ] = None,
    clients: Annotated[
        str | None, typer.Option(metavar="LIST", help="In serve: numbers of clients; default: 1,8,64,256.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="In serve: an OpenAI-compatible server that runs; default: one of its own.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="In serve: environment variable with the key of --url.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(metavar="LIST", help="In serve: some of text,picture,video; default: all.")
    ] = None,
    vectors: Annotated[
        int | None, typer.Option(metavar="N", help="In index: vectors; default: 1,000,000.", show_default=False)
    ] = None,
    gigabytes: Annotated[int, typer.Option(metavar="N", help="Memory to fill, in memory.")] = 8,
    repeats: Annotated[int, typer.Option(metavar="N", help="Runs, of which the median counts.")] = 3,
    device: Device = None,
    dtype: Annotated[str | None, dtype_option("bfloat16 for dimensions, a model's own for it")] = None,
    quantize: Quantize = None,
    kv_dtype: KVDtype = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the decoding step.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the JSON here as well.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw a PNG.")] = None,
) -> None:
    """Measure speed: answers, videos, training, serving and search.

    Examples:
      longview bench first-token --dims owl3-1b --features random
      longview bench decode --dims owl3-1b --features random --pictures 0,100,400
      longview bench batch --dims demo
      longview bench video --minutes 120
      longview bench limits --dims owl3-1b --json
      longview bench attention --dims owl3-1b --pictures 16,100,400
      longview bench serve --clients 1,64
      longview bench serve --url http://127.0.0.1:8000
      longview bench train --dims owl3-7b --frames 64
      longview bench train --dims owl3-1b --methods full,LoRA --ways packed
      longview bench index --vectors 100000
      longview bench growth --pictures 1,10,100 --plot growth.png
    """
    if measure not in MEASURES:
        raise RequestError(f"unknown measure {measure!r}; there are {', '.join(MEASURES)}")
    if features not in FEATURES:
        raise RequestError(f"unknown value {features!r} of --features; expected {' or '.join(FEATURES)}")
    _refuse_foreign(context, measure)
    in_batch = 16 if requests is None else requests
    counts = whole_numbers(pictures, "pictures") if pictures is not None else PICTURES.get(measure, (1,))
    least = {"tokens": (tokens, 2), "requests": (in_batch, 1), "gigabytes": (gigabytes, 1)}
    least |= {"minutes": (1 if minutes is None else minutes, 1), "samples": (samples, 1), "frames": (frames, 0)}
    least |= {"repeats": (repeats, 1), "layers": (layers, 0), "interleaved": (interleaved, 0)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise RequestError(f"{name} is {value}; give a whole number from {lowest} up")
    if measure in ("growth", "attention") and 0 in counts:
        raise RequestError(f"pictures is 0; give {measure} numbers from 1 up")
    show = is_terminal() and not json
    import_libraries(show, downloads=show)
    from longview.bench.measures import MEASURES as measures
    from longview.bench.measures import BenchOptions
    from longview.bench.subject import open_subject
    from longview.bench.training import train

    if measure == "serve":
        load = {"device": device, "dtype": dtype, "quantize": quantize, "kv_dtype": kv_dtype, "compile": compile}
        with spinner("measuring serve", show):
            served = _serve(dims or "demo", load, clients, tokens, repeats, requests or 0, url, key_env, kinds)
        _show(served, json, save, plot)
        return
    if measure == "index":
        _show(_index(vectors, show), json, save, plot)
        return
    if measure == "growth":
        from longview.bench.growth import DIMS, growth

        names = DIMS if dims is None else [name.strip() for name in dims.split(",")]
        limit = 60.0 * (minutes or 1)
        with spinner("measuring growth", show):
            grown = growth(names, counts, tokens=tokens, repeats=repeats, limit=limit, device=device, dtype=dtype)
        _show(grown, json, save, plot)
        return
    dims = dims or "demo"
    options = BenchOptions(
        pictures=counts,
        repeats=repeats,
        layers=layers,
        max_interleaved=interleaved,
        tokens=tokens,
        requests=in_batch,
        minutes=5 if minutes is None else minutes,
        gigabytes=gigabytes,
    )
    with spinner(f"measuring {measure}", show):
        if measure == "train":
            chosen = [[name.strip() for name in (given or "").split(",") if name.strip()] for given in (methods, ways)]
            result = train(dims, dtype, device, samples if not frames else 1, frames, repeats, *chosen)
        else:
            subject = (
                None
                if measure == "video"
                else open_subject(dims, features == "random", dtype, device, compile, quantize, kv_dtype)
            )
            result = measures[measure](subject, options)
    _show(result, json, save, plot)


def _refuse_foreign(context: typer.Context, measure: str) -> None:
    """
    Raises:
        RequestError: an option was given that means nothing to the measure.
    """
    for name in dict.fromkeys(name for options in OPTIONS.values() for name in options):
        source = context.get_parameter_source(name)
        if name not in OPTIONS[measure] and source is not None and source.name == "COMMANDLINE":
            measures = listed([each for each, options in OPTIONS.items() if name in options])
            raise RequestError(f"--{name.replace('_', '-')} is of {measures}, not of {measure}; leave it out")


def _show(result: Result, json: bool, save: Path | None, plot: Path | None) -> None:
    if plot is not None:
        result.plot(plot)
    if save is not None:
        write_file(save, result.as_json().encode())
    typer.echo(result.as_json() if json else result.table(), nl=not json)


def _index(vectors: int | None, show: bool) -> Result:
    """
    Raises:
        MissingExtraError: the index's library is not installed.
    """
    if missing(INDEX_LIBRARIES):
        raise MissingExtraError("longview bench index", *INDEX_LIBRARIES)
    from longview.bench.index import index

    with spinner("measuring index", show):
        return index(1_000_000 if vectors is None else vectors)


def _serve(
    dims: str,
    load: dict[str, Any],
    clients: str | None,
    tokens: int,
    repeats: int,
    requests: int,
    url: str | None,
    key_env: str | None,
    kinds: str | None,
) -> Result:
    """
    Raises:
        RequestError: options that mean nothing together, or dimensions without weights.
    """
    from longview.bench.serving import LoadOptions, serve
    from longview.bench.subject import DIMENSIONS
    from longview.bench.workload import CYCLE

    if url is not None and any(load.values()):
        raise RequestError("--device, --dtype, --quantize and --compile are of a server of its own; leave out --url")
    if url is None and dims in DIMENSIONS:
        raise RequestError(f"--dims {dims} has no weights to serve; give demo, a checkpoint folder or a hub id")
    if key_env is not None and not os.environ.get(key_env):
        raise RequestError(f"key_env names {key_env!r:.80}, which is not set; set it to the key")
    wanted = [name.strip() for name in kinds.split(",")] if kinds else list(CYCLE)
    unknown = [name for name in wanted if name not in CYCLE]
    if unknown:
        raise RequestError(f"unknown kind {unknown[0]!r}; there are {', '.join(dict.fromkeys(CYCLE))}")
    counts = whole_numbers(clients, "clients") if clients else LoadOptions.clients
    if 0 in counts:
        raise RequestError("clients is 0; give numbers from 1 up")
    options = LoadOptions(
        clients=counts,
        tokens=tokens,
        repeats=repeats,
        requests=requests,
        url=url,
        key=os.environ[key_env] if key_env else None,
        kinds=[kind for kind in CYCLE if kind in wanted],
    )
    return serve(None if url is not None and dims == "demo" else dims, load, options)
