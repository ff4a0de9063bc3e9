"""The extras: hooks of the engine (`longview.engine.hooks`), each of which loads its library when it is first needed.

    ocr.py    text in pictures is read into the question
    draw.py   what the answer describes is painted

A setting of `longview.requests.Plugins` names its module here, whose `hook()` makes the hook.
"""

from __future__ import annotations

import importlib
from typing import Any

from longview.requests import Plugins
from longview.settings import settings_of


def hooks_of(settings: Plugins) -> list[Any]:
    """The hooks that a request switches on by name, in the order of their settings."""
    plugins = [declared.plugin for name, declared in settings_of(type(settings)).items() if getattr(settings, name)]
    return [importlib.import_module(f"longview.plugins.{plugin}").hook() for plugin in plugins if plugin is not None]
