"""One question on its way through the engine: what it needs, how far it has come, and what came of it so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from longview.engine.features import Prefetcher
from longview.engine.kv_cache import DecodeBatch, KVCache
from longview.engine.prefix_cache import PrefixKey
from longview.engine.sampling import Sampler
from longview.engine.text import TextStream
from longview.media import Progress
from longview.messages import FinishReason, Piece, Receipt, Timings, TokenLogprob, Usage
from longview.models.base import ModelInputs
from longview.requests import SamplingParams


@dataclass
class Clock:
    """Seconds between marks."""

    began: float = field(default_factory=time.perf_counter)
    laps: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def __post_init__(self) -> None:
        self.last = self.last or self.began

    def lap(self, name: str) -> None:
        """What happened since the last mark was this."""
        before, self.last = self.last, time.perf_counter()
        self.laps[name] = self.last - before

    def again(self) -> Clock:
        """A clock of its own that has run as long."""
        return replace(self, laps=dict(self.laps))


@dataclass(frozen=True)
class Settings:
    """What a request was asked with, and what reads its answer."""

    model: str
    params: SamplingParams
    shown: Mapping[str, Any]
    """For the receipt."""
    decode: Callable[[list[int]], str]
    end_tokens: list[int]
    context_length: int
    progress: Progress | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What hooks have noted, for the receipt."""


class Request:
    """A question, from its inputs to its pieces.

    waiting ── admitted ── looking (pictures → features) ── reading (prefill) ── answering, a token a step ── ended

    Args:
        choice: Which of several answers to the same question it is.
        after: The request to be read first, because this one begins alike.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        settings: Settings,
        clock: Clock,
        sampler: Sampler,
        choice: int = 0,
        after: Request | None = None,
    ) -> None:
        self.inputs, self.settings, self.clock, self.choice, self.after = inputs, settings, clock, choice, after
        self.sampler = sampler
        self.text = TextStream(settings.decode, settings.params.stop)
        self.pieces: deque[Piece] = deque()
        self.error: Exception | None = None
        self.cancelled = False
        self.ended = False
        # looking
        self.keys: list[str] = []  # of the features of each encoder_input
        self.features: dict[str, Tensor] = {}  # by those keys: (crops, P, D)
        self.prefetcher: Prefetcher | None = None
        self.due: deque[str] = deque()  # keys of what the prefetcher is to give, in order
        # reading
        self.arguments: dict[str, Any] = {}
        self.prompt = PrefixKey(torch.zeros(1, 0, dtype=torch.long))
        self.row: KVCache | None = None
        self.cached_tokens = 0
        # answering
        self.decode_batch: DecodeBatch | None = None
        # a family may write pictures into the ids, as negative numbers; the sampler counts words
        self.history = [token for token in inputs.text_inputs["input_ids"][0].tolist() if token >= 0]
        self.prompt_words = len(self.history)
        self.pending: list[int] = []
        self.logprobs: list[TokenLogprob] = []

    # ── how far it has come ──

    @property
    def read(self) -> bool:
        """Its prompt has been read, or never will be."""
        return self.ended or self.decode_batch is not None

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.history) - self.prompt_words

    @property
    def budget(self) -> int:
        """Tokens of the answer, at most."""
        return min(self.settings.params.max_tokens, self.settings.context_length - self.inputs.length)

    @property
    def positions(self) -> int:
        """Positions of the language sequence that it may come to hold."""
        return self.inputs.length + self.budget

    # ── as a source of keys and values for others; see `prefixes.Source` ──

    @property
    def prefix_key(self) -> PrefixKey:
        return self.prompt

    @property
    def side_cache(self) -> Any:
        assert self.decode_batch is not None
        return self.decode_batch.side_cache_of(self.decode_batch.rows.index(self))

    def pairs(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.decode_batch is not None
        return self.decode_batch.pairs(self.decode_batch.rows.index(self), length)

    # ── its answer ──

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Take the next token of the answer; the piece that it completes, if any, joins `pieces`."""
        if not self.answered:
            self.clock.lap("prefill")
        ended = token in self.settings.end_tokens
        self.history.append(token)
        self.pending.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        new = "" if ended else self.text.push(token)
        matcher = self.sampler.matcher
        if ended or self.text.stopped or (matcher is not None and matcher.complete):
            self._end("stop", new)
        elif self.answered >= self.budget:
            self._end("length", new)
        elif new:
            self._say(new)

    def fail(self, error: Exception) -> None:
        """It ends with an error, which whoever asked will see."""
        self.error = error
        self.ended = True

    def _say(self, text: str, reason: FinishReason | None = None, receipt: Receipt | None = None) -> None:
        logprobs = None if self.settings.params.logprobs is None else tuple(self.logprobs)
        self.pieces.append(Piece(text, tuple(self.pending), reason, receipt, self.choice, logprobs))
        self.pending, self.logprobs = [], []

    def _end(self, reason: FinishReason, text: str) -> None:
        self.clock.lap("decode")
        laps, inputs = self.clock.laps, self.inputs
        before = ("media", "preprocess", "encode", "prefill")
        usage = Usage(
            inputs.length, self.answered, inputs.num_pictures, inputs.visual_tokens, cached_tokens=self.cached_tokens
        )
        timings = Timings(**laps, first_token=sum(laps[step] for step in before))
        settings = self.settings
        receipt = Receipt(
            settings.model, inputs.frames, usage, timings, settings.shown, inputs.warnings, settings.notes
        )
        self._say(text + self.text.finish(), reason, receipt)
        self.ended = True  # last, because another thread may be waiting for it
