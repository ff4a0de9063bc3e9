"""Settings of a request → components of the page, made of their declarations in `longview.requests`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from longview.settings import Setting

HIDDEN = ("logprobs", "indices")
"""What the page has no place for, and what is chosen by pressing frames."""

LABELS = {"ocr": "OCR", "gen": "Draw", "fps": "FPS"}


def drawing(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How the control of `gen` looks where such models are served: it is there if one of them can do it.

    Args:
        facts: What is known of each model.
    """
    every = list(facts)
    if any(each.get("paints") for each in every):
        return {"visible": True, "info": "The answer of an MGM model describes a picture, and that is painted."}
    told = "An MGM model describes a picture in its answer; this server paints none (--gen-model)."
    return {"visible": any(each.get("draws") for each in every), "info": told}


def component_of(declared: Setting, **look: Any) -> Any:
    """A component for a setting; empty, it leaves the setting to its default.

    Args:
        look: Arguments of the component, over those made of the declaration.
    """
    how: dict[str, Any] = {
        "label": LABELS.get(declared.name, declared.name.replace("_", " ").capitalize()),
        "info": declared.help,
        "elem_id": f"lv-set-{declared.name}",
        "interactive": True,
        **look,
    }
    default = declared.default
    if declared.type is bool:
        return gr.Checkbox(bool(default), **how)
    if declared.choices:
        choices = [("default", ""), *((choice, choice) for choice in declared.choices)]
        return gr.Dropdown(choices, value=default or "", filterable=False, **how)
    if declared.element is None and declared.type in (int, float) and not declared.optional:
        whole = declared.type is int
        bounds: dict[str, Any] = {
            name: bound
            for name, bound in (("minimum", declared.low), ("maximum", declared.high))
            if isinstance(bound, int | float)
        }
        step, precision = (1, 0) if whole else (0.1, None)
        return gr.Number(default, step=step, precision=precision, min_width=120, **bounds, **how)
    lines = 1 if declared.element is None else 2
    placeholder = "default" if declared.optional else None  # Gradio's box for numbers has 0 in the place of nothing
    if declared.element is not None:
        how["info"] = f"{declared.help.removesuffix('; may be repeated.')}; one a line."
    return gr.Textbox(lines=lines, max_lines=4, placeholder=placeholder, min_width=120, **how)


def setting_of(declared: Setting, value: Any) -> Any:
    """The value of a component as its setting has it; None where it is the default."""
    if declared.element is not None and isinstance(value, str):
        value = [line for line in value.splitlines() if line] or None
    if declared.element is None and declared.type in (int, float) and isinstance(value, str):
        value = _number(value.strip(), whole=declared.type is int)
    if value in (None, "") or value == declared.default:
        return None
    return float(value) if declared.type is float and isinstance(value, int) else value


def _number(text: str, whole: bool) -> Any:
    """A number that was typed; what is none stays a text, which its setting refuses."""
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text


def settings_given(declared: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults."""
    found = {name: setting_of(declared[name], value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def shown_value(declared: Setting, settings: Mapping[str, Any]) -> Any:
    """What a component shows for given settings; the inverse of `settings_given`."""
    value = settings.get(declared.name, declared.default)
    if declared.element is not None:
        return "\n".join(value or ())
    if declared.optional and not declared.choices and declared.type in (int, float):
        return "" if value is None else str(value)
    return "" if value is None else value
