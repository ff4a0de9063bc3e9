"""The settings of the server, which the command line makes options of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longview.errors import RequestError
from longview.requests import Limits, MiB
from longview.settings import setting, validate

KEY_VARIABLE = "LONGVIEW_API_KEY"


@dataclass(frozen=True)
class ServerOptions:
    """The server"""

    to: str | None = setting(
        None, "Address of a running server which the models join, as http://127.0.0.1:8000; its settings hold."
    )
    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for every one of this machine.")
    port: int = setting(8000, "Port to listen on; 0 for a free one.", low=0, high=65535)
    api_key: tuple[str, ...] = setting(
        (), "Key without which nothing is answered but /health; may be repeated. Or in LONGVIEW_API_KEY."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Name under which clients reach the server, besides localhost and addresses; may be repeated."
    )
    cors_origins: tuple[str, ...] = setting((), "Site whose pages may use the server; may be repeated.")
    no_page: bool = setting(False, "Serve no page for browsers.")
    media_root: str | None = setting(None, "Folder whose files clients may name as file:// addresses.")
    index: tuple[str, ...] = setting(
        (), "NAME=FOLDER of an index that clients may search, made by longview index; may be repeated."
    )
    no_urls: bool = setting(False, "Fetch no media from URLs.")
    max_loaded: int | None = setting(
        None, "Models that are loaded at a time; the least recently used leaves for one that is asked.", low=1
    )
    replicas: int | None = setting(
        None, "Replicas of each model, by Ray Serve on this machine, or on the cluster of --ray.", low=1
    )
    max_replicas: int | None = setting(
        None, "Replicas of each model at most: so many as its requests need, from --replicas up.", low=1
    )
    replica_requests: float | None = setting(
        None, "Requests that a replica has at a time; with more, there are to be more replicas; default: 8.", low=1
    )
    ray: str | None = setting(
        None, "Address of a Ray cluster which this machine is part of, or auto; default: one is started for --replicas."
    )
    max_queue: int = setting(256, "Requests that wait for a model at most; more are refused with 429.", low=0)
    max_body_bytes: int = setting(64 * MiB, "Bytes of a request's body.", low=1, whole=False)
    max_text_bytes: int = setting(MiB, "Bytes of all texts of a request.", low=1, whole=False)
    max_messages: int = setting(2048, "Messages of a request.", low=1)
    max_answers: int = setting(8, "Answers to one request (n).", low=1)
    files: str | None = setting(None, "Folder that keeps uploaded files; default: a temporary one.")
    max_file_bytes: int = setting(4096 * MiB, "Bytes of one uploaded file.", low=1, whole=False)
    files_quota: int = setting(16384 * MiB, "Bytes of all uploaded files.", low=0, whole=False)
    files_seconds: int = setting(7 * 86400, "Seconds that an uploaded file is kept, unless its upload says.", low=1)
    request_seconds: float = setting(600.0, "Seconds that a request may take.", low=0, above=True)
    drain_seconds: float = setting(60.0, "Seconds that running requests may go on after SIGTERM.", low=0)

    def __post_init__(self) -> None:
        validate(self)
        if not self.on_ray and (self.max_replicas, self.replica_requests) != (None, None):
            raise RequestError("--max-replicas and --replica-requests need --replicas or --ray; give one of them, too")
        if self.on_ray and self.max_loaded is not None:
            raise RequestError("--max-loaded is of models in processes of the server; leave it out with replicas")
        least = self.replicas or 1
        if self.max_replicas is not None and self.max_replicas < least:
            raise RequestError(f"--max-replicas is {self.max_replicas}; give at least {least}, as --replicas says")

    @property
    def on_ray(self) -> bool:
        """Whether the models have replicas."""
        return self.replicas is not None or self.ray is not None


@dataclass(frozen=True)
class ServerLimits(Limits):
    """What media may cost and reach."""

    isolate: bool = setting(True, "Decode in a child process, which can be killed and has little memory.", option=False)
    url_hosts: tuple[str, ...] | None = setting(
        None, "Host to fetch media from, and its subdomains; may be repeated; default: any public one."
    )


@dataclass(frozen=True)
class ServedModel:
    """A model of the command line.

    Attributes:
        load: Arguments of `longview.load`.
        adapters: Folders of LoRA adapters, by the names under which clients ask them.
        painter: Arguments of `longview.plugins.draw.Painter`, but for its device; None: nothing is painted.
    """

    load: Mapping[str, Any]
    adapters: Mapping[str, str] = field(default_factory=dict)
    painter: Mapping[str, Any] | None = None

    def config(self, load: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, Any]:
        """What its process is told; see `engines.Engines`."""
        found = {"load": load, "limits": limits, "adapters": dict(self.adapters)}
        return found if self.painter is None else {**found, "painter": dict(self.painter)}


def keys_of(options: ServerOptions) -> Sequence[str]:
    """The keys of the command line and of the environment."""
    return [*options.api_key, *filter(None, [os.environ.get(KEY_VARIABLE)])]
