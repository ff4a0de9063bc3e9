"""`longview serve`: models behind OpenAI's API, on one port."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from longview.cli.index import LIBRARIES as INDEX_LIBRARIES
from longview.cli.options import ModelOptions
from longview.errors import MissingExtraError, RequestError
from longview.models.sources import base_of
from longview.serve.settings import ServedModel, ServerLimits, ServerOptions, keys_of
from longview.versions import missing

LIBRARIES = ("fastapi", "uvicorn", "python-multipart", "prometheus-client")


@dataclass(frozen=True)
class ServedModels(ModelOptions):
    """The models"""

    model: Annotated[
        list[str] | None,
        Option(
            "--model",
            "-m",
            "--model-path",
            metavar="[NAME=]MODEL",
            help="demo (embedded, offline; the default), a checkpoint folder, a hub id, or modelscope:ID; repeat it.",
        ),
    ] = None  # type: ignore[assignment]

    adapter: Annotated[
        list[str] | None,
        Option(metavar="NAME=FOLDER", help="LoRA adapter, as a model that shares its base's weights; repeat it."),
    ] = None  # type: ignore[assignment]

    gen_model: Annotated[
        str | None,
        Option(
            metavar="PIPELINE",
            help="SDXL pipeline that paints what MGM describes: a folder or a hub id; default: it is not painted.",
        ),
    ] = None
    gen_steps: Annotated[
        int | None, Option(min=1, help="Steps of denoising, with --gen-model; default: the pipeline's own.")
    ] = None

    def by_name(self) -> dict[str, ServedModel]:
        """The models by the name that clients give.

        Raises:
            RequestError: two have the same name, or an adapter has no base among them.
        """
        found: dict[str, ServedModel] = {}
        if self.gen_steps is not None and self.gen_model is None:
            raise RequestError("--gen-steps is for painting; add --gen-model, or leave it out")
        painter = None if self.gen_model is None else {"model": self.gen_model, "steps": self.gen_steps}
        for given in self.model or ["demo"]:
            name, model = _named(given)
            _check_free(name, found, f"--model NAME={model}")
            found[name] = ServedModel(self._arguments_of(model), painter=painter)
        for given in self.adapter or []:
            name, equals, folder = given.partition("=")
            if not (equals and name and folder):
                raise RequestError(
                    f"--adapter is {given!r}; give NAME=FOLDER, the name being that of the model for clients"
                )
            _check_free(name, found, "--adapter NAME=FOLDER")
            base = _base_for(folder, found)
            found[base] = replace(found[base], adapters={**found[base].adapters, name: folder})
        return found

    def _arguments_of(self, model: str) -> dict[str, Any]:
        return replace(self, model=model, adapter=None).load_arguments()  # type: ignore[arg-type]


def _check_free(name: str, found: Mapping[str, ServedModel], hint: str) -> None:
    if name in found or any(name in model.adapters for model in found.values()):
        raise RequestError(f"two models are called {name!r}; give one another name: {hint}")


def _base_for(folder: str, found: Mapping[str, ServedModel]) -> str:
    """Which model an adapter belongs to: the only one, or the one that its folder names."""
    if len(found) == 1:
        return next(iter(found))
    base = base_of(folder)
    names = [name for name, model in found.items() if base in (name, model.load["name"])]
    if len(names) != 1:
        raise RequestError(f"the adapter {folder} was trained on {base}, which is not among {', '.join(found)}; add it")
    return names[0]


def _named(given: str) -> tuple[str, str]:
    """A model's name for clients, and where it is: what stands before a `=`; otherwise a folder's name, or the id."""
    name, equals, model = given.partition("=")
    if equals and name and model and "/" not in name:
        return name, model
    folder = Path(given).expanduser()
    return (folder.resolve().name, given) if folder.is_dir() else (given, given)


def serve(models: ServedModels, server: ServerOptions, limits: ServerLimits) -> None:
    """Serve models behind OpenAI's API, with pictures and videos.

    Examples:
      longview serve
      longview serve --model mPLUG/mPLUG-Owl3-7B-241101 --dtype bfloat16
      longview serve --model owl=./my-owl3 --model ovis=ATH-MaaS/Ovis2-2B --port 9000
      LONGVIEW_API_KEY=secret longview serve --host 0.0.0.0 --allowed-hosts films.example.org
      longview serve --model mine=./my-owl3 --to http://127.0.0.1:8000
      longview serve --model ./my-owl3 --replicas 2
      longview serve --index films=./my-index
    """
    if missing(LIBRARIES):
        raise MissingExtraError("longview serve", *LIBRARIES)
    if server.index and missing(INDEX_LIBRARIES):
        raise MissingExtraError("longview serve --index", *INDEX_LIBRARIES)
    named = models.by_name()
    if server.to is not None:
        _check_only_joining(server, limits)
        from longview.serve import join
        from longview.serve.server import backends

        with backends(server, len(named)) as make:
            join.run(named, server.to, next(iter(keys_of(server)), ""), make)
        return
    from longview.serve.server import run

    run(named, server, limits)


def _check_only_joining(server: ServerOptions, limits: ServerLimits) -> None:
    own = ("to", "replicas", "max_replicas", "replica_requests", "ray")
    alone = replace(server, api_key=(), **dict.fromkeys(own))  # type: ignore[arg-type]
    for given, plain in ((alone, ServerOptions()), (limits, ServerLimits())):
        for each in fields(plain):
            if getattr(given, each.name) != getattr(plain, each.name):
                option = f"--{each.name.replace('_', '-')}"
                raise RequestError(f"{option} is a setting of the server that --to names; leave it out here")
