"""The settings of running servers that answer a batch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from longview.errors import RequestError
from longview.settings import setting, validate


@dataclass(frozen=True)
class ServersOptions:
    """Running servers

    Raises:
        RequestError: a value out of range, or a key that is not set.
    """

    server: tuple[str, ...] = setting(
        (), "Send the rows to this OpenAI-compatible server, as http://127.0.0.1:8000, instead; may be repeated."
    )
    server_key_env: str | None = setting(None, "Environment variable that holds the key they want.")
    concurrency: int | None = setting(
        None, "Rows that are asked at a time, of each server; default: 64, or twice what the model runs.", low=1
    )
    reply_seconds: float = setting(600.0, "Seconds that a server may take for a reply.", low=0, above=True)

    def __post_init__(self) -> None:
        validate(self)
        if not self.server:
            for name in ("server_key_env", "reply_seconds"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise RequestError(f"{name} means nothing without --server; add that, or leave it out")
        if self.server_key_env and not os.environ.get(self.server_key_env):
            raise RequestError(f"server_key_env names {self.server_key_env!r:.80}, which is not set; set it to the key")

    @property
    def key(self) -> str | None:
        return os.environ[self.server_key_env] if self.server_key_env else None
