"""`longview serve`: models behind OpenAI's API, on one port."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from longview.cli.options import ModelOptions
from longview.errors import MissingExtraError, RequestError
from longview.serve.settings import ServerLimits, ServerOptions
from longview.versions import missing

LIBRARIES = ("fastapi", "uvicorn", "python-multipart", "prometheus-client")


@dataclass(frozen=True)
class ServedModels(ModelOptions):
    """The models"""

    model: Annotated[  # type: ignore[assignment]
        list[str] | None,
        Option(
            "--model",
            "-m",
            "--model-path",
            metavar="[NAME=]MODEL",
            help="demo (embedded, offline; the default), a checkpoint folder, a hub id, or modelscope:ID; repeat it.",
        ),
    ] = None

    def by_name(self) -> dict[str, dict[str, Any]]:
        """Arguments of `longview.load` by the name that clients give."""
        found: dict[str, dict[str, Any]] = {}
        for given in self.model or ["demo"]:
            name, model = _named(given)
            if name in found:
                raise RequestError(f"two models are called {name!r}; give one another name: --model NAME={model}")
            found[name] = replace(self, model=model).arguments()  # type: ignore[arg-type]
            found[name]["budget"] = {"feature_folder": None if self.keep_features is None else str(self.keep_features)}
        return found


def _named(given: str) -> tuple[str, str]:
    """A model's name for clients, and where it is: what stands before a `=`; otherwise a folder's name, or the id."""
    name, equals, model = given.partition("=")
    if equals and name and model and "/" not in name:
        return name, model
    folder = Path(given).expanduser()
    return (folder.resolve().name, given) if folder.is_dir() else (given, given)


def serve(models: ServedModels, server: ServerOptions, limits: ServerLimits) -> None:
    """Serve models behind OpenAI's API: pictures, videos, many requests at once.

    Examples:
      longview serve
      longview serve --model mPLUG/mPLUG-Owl3-7B-241101 --dtype bfloat16
      longview serve --model owl=./my-owl3 --model ovis=ATH-MaaS/Ovis2-2B --port 9000
      LONGVIEW_API_KEY=secret longview serve --host 0.0.0.0 --allowed-hosts films.example.org
    """
    if missing(LIBRARIES):
        raise MissingExtraError("longview serve", *LIBRARIES)
    named = models.by_name()
    from longview.serve.server import run

    run(named, server, limits)
