"""A request: its inputs, its state in the scheduler, and the pieces of its answer so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from longview.answer_evidence import Evidence
from longview.engine.decode_batch import DecodeBatch
from longview.engine.features import Prefetcher
from longview.engine.kv_cache import KVCache
from longview.engine.prefix_cache import CachedPrefix, PrefixKey, PrefixSource
from longview.engine.sampling import RankedToken, Sampler
from longview.engine.text import TextStream
from longview.errors import RequestError
from longview.messages import Answer, FinishReason, Piece, Progress, Receipt, Timings, TokenLogprob, Usage
from longview.models.base import ModelInputs, SideCache
from longview.requests import SamplingParams
from longview.wording import counted


@dataclass
class Clock:
    """Measures the phases of a request: media, preprocess, encode, prefill, decode."""

    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    last: float = 0.0

    def __post_init__(self) -> None:
        self.last = self.last or self.began

    def end_phase(self, phase: str) -> None:
        """A phase has ended, which began when the one before it ended."""
        before, self.last = self.last, time.perf_counter()
        self.seconds[phase] = self.last - before

    def copy(self) -> Clock:
        """The same times so far, for another request."""
        return replace(self, seconds=dict(self.seconds))


@dataclass(frozen=True)
class RequestContext:
    """What a request needs besides its inputs: sampling parameters, detokenisation, bounds, notes for the receipt."""

    model: str
    params: SamplingParams
    settings: Mapping[str, Any]
    """As the receipt lists them."""
    decode: Callable[[list[int]], str]
    """Token ids → text."""
    token_bytes: Callable[[int], bytes]
    """The same for a single token, which may be a part of a character."""
    end_tokens: list[int]
    context_length: int
    progress: Progress | None = None
    load_seconds: float = 0.0
    """How long the model took to open, for the receipt."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What hooks have noted, for the receipt."""


