"""Rows → sampled answers → verdicts, many rows at a time, and from the journal of them the file of pairs.

    {"row": 3, "answers": {"direct": [["red", false], …], "cot": […]}}       text, and whether it was cut
    {"row": 3, "judge": "parse", "verdicts": {"direct": [true, …], …}}
    {"row": 3, "failed": "there is no file …"}

Verdicts have a line of their own, so that another judge, or one that did not answer, costs no answer anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longview.errors import LongviewError, RecipeError, RequestError
from longview.files import write_file
from longview.journal import Journal
from longview.messages import Message, Progress
from longview.requests import Limits, MediaOptions, SamplingParams
from longview.train.data.datasets import Dataset
from longview.train.data.rows import Example
from longview.train.data.settings import DatasetSettings, DataSettings
from longview.train.preferences.judges import Judge
from longview.train.preferences.pairs import JudgedAnswer, Outcome, asked_in, check_askable, pair_row, pair_up
from longview.train.preferences.settings import STYLES, PreferenceSettings, Style
from longview.train.recipe import Stage

ROWS_AT_ONCE = 16
"""Rows that are answered and judged concurrently; their answers share each pass through the model."""
Answers = dict[Style, list[JudgedAnswer]]


@dataclass(frozen=True)
class Summary:
    """What became of the rows."""

    rows: int
    with_pairs: int
    """Rows that gave a pair or more."""
    pairs: dict[Style, int]
    outcomes: dict[Style, dict[Outcome, int]]
    """Rows by what became of them, for each way of asking."""
    failed: dict[str, str]
    """Place of a row: why it could not be asked."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def open_rows(settings: DatasetSettings) -> Dataset:
    """Rows with questions and their true answers.

    Raises:
        RecipeError: the source cannot be read, or a row is not understood or holds no question; names its line.
    """
    settings.check("rows")
    stage = Stage("prefer", "supervised", ["language"], steps=1, data=DataSettings([settings]))
    data = Dataset(settings, 0, stage)
    for number in range(len(data)):
        try:
            check_askable(data[number])
        except RequestError as error:
            raise RecipeError(f"{data.place(number)}: {error}") from error
    return data


