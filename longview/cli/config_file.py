"""The user's one file of settings: the default model, and short names of others.

    {"model": "demo-ovis2", "aliases": {"owl": "mPLUG/mPLUG-Owl3-7B-241101"}}

It is `longview/config.json` in $XDG_CONFIG_HOME, which is ~/.config by default, or what $LONGVIEW_CONFIG names.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longview.errors import RequestError
from longview.settings import check_names

DEFAULT_MODEL = "demo"
ALIAS = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Config:
    """What the file says."""

    model: str | None = None
    """The model of a verb that is given none."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Short name → the name of a model."""

    def model_named(self, name: str | None) -> str:
        """The model that a user means by a name, or by none. A folder, and an embedded model, come before an alias."""
        name = name or self.model or DEFAULT_MODEL
        return name if os.path.exists(os.path.expanduser(name)) else self.aliases.get(name, name)


def config_path() -> Path:
    named = os.environ.get("LONGVIEW_CONFIG")
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "longview"
    return (Path(named) if named else folder / "config.json").expanduser()


def read_config() -> Config:
    """
    Raises:
        RequestError: the file is there and cannot be read, or says something else.
    """
    path = config_path()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config()
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read ({error}); mend or remove it") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path} is no JSON object; mend or remove it")
    check_names(content, ("model", "aliases"), f"key in {path}:")
    model, aliases = content.get("model"), content.get("aliases") or {}
    if not isinstance(model, str | None) or not isinstance(aliases, dict):
        raise RequestError(f"{path} holds no name of a model and aliases; mend or remove it")
    for alias, name in aliases.items():
        check_alias(alias, name)
    return Config(model, aliases)


def check_alias(alias: str, name: object) -> None:
    """
    Raises:
        RequestError: a short name that would hide something, or one of nothing.
    """
    from longview.models.sources import embedded

    if not ALIAS.fullmatch(alias) or embedded(alias) is not None:
        raise RequestError(f"{alias!r:.40} cannot be an alias; take a word that names no embedded model")
    if not isinstance(name, str) or not name:
        raise RequestError(f"alias {alias!r:.40} names {name!r:.60}; expected the name of a model")


def write_config(config: Config) -> None:
    """
    Raises:
        RequestError: the file cannot be written.
    """
    path = config_path()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(asdict(config), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise RequestError(f"{path} cannot be written ({error.strerror}); check the folder") from None
