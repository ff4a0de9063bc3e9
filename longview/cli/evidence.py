"""`longview ask --evidence FILE`: the deletion check of an answer, what it says, and the file; two answers compared."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from longview import names
from longview.cli.options import ModelOptions, PluginOptions
from longview.cli.terminal import receipt_lines, spinner
from longview.errors import MissingExtraError, RequestError
from longview.evidence import report
from longview.messages import Answer, Message, Part
from longview.requests import FRAME_SAMPLERS, Limits, MediaOptions
from longview.versions import missing

if TYPE_CHECKING:
    from longview.engine import Engine


@dataclass(frozen=True)
class EvidenceOptions:
    """Evidence"""

    evidence: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Write what the answer rests on: the attention to each picture, where on it, and what the answer "
            f"loses without it. A file that ends in {names.listed(list(report.FORMS))}.",
        ),
    ] = None
    compare_model: Annotated[
        str | None,
        Option(metavar="MODEL", help="Ask another model, too, and show both answers' evidence side by side."),
    ] = None
    compare_select: Annotated[
        str | None,
        Option(metavar="SAMPLER", help="Ask about frames of another sampler, too, and show both side by side."),
    ] = None

    @property
    def given(self) -> bool:
        return self.evidence is not None

    @property
    def compares(self) -> bool:
        return self.compare_model is not None or self.compare_select is not None

    @property
    def path(self) -> Path:
        assert self.evidence is not None
        return self.evidence.expanduser()

    def check_use(self, of_several: bool) -> None:
        """Before anything is opened.

        Args:
            of_several: The answer is not that to one question about the files that are given.

        Raises:
            RequestError: nothing can be written there, or compared.
            MissingExtraError: a .png without matplotlib.
        """
        if not self.given:
            if self.compares:
                name = "--compare-select" if self.compare_model is None else "--compare-model"
                raise RequestError(f"{name} shows evidence side by side; add --evidence FILE")
            return
        if of_several:
            raise RequestError(
                "--evidence is of one answer about files; leave --questions, --index and --knowledge out"
            )
        report.check_name(self.path)
        if self.path.suffix.lower() == ".png" and missing(("matplotlib",)):
            raise MissingExtraError("evidence as .png", "matplotlib")
        if self.compare_select is not None and self.compare_select not in FRAME_SAMPLERS:
            raise RequestError(
                f"--compare-select is {self.compare_select!r:.40}; choose {names.listed(list(FRAME_SAMPLERS))}"
            )
        if self.compare_model is not None:
            from longview.models.sources import check_name

            check_name(self.compare_model)

    def compared(self, media: MediaOptions) -> MediaOptions:
        """The options for the other answer: with another sampler, which may not go by the question."""
        if self.compare_select is None:
            return media
        if FRAME_SAMPLERS[self.compare_select].by_content:
            return replace(media, select=self.compare_select)
        return replace(media, select=self.compare_select, candidates=None, relevance_query=None)

    def check_parts(self, parts: Sequence[Part]) -> None:
        """
        Raises:
            RequestError: nothing is shown that an answer may rest on, or chosen from.
        """
        if self.given and not parts:
            raise RequestError("--evidence says which pictures an answer rests on, and none is given")
        if self.compare_select is not None and all(part.type != "video" for part in parts):
            raise RequestError("--compare-select chooses frames of a video, and none is given")

    def write(
        self,
        engine: Engine,
        messages: Sequence[Message],
        answer: Answer,
        model: ModelOptions,
        plugins: PluginOptions,
        similarity: str | None,
        settings: Mapping[str, Any],
        show: bool,
        json: bool,
        quiet: bool,
    ) -> None:
        """Check the evidence of an answer, say what that says on stderr, and write the file.

        What it is compared with is asked, printed and checked first.

        Args:
            settings: That the answer was asked for with.
        """
        limits: Limits = settings["limits"]
        reports = [self._checked(engine, messages, answer, limits, plugins.ocr, show, quiet)]
        if self.compares:
            if self.compare_model is not None:
                engine = of_another(model, self.compare_model).load(show, similarity=similarity)
            media = self.compared(settings["media"])
            hooks = plugins.hooks(engine, settings["params"].seed)
            with spinner("answering again", show):
                other = engine.answer(messages, **{**settings, "media": media, "hooks": hooks})
            plain = replace(other, evidence=None).as_dict()
            typer.echo(jsonlib.dumps(plain, ensure_ascii=False) if json else other.text)
            if not quiet and not json:
                typer.echo("\n".join(receipt_lines(other.receipt, other.finish_reason)), err=True)
            reports.append(self._checked(engine, messages, other, limits, plugins.ocr, show, quiet))
        report.write(self.path, reports, limits)
        if not quiet:
            typer.echo(f"{'':<10}written to {self.path}", err=True)

    def _checked(
        self,
        engine: Engine,
        messages: Sequence[Message],
        answer: Answer,
        limits: Limits,
        ocr: bool,
        show: bool,
        quiet: bool,
    ) -> report.Report:
        from longview.evidence.deletion import check

        with spinner("leaving pictures out", show):
            deletion = check(engine, messages, answer, limits=limits, ocr=ocr)
        if not quiet:
            for sentence in deletion.sentences:
                typer.echo(f"{'evidence':<10}{sentence}", err=True)
            typer.echo(f"{'':<10}{deletion.passes} passes, {deletion.seconds:.1f} s", err=True)
        return report.Report(tuple(messages), answer, deletion)


def of_another(model: ModelOptions, name: str) -> ModelOptions:
    """The same options for another model, without the folders that belong to the first."""
    alone = replace(model, model=name, adapter=None, revision=None)
    return replace(alone, model_base=None, vision_tower=None, vision_tower_aux=None)
