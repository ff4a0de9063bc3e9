"""`longview ask --knowledge` and `--index`: what an index holds, before the question."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from longview.cli.index import LIBRARIES
from longview.cli.options import ModelOptions, PluginOptions, import_libraries
from longview.cli.terminal import is_terminal, receipt_lines, spinner, warn_if_cut
from longview.errors import MissingExtraError, RequestError
from longview.index.settings import FindOptions
from longview.messages import Message, Part
from longview.versions import missing

TOP = 4
KINDS = {"knowledge": (), "index": ("frame",)}


@dataclass(frozen=True)
class RetrievalOptions:
    """Retrieval"""

    knowledge: Annotated[
        Path | None,
        Option(metavar="INDEX", help="Show what an index holds that is nearest to the question and its picture."),
    ] = None
    index: Annotated[Path | None, Option(metavar="INDEX", help="Show the nearest moments of an index's videos.")] = None
    top: Annotated[
        int | None, Option(metavar="N", help="How many of these are shown; default: 4.", show_default=False)
    ] = None
    no_check: Annotated[
        bool, Option("--no-check", help="Do not find out on which of these the answer rests: a prefill for each.")
    ] = False

    @property
    def given(self) -> bool:
        return self.knowledge is not None or self.index is not None

    def check_use(self, questions: str | None, plugins: PluginOptions) -> None:
        """
        Raises:
            RequestError: options that mean nothing together.
            MissingExtraError: the index's library is not installed.
        """
        if self.knowledge is not None and self.index is not None:
            raise RequestError("--knowledge shows all that an index holds, and --index its videos; give one of them")
        if not self.given and (self.top is not None or self.no_check):
            name = "--top" if self.top is not None else "--no-check"
            raise RequestError(f"{name} is of --knowledge and --index; add one of them")
        if not self.given:
            return
        if questions is not None:
            raise RequestError("--questions is not answered from an index yet; ask one question at a time")
        if plugins.ocr or plugins.gen:
            raise RequestError("--ocr and --gen do not go with --knowledge and --index yet; leave one of them out")
        FindOptions(top=TOP if self.top is None else self.top)
        if missing(LIBRARIES):
            raise MissingExtraError("longview ask --knowledge", *LIBRARIES)

    def answer(
        self,
        question: str,
        parts: Sequence[Part],
        model: ModelOptions,
        similarity: str | None,
        before: Sequence[Message],
        json: bool,
        quiet: bool,
        settings: Mapping[str, Any],
    ) -> None:
        """Find, answer, and print the answer with what it rests on."""
        show = is_terminal() and not json and not quiet
        import_libraries(show)
        from longview.index.answer import answer_with
        from longview.index.index import Index
        from longview.media import open_media

        kinds = KINDS["knowledge" if self.knowledge is not None else "index"]
        index = Index(Path(self.knowledge or self.index or "").expanduser(), device=model.device)
        stills = [part for part in parts if part.type == "image"]
        with spinner("looking", show):
            picture = next(iter(open_media(stills[:1])[0].read([0]))).image if stills else None
            found, warnings = index.find(question, picture, FindOptions(top=self.top or TOP), kinds)
        engine = model.load(show, similarity=similarity)
        with spinner("answering", show):
            answered = answer_with(engine, found, question, parts, before, not self.no_check, **settings)
        warnings = [*warnings, *answered.warnings]
        if json:
            plain: dict[str, Any] = {**answered.as_dict(), "knowledge_warnings": warnings}
            typer.echo(jsonlib.dumps(plain, ensure_ascii=False))
        else:
            typer.echo(answered.answer.text)
            for warning in warnings:
                typer.echo(f"warning: {warning}", err=True)
            if not quiet:
                reason = answered.answer.finish_reason
                typer.echo("\n".join([*answered.lines(), *receipt_lines(answered.answer.receipt, reason)]), err=True)
        warn_if_cut(answered.answer.finish_reason, settings["params"])