class Request:
    """A request, from its inputs to the pieces of its answer.

        waiting ── encoding ── prefilling ── decoding, one token a step ── finished

    Args:
        choice: Which of several answers to the same question this is.
        after: A request with the same prompt that must be prefilled first, so that its keys and values can be copied.
        keeps_prefix: When it ends, its keys and values go into the prefix cache, as a next turn may begin with them.
        answers: Tokens of answers to be scored; it ends with their scores when its prompt is prefilled, and generates
            nothing.
        picture_positions: Where evidence is asked for: of each picture's placeholder, (N, W). Its pieces end with that.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        context: RequestContext,
        clock: Clock,
        sampler: Sampler,
        choice: int = 0,
        after: Request | None = None,
        keeps_prefix: bool = True,
        answers: Sequence[Sequence[int]] = (),
        picture_positions: Tensor | None = None,
    ) -> None:
        self.inputs, self.context, self.clock, self.choice, self.after = inputs, context, clock, choice, after
        self.sampler, self.keeps_prefix, self.answers = sampler, keeps_prefix, answers
        self.picture_positions = picture_positions
        self.answered = False
        """The answer is there, and its evidence alone is missing."""
        self.scores: Sequence[float] = ()
        """The log-probability of each of `answers`, once it has finished."""
        self.kept_prefix: PrefixSource | None = None
        """What those that come `after` it copy, where it does not decode."""
        self.text_stream = TextStream(context.decode, context.params.stop)
        self.pieces: deque[Piece] = deque()
        self.error: Exception | None = None
        self.cancelled = False
        self.finished = False
        # encoding
        self.feature_keys: list[str] = []  # one for each of `inputs.encoder_inputs`
        self.features: dict[str, Tensor] = {}  # by those keys: (crops, P, D)
        self.details: dict[str, Tensor] = {}  # by those keys: (crops, P, …), where evidence is asked for
        self.prefetcher: Prefetcher | None = None
        self.pending_keys: deque[str] = deque()  # those that the prefetcher has yet to give pixels for, in its order
        # prefilling
        self.forward_arguments: dict[str, Any] = {}  # of the whole prompt, by `Model.embed_pictures`
        self.prefix_key = PrefixKey(torch.zeros(1, 0, dtype=torch.long))
        """What its keys and values are computed from: the prompt, and, once it has finished, the answer."""
        self.prefill_cache: KVCache | None = None  # of one row, which a decode batch then takes over
        self.shared_prefix: CachedPrefix | None = None  # what it begins with, until that is copied
        self.cached_tokens = 0
        # decoding
        self.decode_batch: DecodeBatch | None = None
        # text tokens only: a family may write pictures into the ids as negative ids, which penalties cannot index
        self.token_ids = [token for token in inputs.text_inputs["input_ids"][0].tolist() if token >= 0]
        self.num_prompt_ids = len(self.token_ids)
        most = min(context.params.max_tokens, context.context_length - inputs.length)
        self.max_generated = self.num_scored if answers else most
        """Tokens of the answer at most, or of all answers that are scored."""
        self._piece_ids: list[int] = []  # of the piece that is not yet complete
        self._piece_logprobs: list[TokenLogprob] = []

    # ── progress and bounds ──

    def take_frame(self) -> tuple[str, Mapping[str, Tensor]] | None:
        """Feature key and pixels of the next frame to encode; None if none is ready.

        Raises:
            MediaError, RequestError: it cannot be decoded.
        """
        taken = self.prefetcher.take() if self.prefetcher is not None else None
        return None if taken is None else (self.pending_keys.popleft(), taken[1])

    def report_progress(self) -> None:
        """Tell the caller how many of the pictures have features."""
        progress, inputs = self.context.progress, self.inputs
        if progress is not None:
            frames = zip(self.feature_keys, inputs.encoder_inputs, strict=True)
            done = sum(encoder_input.num_pictures for key, encoder_input in frames if key in self.features)
            progress(done, inputs.num_pictures, "encoding pictures")

    def release(self) -> None:
        """Free what is needed only until the prompt is prefilled."""
        if self.prefetcher is not None:
            self.prefetcher.stop()
        else:  # nobody else will
            for medium in self.inputs.media:
                medium.close()
        self.prefetcher = self.prefill_cache = self.shared_prefix = None
        self.features, self.forward_arguments, self.pending_keys = {}, {}, deque()

    @property
    def num_prefilled(self) -> int:
        """Positions of the prompt whose keys and values are there."""
        return self.cached_tokens if self.prefill_cache is None else self.prefill_cache.lengths[0]

    def prefilled_side_cache(self, length: int) -> SideCache | None:
        """What the family keeps beside the KV cache for the first positions of the prompt, of those that are there."""
        if self.prefill_cache is not None:
            return self.prefill_cache.side_cache
        kept = None if self.shared_prefix is None else self.shared_prefix.side_cache
        return None if kept is None else kept.until(length)

    @property
    def prefilled(self) -> bool:
        """The whole prompt is in the KV cache; or the request has finished, and it never will be."""
        return self.finished or self.decode_batch is not None

    @property
    def num_generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_ids

    @property
    def num_scored(self) -> int:
        """Tokens of all answers that are scored."""
        return sum(map(len, self.answers))

    @property
    def max_positions(self) -> int:
        """Positions of the language sequence at most, prompt and answer."""
        return self.inputs.length + self.max_generated

    # ── as a `PrefixSource` ──

    @property
    def side_cache(self) -> SideCache | None:
        batch, row = self._decoding_row()
        return batch.side_cache_of(row)

    def key_values(self, length: int) -> Iterator[tuple[Tensor, Tensor]]:
        batch, row = self._decoding_row()
        return batch.key_values(row, length)

    def _decoding_row(self) -> tuple[DecodeBatch, int]:
        if self.decode_batch is None:
            raise RuntimeError("only a request that is decoding has a row to copy")
        return self.decode_batch, self.decode_batch.requests.index(self)

    # ── the answer ──

    def accept(self, token: int, ranked: RankedToken | None = None) -> None:
        """Append the next token of the answer; if it completes a piece of text, that is appended to `pieces`."""
        num_before = self.num_generated
        if not num_before:
            self.clock.end_phase("prefill")
        is_end = token in self.context.end_tokens
        self.token_ids.append(token)
        self._piece_ids.append(token)
        if ranked is not None:
            self._piece_logprobs.append(self._logprob(ranked))
        text = "" if is_end else self.text_stream.push(token)
        matcher = self.sampler.matcher
        if is_end or self.text_stream.stopped or (matcher is not None and matcher.complete):
            self._finish("stop", text)
        elif num_before + 1 >= self.max_generated:
            self._finish("length", text)
        elif text:
            self._emit(text)

    def end_with(self, evidence: Evidence) -> None:
        """Finish an answer with its evidence."""
        self.pieces.append(Piece("", choice=self.choice, evidence=evidence))
        self.finished = True

    @property
    def answer_ids(self) -> list[int]:
        """Tokens of the answer so far, without the one that ends it."""
        ids = self.token_ids[self.num_prompt_ids :]
        return ids[:-1] if ids and ids[-1] in self.context.end_tokens else ids

    def end_scored(self, scores: Sequence[float]) -> None:
        """Finish with the scores of `answers`."""
        self.clock.end_phase("prefill")
        self.scores = scores
        self._finish("stop", "")

    def _logprob(self, ranked: RankedToken) -> TokenLogprob:
        """With the texts of the tokens."""

        def spelt(token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
            data = self.context.token_bytes(token)
            return TokenLogprob(data.decode("utf-8", errors="replace"), tuple(data), logprob, token, top)

        return spelt(ranked.token, ranked.logprob, tuple(spelt(*each) for each in ranked.top))

    def fail(self, error: Exception) -> None:
        """Finish with an error, which is raised to the caller; lack of memory becomes a `RequestError`."""
        self.error = error
        if is_out_of_memory(error):
            self.error = RequestError(
                f"there is not enough memory for {counted(self.inputs.num_pictures, 'picture')} and "
                f"{counted(self.inputs.length, 'token')}; "
                "show fewer frames (--frames), shorten the conversation, or choose a smaller --dtype"
            )
        self.finished = True

    def _emit(self, text: str, reason: FinishReason | None = None, receipt: Receipt | None = None) -> None:
        logprobs = None if self.context.params.logprobs is None else tuple(self._piece_logprobs)
        self.pieces.append(Piece(text, tuple(self._piece_ids), reason, receipt, self.choice, logprobs))
        self._piece_ids, self._piece_logprobs = [], []

    def _finish(self, reason: FinishReason, text: str) -> None:
        self.clock.end_phase("decode")
        seconds, inputs = self.clock.seconds, self.inputs
        phases = ("media", "preprocess", "encode", "prefill")
        usage = Usage(
            inputs.length,
            self.num_generated + self.num_scored,
            inputs.num_pictures,
            inputs.visual_tokens,
            cached_tokens=self.cached_tokens,
        )
        context = self.context
        first_token = sum(seconds[phase] for phase in phases)
        timings = Timings(**seconds, first_token=first_token, load=context.load_seconds)
        receipt = Receipt(
            context.model,
            inputs.frames,
            usage,
            timings,
            context.settings,
            inputs.warnings,
            context.notes,
            digests=tuple(medium.digest for medium in inputs.media),
        )
        self._emit(text + self.text_stream.finish(), reason, receipt)
        self.answered = True
        self.finished = self.picture_positions is None  # last, because another thread may be waiting for it


def whole_answer(pieces: Iterable[Piece]) -> Answer:
    """An answer from all of its pieces."""
    pieces = list(pieces)
    (last,) = (piece for piece in pieces if piece.receipt is not None)
    assert last.finish_reason is not None
    assert last.receipt is not None
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    logprobs = None if last.logprobs is None else tuple(each for piece in pieces for each in piece.logprobs or ())
    made = {name: value for piece in pieces for name, value in (piece.made or {}).items()}
    text = "".join(piece.text for piece in pieces)
    evidence = next((piece.evidence for piece in pieces if piece.evidence is not None), None)
    return Answer(text, last.finish_reason, last.receipt, tokens, logprobs, made, evidence)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: Python's, or PyTorch's on a CPU, CUDA or MPS."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "out of memory")
    )
