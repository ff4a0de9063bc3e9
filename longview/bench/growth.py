"""How cost grows with work: first token, decoding and memory by number of pictures; and films (`films.py`).

    hyper attention   mPLUG-Owl3: pictures beside the sequence, seen by a few layers
    in the sequence   Ovis2 and MGM, by their own numbers of positions a picture; and mPLUG-Owl3's language model and
                      patches, interleaved (`alternatives.Interleaved`)

Features are random: a tower encodes each picture alone, so its cost grows with their number in every family. A way ends
before the first count that is predicted to take too long, or that does not fit; what it would cost is counted, and its
time predicted as last measured time × operations / operations of that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import nn

from longview.bench.alternatives import Interleaved
from longview.bench.films import FRAMES, read_films
from longview.bench.growth_page import figure, film_findings, findings, shown, shown_films
from longview.bench.report import Result, command, machine
from longview.bench.subject import DIMENSIONS, Subject, check_name, open_subject
from longview.engine.devices import memory_of
from longview.media import open_media
from longview.wording import counted

DIMS = ("owl3-0.2b", "ovis2-0.2b", "mgm-0.2b")
"""One language model, three ways for pictures to enter it."""
FILMS = (10, 60, 600, 3600, 4 * 3600)
"""Seconds of video."""


class Size(NamedTuple):
    """What a prompt with some pictures costs, counted without running it."""

    positions: int
    """Of the language sequence."""
    operations: int
    """To the first token; see `operations`."""
    bytes: int
    """Of keys and values."""


class Run(NamedTuple):
    """What was measured of it."""

    first_token: float
    token: float
    """Seconds of one further token."""
    bytes: int


class Way(Protocol):
    """A model, or an alternative to it, that pictures are given to."""

    name: str
    max_positions: int
    memory: int
    """Bytes that it may use."""

    def size(self, pictures: int) -> Size: ...

    def runs(self, pictures: int) -> Iterator[Run]:
        """Run the same prompt again each time."""


@dataclass
class Growth(Result):
    """Rows are ways and numbers of pictures; films have a table of their own."""

    films: list[dict[str, Any]] = field(default_factory=list)
    film_findings: list[str] = field(default_factory=list)

    def table(self) -> str:
        pictures = Result(self.measure, self.about, {}, shown(self.rows), self.findings)
        about = f"seconds to {FRAMES} frames spread over a film; opening makes an index of all its packets."
        films = Result("films", about, {}, shown_films(self.films), self.film_findings)
        return f"{pictures.table()}\n\n{films.table()}"

    def figure(self) -> Any:
        return figure(self.rows, self.films)


def growth(
    dims: Sequence[str] = DIMS,
    pictures: Sequence[int] = (1, 3, 10, 30, 100, 300, 1000),
    films: Sequence[float] = FILMS,
    tokens: int = 16,
    repeats: int = 3,
    limit: float = 60.0,
    device: str | None = None,
    dtype: str | None = None,
) -> Growth:
    """Measure films, then each of `dims` and, where pictures are beside the sequence, the interleaved alternative.

    Args:
        limit: Seconds that one count, or decoding a film through, may take, as predicted and with its repetitions.

    Raises:
        RequestError: no such dimensions.
    """
    for name in dims:
        if name not in DIMENSIONS:
            check_name(name)
    hardware = machine()
    film_rows = read_films(films, repeats, limit)
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for name in dims:
        subject = open_subject(name, True, dtype, device)
        settings |= {"dtype": str(subject.model.dtype).removeprefix("torch."), "device": str(subject.model.device)}
        rows += grow(InEngine(subject, tokens), pictures, repeats, limit)
        if not subject.pictures_in_sequence:
            rows += grow(InSequence(subject, tokens), pictures, repeats, limit)
    settings = {"dims": ", ".join(dims), **settings, "features": "random", "tokens": tokens}
    settings |= {"repeats": repeats, "limit s": limit}
    result = Growth("growth", "", settings, rows, machine=hardware, command=command(), films=film_rows)
    result.about = (
        f"Seconds to the first token, milliseconds a token after it ({tokens} tokens), and keys and values that are "
        f"kept then; medians of up to {counted(repeats, 'run')}, as many as fit into {limit:g} s."
    )
    result.findings, result.film_findings = findings(rows, limit), film_findings(film_rows, limit)
    return result


def grow(way: Way, counts: Sequence[int], repeats: int, limit: float) -> list[dict[str, Any]]:
    """A row for each number of pictures, ascending. From where the way ends, what would be measured is None."""
    rows: list[dict[str, Any]] = []
    last: tuple[float, Size] | None = None
    ended = None
    for count in sorted(set(counts)):
        size = way.size(count)
        predicted = None if last is None else last[0] * size.operations / last[1].operations
        ended = ended or _obstacle(way, size, predicted, limit)
        runs = [] if ended else _repeat(way.runs(count), repeats, limit)
        if runs:
            last = statistics.median(run.first_token for run in runs), size
        rows.append(
            {
                "way": way.name,
                "pictures": count,
                "positions": size.positions,
                "operations": size.operations,
                "first token s": last[0] if runs and last else None,
                "ms a token": 1000 * statistics.median(run.token for run in runs) if runs else None,
                "MiB kept": runs[0].bytes / 2**20 if runs else None,
                "runs": len(runs),
                "predicted s": None if runs else predicted,
                "MiB needed": size.bytes / 2**20,
                "ended by": ended,
            }
        )
    return rows


def _obstacle(way: Way, size: Size, predicted: float | None, limit: float) -> str | None:
    """Why a count is not run, or None."""
    if size.positions >= way.max_positions:
        return "positions"
    if 3 * size.bytes > way.memory:  # of the request, its copy in the prefix cache, and one that grows
        return "memory"
    return "time" if predicted is not None and predicted > limit else None


def _repeat(runs: Iterator[Run], repeats: int, limit: float) -> list[Run]:
    """As many runs as fit into the limit, at least one."""
    done: list[Run] = []
    start = time.perf_counter()
    while len(done) < repeats:
        done.append(next(runs))
        taken = time.perf_counter() - start
        if taken + taken / len(done) > limit:
            break
    return done


def operations(
    layers: nn.Module, hidden: int, vocab: int, positions: int, visual_rows: int = 0, visual_pairs: int = 0
) -> int:
    """Floating-point operations from features to the first token, 2 for a multiplication with its addition.

        linear layers   2 · weights · positions      keys and values of pictures, in hyper layers:
                                                     2 · weights · patches
        attention       4 · hidden · pairs a layer   pairs of a token and a position that it attends to: T (T + 1) / 2;
                                                     in hyper layers, of a token and a patch besides
        head            2 · hidden · vocab           of the last position

    Args:
        layers: Of the language model.
        visual_rows: Patches of all pictures. visual_pairs: of a token and a patch, in each hyper layer.
    """
    weights = {"text": 0, "visual": 0}
    num_hyper = 0
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):
            visual = name.endswith("v_kv_proj")
            num_hyper += visual
            weights["visual" if visual else "text"] += module.weight.numel()
    num_layers = sum(1 for _ in layers.children())
    linear = 2 * (weights["text"] * positions + weights["visual"] * visual_rows)
    pairs = num_layers * (positions * (positions + 1) // 2) + num_hyper * visual_pairs
    return linear + 4 * hidden * pairs + 2 * hidden * vocab


class InEngine:
    """A family in the engine."""

    def __init__(self, subject: Subject, tokens: int) -> None:
        self.subject, self.tokens, self.name = subject, tokens, subject.name
        engine, model = subject.engine, subject.model
        self.max_positions, self.memory = engine.context_length - tokens, memory_of(str(model.device))
        engine.prefix_cache.max_bytes = self.memory
        self.footprint = type(model).footprint(model.config, model.dtype)
        next(self.runs(1))  # the first of a process takes longest

    def size(self, pictures: int) -> Size:
        model = self.subject.model
        positions, starts = prompt(self.subject, pictures)
        patches = self.footprint.patches_per_picture
        seen = sum(positions - start - (not model.config.joint_softmax) for start in starts)
        text = model.language_model.config
        needed = operations(
            model.language_model.model.layers,
            text.hidden_size,
            text.vocab_size,
            positions,
            patches * len(starts),
            patches * seen,
        )
        kept = (positions + self.tokens - 1) * self.footprint.token_bytes + len(starts) * self.footprint.picture_bytes
        return Size(positions, needed, kept)

    def runs(self, pictures: int) -> Iterator[Run]:
        subject = self.subject
        messages = subject.question(pictures)
        try:
            while True:
                subject.clear_caches()
                answer = subject.engine.answer(messages, max_tokens=self.tokens, min_tokens=self.tokens)
                timings = answer.receipt.timings
                each = timings.decode / (self.tokens - 1)
                yield Run(timings.first_token, each, subject.engine.prefix_cache.key_value_bytes)
        finally:
            subject.clear_caches(features=True)


class InSequence:
    """The interleaved alternative of a subject whose pictures are beside its sequence: the same text and patches."""

    def __init__(self, subject: Subject, tokens: int) -> None:
        self.subject, self.tokens, self.name = subject, tokens, f"{subject.name} interleaved"
        self.model = Interleaved(subject)
        self.max_positions, self.memory = 1 << 31, memory_of(str(subject.model.device))
        self.bytes_per_position = self.model.bytes_per_picture() // self.model.patches
        next(self.runs(1))

    def size(self, pictures: int) -> Size:
        positions = prompt(self.subject, pictures)[0] + pictures * self.model.patches
        config = self.model.config
        needed = operations(self.model.model.model.layers, config.hidden_size, config.vocab_size, positions)
        return Size(positions, needed, (positions + self.tokens - 1) * self.bytes_per_position)

    def runs(self, pictures: int) -> Iterator[Run]:
        text, kept = prompt(self.subject, pictures)[0], self.size(pictures).bytes
        while True:
            first = self.model.first_token(pictures, text)
            yield Run(first, self.model.token(pictures, text, self.tokens - 1), kept)


def prompt(subject: Subject, pictures: int) -> tuple[int, list[int]]:
    """Positions of a question about so many pictures, and where those stand that are beside the sequence."""
    messages = Subject(subject.name, subject.engine, False).question(pictures)
    inputs = subject.engine.processor.prepare(messages, open_media(messages[0].media))
    return inputs.length, list(inputs.text_inputs.get("placeholder_starts", [[]])[0])
