"""How a verb is declared, and how its help is laid out.

A verb is a function. A parameter whose type is a dataclass stands for a group: each field becomes an option, under the
first line of the class's docstring as the heading in `--help`, and the verb receives the filled dataclass. A field
declares its option as a `longview.settings.setting`, or, where it has names of its own, as `Annotated[…, Option(…)]`.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from longview import status
from longview.settings import Setting, settings_of

METAVARS: dict[type, str] = {int: "N", float: "X"}


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each group's fields as options of their own, as typer wants them."""
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += options_of(parameter.annotation)
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
    options = {name: [parameter.name for parameter in options_of(group)] for name, group in groups.items()}

    @functools.wraps(verb)
    def wrapped(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option: values.pop(option) for option in options[name]})
        status.clear()
        verb(**values)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {}
    return wrapped


def options_of(group: Any) -> Iterator[inspect.Parameter]:
    """The options of a group, as parameters of a verb."""
    declared, hints = settings_of(group), get_type_hints(group, include_extras=True)
    for field in fields(group):
        if field.name not in declared:
            # of a type that verbs share, too: each has a heading and a help of its own
            kind, option = hints[field.name].__origin__, copy.copy(hints[field.name].__metadata__[0])
        elif declared[field.name].option:
            kind, option = _option(declared[field.name])
        else:
            continue
        option.rich_help_panel = heading(group)
        option.metavar = next(
            (letter for known, letter in METAVARS.items() if known in (kind, *get_args(kind))), option.metavar
        )
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option]
        )


def heading(group: type) -> str:
    """The heading of a group in `--help`."""
    return inspect.cleandoc(group.__doc__ or "").partition("\n")[0].rstrip(".")


def _option(declared: Setting) -> tuple[Any, Any]:
    """The type of an option, and the option. A flag has no opposite; a list is an option that may be repeated."""
    names = [f"--{declared.name.replace('_', '-')}"] if declared.type is bool else []
    kind = declared.type if declared.element is None else list[declared.element]  # type: ignore[name-defined]
    return kind | None if declared.optional else kind, typer.Option(*names, help=declared.help)


class Verb(TyperCommand):
    """A verb's help: what it does, its examples as they are written, and its options under their groups' headings."""

    def format_help_text(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        about, _, examples = inspect.cleandoc(self.help or "").partition("\n\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(" ".join(about.split()))
        if examples:
            formatter.write_paragraph()
            formatter.write(examples.rstrip() + "\n")

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return ["[OPTIONS]", *(_name(parameter) for parameter in self.params if _is_argument(parameter))]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            group = getattr(parameter, "rich_help_panel", None) or "Options"
            title = "Arguments" if _is_argument(parameter) else group
            sections.setdefault(title, []).append((_name(parameter), _about(parameter)))
        sections["Options"] = sections.pop("Options")  # last, after the groups
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _is_argument(parameter: Any) -> bool:
    return parameter.param_type_name == "argument"


def _name(parameter: Any) -> str:
    if _is_argument(parameter):
        name = parameter.metavar or parameter.name.upper()
        return name if parameter.required or name.startswith("[") else f"[{name}]"
    names = ", ".join(sorted(parameter.opts, key=len))
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'TEXT'}"


def _about(parameter: Any) -> str:
    default = getattr(parameter, "default", None)
    shown = isinstance(default, (int, float, str)) and not isinstance(default, bool)
    return f"{parameter.help}  [default: {default}]" if shown else parameter.help or ""
