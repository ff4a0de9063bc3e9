"""`longview prefer`: pairs of a better and a worse answer, from a model's own answers."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longview.cli.options import ModelOptions, Similarity, check_similarity
from longview.cli.terminal import bars, is_terminal, print_table
from longview.errors import RequestError
from longview.requests import Limits, MediaOptions, SamplingParams
from longview.settings import setting
from longview.train.preferences.remote import JudgeOptions
from longview.train.preferences.settings import PreferenceSettings

if TYPE_CHECKING:
    from longview.train.preferences.pairs import Outcome
    from longview.train.preferences.sample import Summary

TITLES = {"direct": "direct", "cot": "step by step"}
REASONS: dict[Outcome, str] = {
    "pair": "gave a pair",
    "no wrong answer": "none: no wrong answer",
    "no right answer": "none: no right answer",
    "cut": "none: all cut at --max-tokens",
    "no verdict": "none: the judge could not tell",
    "failed": "none: could not be asked",
}
MAX_LISTED = 10
"""Rows that could not be asked, and are listed with the reason."""
OPENED = ("adapter", "revision", "quantize", "load_8bit", "load_4bit")
"""Options of the model on which its answers depend."""


@dataclass(frozen=True)
class VariedParams(SamplingParams):
    """How answers are chosen

    As everywhere, but that they are to differ.
    """

    max_tokens: int = setting(1024, "Tokens of an answer, at most; one that is cut is in no pair.", low=1)
    temperature: float = setting(1.0, "Higher is more varied; 0 gives the same answer each time.", low=0, high=100)
    seed: int | None = setting(0, "Fixes the random choices.", low=0, high=2**63 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logprobs is not None:
            raise RequestError("logprobs are in no pair; leave --logprobs out")


def prefer(
    rows: Annotated[
        str,
        typer.Argument(
            metavar="ROWS", help="Questions with true answers: what a recipe's datasets take.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="JSON lines for objective: preference; a journal beside it.", show_default=False
        ),
    ],
    settings: PreferenceSettings,
    judge: JudgeOptions,
    model: ModelOptions,
    params: VariedParams,
    media: MediaOptions,
    limits: Limits,
    folder: Annotated[
        Path | None, typer.Option(help="Where relative paths in the rows begin; default: the file's own folder.")
    ] = None,
    similarity: Similarity = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: what became of the rows.")] = False,
) -> None:
    """Pair right with wrong ones of a model's own answers. Each question is asked several times, directly and step by
    step; stop it at any time, and go on with the same command.

    Examples:
      longview prefer rows.jsonl --model AIDC-AI/Ovis2-2B --direct 4 --cot 4 --output pairs.jsonl
      longview prefer rows.jsonl#2000 --judge exact --direct 8 --cot 0 --true-answer --output pairs.jsonl
      longview prefer rows.jsonl --judge openai --judge-url http://HOST/v1 --judge-model J --output pairs.jsonl
      longview train recipes/dpo.yaml stages.0.data.datasets.0.path=pairs.jsonl
    """
    check_similarity(similarity, media)
    if params.temperature == 0 and max(settings.direct, settings.cot) > 1:
        raise RequestError("temperature 0 gives the same answer each time; raise it, or ask for one answer of a kind")
    if settings.cot and (params.regex is not None or params.json_schema is not None):
        raise RequestError("a step-by-step answer follows no --regex or --json-schema; add --cot 0, or leave it out")
    from longview.train.data.settings import DatasetSettings
    from longview.train.preferences.sample import PreferenceJob, check_output, open_rows

    check_output(output)
    opened_judge = judge.open()
    data = open_rows(DatasetSettings(rows, folder=None if folder is None else str(folder)))
    show = is_terminal() and not json
    engine = model.load(show, similarity=similarity)
    opened = {name: str(value) for name in OPENED if (value := getattr(model, name))}
    job = PreferenceJob(engine, data, output, opened_judge, settings, params, media, limits, opened)
    with bars(show) as progress:
        summary = job.run(progress)
    if json:
        typer.echo(jsonlib.dumps({"output": str(output), **summary.as_dict()}, ensure_ascii=False))
        return
    print_table(*_table(summary))
    for place, why in list(summary.failed.items())[:MAX_LISTED]:
        typer.echo(f"{place}: {why}", err=True)
    typer.echo(f"{summary.with_pairs:,} of {summary.rows:,} rows gave {sum(summary.pairs.values()):,} pairs: {output}")


def _table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """What became of the rows, for each way of asking: a heading, and lines."""
    styles = list(summary.outcomes)
    lines = [
        [told, *(f"{summary.outcomes[style].get(outcome, 0):,}" for style in styles)]
        for outcome, told in REASONS.items()
        if outcome == "pair" or any(summary.outcomes[style].get(outcome) for style in styles)
    ]
    return ["rows", *(TITLES[style] for style in styles)], lines