class PreferenceJob:
    """Samples and judges answers to rows, and writes the pairs; what is finished is in the journal.

    Args:
        engine: What answers, see `longview.engine.Engine`.
        params: How; `seed` fixes the answers to each row, whichever rows are asked beside it.
        output: The file of pairs; the journal lies beside it.
        opened: With what the engine's model was opened, besides its name.
    """

    def __init__(
        self,
        engine: Any,
        rows: Dataset,
        output: Path,
        judge: Judge,
        settings: PreferenceSettings,
        params: SamplingParams,
        media: MediaOptions,
        limits: Limits,
        opened: Mapping[str, Any] | None = None,
    ) -> None:
        self._opened = opened or {}
        self._engine, self._rows, self._judge, self._settings = engine, rows, judge, settings
        self._params, self._media, self._limits, self._output = params, media, limits, output
        self._stopped = threading.Event()
        self._answers: dict[int, Answers] = {}
        self._judged: set[int] = set()
        self._failed: dict[int, str] = {}

    def run(self, progress: Progress | None = None) -> Summary:
        """
        Raises:
            RequestError: the journal is another job's, or the judge does not answer; what is finished is kept.
        """
        with Journal(journal_of(self._output), self._job()) as journal:
            self._recall(journal)
            try:
                self._finish(journal, progress)
            except RequestError as error:
                done = len(self._judged) + len(self._failed)
                raise RequestError(
                    f"{error}; {done} of {len(self._rows)} rows are finished and kept in {journal.path}: give the same "
                    "command again to go on"
                ) from error
            try:
                return self._write()
            except RequestError as error:
                raise RequestError(
                    f"{error}; every answer is kept in {journal.path}: the same command takes them from there"
                ) from error

    def _job(self) -> dict[str, Any]:
        """What must be the same for a job to go on; pairs are made anew each time, and judges have their own lines."""
        params = {name: value for name, value in asdict(self._params).items() if value is not None}
        media = {name: value for name, value in asdict(self._media).items() if value is not None}
        asked = {name: getattr(self._settings, name) for name in ("direct", "cot", "cot_prompt")}
        rows = {"rows": str(self._rows.path), "number of rows": len(self._rows), "digest of rows": self._rows.digest}
        return {"model": self._engine.name, **self._opened, **rows, **asked, **params, **media}

    def _recall(self, journal: Journal) -> None:
        """What is in the journal already."""
        for line in journal.lines:
            row = line["row"]
            if "failed" in line:
                self._failed[row] = line["failed"]
            elif "answers" in line:
                self._answers[row] = {
                    style: [JudgedAnswer(text, cut) for text, cut in line["answers"][style]]
                    for style in STYLES
                    if style in line["answers"]
                }
            elif line["judge"] == self._judge.name:
                self._set_verdicts(row, line["verdicts"])

    def _set_verdicts(self, row: int, verdicts: Mapping[Any, list[bool | None]]) -> None:
        self._answers[row] = {
            style: [replace(answer, verdict=verdict) for answer, verdict in zip(found, verdicts[style], strict=True)]
            for style, found in self._answers[row].items()
        }
        self._judged.add(row)

    def _finish(self, journal: Journal, progress: Progress | None) -> None:
        """Do the rows that are left. The first error that is no row's own ends it, and waits for no other row."""
        left = [row for row in range(len(self._rows)) if row not in self._judged and row not in self._failed]
        report = progress or (lambda done, total, label: None)
        pool = ThreadPoolExecutor(ROWS_AT_ONCE, thread_name_prefix="longview-prefer")
        futures = [pool.submit(self._do, journal, row) for row in left]
        try:
            done = len(self._rows) - len(left)
            report(done, len(self._rows), "rows")
            for finished in as_completed(futures):
                finished.result()
                report(done := done + 1, len(self._rows), "rows")
        finally:
            self._stopped.set()
            if close := getattr(self._judge, "close", None):
                close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _do(self, journal: Journal, row: int) -> None:
        example = self._rows[row]
        if row not in self._answers:
            try:
                answers = {style: self._sample(example, row, style) for style in STYLES if self._settings.count(style)}
            except _StoppedError:
                return
            except LongviewError as error:
                journal.append({"row": row, "failed": str(error)})
                self._failed[row] = str(error)
                return
            told = {style: [[answer.text, answer.cut] for answer in found] for style, found in answers.items()}
            journal.append({"row": row, "answers": told})
            self._answers[row] = answers
        if self._stopped.is_set():
            return
        question, truth = example.messages[-2].text.strip(), example.messages[-1].text
        verdicts = {style: self._verdicts(question, truth, found, style) for style, found in self._answers[row].items()}
        journal.append({"row": row, "judge": self._judge.name, "verdicts": verdicts})
        self._set_verdicts(row, verdicts)

    def _sample(self, example: Example, row: int, style: Style) -> list[JudgedAnswer]:
        params = replace(self._params, seed=_seed(self._params.seed, row, style))
        count = self._settings.count(style)
        texts, cut = [""] * count, [False] * count
        pieces = self._engine.stream(
            asked_in(example, style, self._settings), n=count, params=params, media=self._media, limits=self._limits
        )
        with contextlib.closing(pieces):
            for piece in pieces:
                if self._stopped.is_set():
                    raise _StoppedError
                texts[piece.choice] += piece.text
                cut[piece.choice] |= piece.finish_reason == "length"
        return [JudgedAnswer(text.strip(), ended) for text, ended in zip(texts, cut, strict=True)]

    def _verdicts(self, question: str, truth: str, answers: list[JudgedAnswer], style: Style) -> list[bool | None]:
        """Equal answers are judged once; those that are cut or empty have no verdict."""
        texts = list(dict.fromkeys(answer.text for answer in answers if answer.text and not answer.cut))
        found = dict(zip(texts, self._judge(question, truth, texts, style), strict=True))
        return [None if answer.cut else found.get(answer.text) for answer in answers]

    def _write(self) -> Summary:
        """The file of pairs, whole or not at all."""
        lines, counts, with_pairs = [], Counter[Style](), 0
        outcomes = {style: Counter[Outcome]() for style in STYLES if self._settings.count(style)}
        for row in range(len(self._rows)):
            if row in self._failed:
                for counted in outcomes.values():
                    counted["failed"] += 1
                continue
            example = self._rows[row]
            pairs, became = pair_up(example.messages[-1].text, self._answers[row], self._settings)
            with_pairs += bool(pairs)
            for style, outcome in became.items():
                outcomes[style][outcome] += 1
            for pair in pairs:
                counts[pair.style] += 1
                messages = [*asked_in(example, pair.style, self._settings), Message.of("assistant", pair.chosen)]
                own = {} if example.max_partition is None else {"max_partition": example.max_partition}
                line = pair_row(
                    messages, pair.rejected, self._output, id=f"{self._rows.place(row).number}-{pair.style}", **own
                )
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        write_file(self._output, "".join(lines).encode())
        failed = {str(self._rows.place(row)): why for row, why in sorted(self._failed.items())}
        totals = {style: dict(found) for style, found in outcomes.items()}
        return Summary(len(self._rows), with_pairs, {style: counts[style] for style in outcomes}, totals, failed)


def journal_of(output: Path) -> Path:
    return output.with_suffix(".journal.jsonl")


def check_output(output: Path) -> None:
    """
    Raises:
        RequestError: a file is there that no job of this kind has written.
    """
    if output.exists() and not journal_of(output).exists():
        raise RequestError(f"{output} exists, and no journal beside it says what it is; choose another --output")


class _StoppedError(Exception):
    """Another row has ended the job."""


def _seed(seed: int | None, row: int, style: Style) -> int:
    """Of a row's answers; from 0 to 2⁶², so that the answers of one question can count on from it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row} {style}".encode()).digest()[:8], "big") >> 2
