"""Engine: streams answers. `answer`, `answers` and `batch` collect the pieces of whole ones.

    messages ── media ── hooks ── processor ── ModelInputs ── Scheduler.step ── TextStream ── Piece, Piece, …
    └────── the caller's thread (prepare.py) ───────────┘ └─ the threads that wait for pieces, in turn ─┘

The engine has no thread of its own: a thread that waits for a piece steps the scheduler, and each step serves every
request. While one thread steps, the others sleep; when its own piece is there, one of them takes over. Nothing runs
when no thread waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longview.engine.async_streams import PREPARE_THREADS, AsyncStreams
from longview.engine.compiled import StaticDecodeBatch, compile_layers
from longview.engine.decode_batch import DecodeBatch
from longview.engine.devices import memory_of
from longview.engine.features import FeatureCache, VideoCache, model_digest
from longview.engine.grammar import Grammars
from longview.engine.hooks import Hook, parse_hooks, run_after_answer
from longview.engine.prefix_cache import PrefixCache
from longview.engine.prepare import ParsedRequest, parse_request, prepare
from longview.engine.request import Request, whole_answer
from longview.engine.scheduler import Scheduler
from longview.engine.score import Question, Scores
from longview.errors import LongviewError, RequestError
from longview.messages import Answer, Conversation, Piece, Progress
from longview.models.base import Processor
from longview.models.similarity import Similarity, default_for
from longview.requests import Limits, MediaOptions, RequestSettings, SamplingParams
from longview.settings import setting, validate


def _amount(default: int | None, help: str, low: int = 0) -> Any:
    return setting(default, help, low=low, expected=f"a whole number from {low} up")


@dataclass(frozen=True)
class Budget:
    """What an engine may hold in memory. None: a share of what the weights leave.

    `feature_folder` is shared with other programs; nothing in it is lost when this one ends.

    Raises:
        RequestError: a value out of range.
    """

    requests: int = _amount(64, "Requests that run concurrently.", 1)
    kv_cache: int | None = _amount(None, "Bytes of keys and values of running requests; default: half of that memory.")
    features: int | None = _amount(None, "Bytes of the features of pictures; default: an eighth.")
    prefixes: int | None = _amount(None, "Bytes of keys and values of past conversations; default: an eighth.")
    feature_folder: Path | None = None
    share: float = setting(1.0, "Of the device's memory, where several engines use it.", low=0, above=True, high=1)

    def __post_init__(self) -> None:
        validate(self)


class Engine:
    """A model, its processor, and the scheduler of their requests. `model` and `processor` are plain objects to use.

    Any number of threads may make requests at once; these share each pass through the model.

    Args:
        similarity: The SigLIP checkpoint, or an open one, that frames are compared with questions by.
        hooks: Of every request; see `longview.engine.hooks`.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        name: str = "model",
        similarity: str | Similarity | None = None,
        budget: Budget | None = None,
        compile: bool = False,
        hooks: Sequence[Hook] = (),
    ) -> None:
        if compile:
            compile_layers(model)
        self.model = model
        self.processor = processor
        self.name = name
        self.load_seconds = 0.0
        """How long the model took to open, as its receipts say; set by whoever opened it."""
        self.hooks = parse_hooks(hooks)
        self._similarity = similarity or default_for(name)
        budget = budget or Budget()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        left = max(0, int(0.9 * budget.share * memory_of(str(model.device))) - weights)
        self.video_cache = VideoCache()
        folder = budget.feature_folder
        self.feature_cache = FeatureCache(_or(budget.features, left // 8), folder)
        self.prefix_cache = PrefixCache(_or(budget.prefixes, left // 8))
        self.grammars = Grammars()
        self.drawn: dict[tuple[str, int], bool] = {}
        """Whether a medium's first frame is of the world that embedded models know, by digest and index."""
        self.scheduler = Scheduler(
            model,
            self.feature_cache,
            self.prefix_cache,
            model_id=model_digest(model) if folder is not None else "",
            max_requests=budget.requests,
            max_bytes=_or(budget.kv_cache, left // 2),
            wake=self._wake,
            batch_class=StaticDecodeBatch if compile else DecodeBatch,
        )
        self._condition = threading.Condition()
        self._stepping = False  # some thread steps the scheduler
        self._num_sleeping = 0  # threads that wait for that one
        self._num_wakes = 0  # how often there was something new to do
        self._async_streams = AsyncStreams(self)

    def __repr__(self) -> str:
        model = self.model
        count = sum(parameter.numel() for parameter in model.parameters())
        dtype = str(model.dtype).removeprefix("torch.")
        return f"Engine({self.name}: {type(model).__name__}, {count:,} parameters, {dtype} on {model.device})"

    # ── requests ──

    def answer(self, conversation: Conversation, **settings: Any) -> Answer:
        """A whole answer. Takes what `stream` takes, but for n."""
        _check_one(settings)
        (answer,) = self.answers(conversation, **settings)
        return answer

    def answers(self, conversation: Conversation, **settings: Any) -> list[Answer]:
        """`n` whole answers to the same question. Takes what `stream` takes."""
        pieces: dict[int, list[Piece]] = {}
        for piece in self.stream(conversation, **settings):
            pieces.setdefault(piece.choice, []).append(piece)
        return [whole_answer(pieces[choice]) for choice in sorted(pieces)]

    def stream(
        self,
        conversation: Conversation,
        *,
        n: int = RequestSettings.n,
        evidence: bool = RequestSettings.evidence,
        max_partition: int | None = RequestSettings.max_partition,
        params: SamplingParams | Mapping[str, Any] | None = None,
        media: MediaOptions | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        hooks: Sequence[Hook] = (),
        **settings: Any,
    ) -> Generator[Piece]:
        """Answer a question, piece by piece; the last piece carries the finish reason and the receipt.

        What a hook makes of the answer comes in one piece more, as `Piece.made`. Closing the iterator cancels the
        request: by the next step it costs nothing and holds nothing.

        Args:
            conversation: A question, or messages as in `longview.messages`.
            n: Answers to the same question, each with random choices of its own (`seed`, `seed + 1`, …); their pieces
                come mixed, with `choice` saying whose they are.
            evidence: Say what each token of the answer gave its attention to, in one piece more, as `Piece.evidence`; a
                pass over the answer, when it has ended.
            max_partition: Crops of a picture, at most (Ovis2); default: as the model's processor is set.
            params: How tokens are chosen; or give its fields by name: `stream(…, temperature=0.7, max_tokens=100)`.
            media: Which frames of videos are used; default: as the model's authors do.
            limits: What media may cost and reach; see `longview.Limits`.
            progress: Called in slow steps, with (done, total, label).
            hooks: Of this request, besides the engine's; see `longview.engine.hooks`.
            settings: Fields of `SamplingParams`, in the place of `params`; and plugins by name, each True or False: the
                fields of `longview.requests.Plugins`.

        Raises:
            RequestError: malformed messages, or a setting out of range, at once.
            MediaError: a medium cannot be opened, when the first piece is asked for.
        """
        settings |= {"n": n, "evidence": evidence, "max_partition": max_partition}
        settings |= {"params": params, "media": media, "limits": limits}
        return self._stream(parse_request(self, conversation, settings, hooks, progress))

    def batch(
        self,
        conversations: Iterable[Conversation],
        *,
        progress: Progress | None = None,
        hooks: Sequence[Hook] = (),
        **settings: Any,
    ) -> Iterator[Answer | LongviewError]:
        """Answers to many questions, in their order; as many as fit run concurrently.

        Takes what `answer` takes. A question that fails gives its error in the place of its answer, and harms no other.
        """
        if settings.get("n", 1) != 1:
            raise RequestError("a batch has one answer a question; ask it n times, with different seeds")

        def parse(conversation: Conversation) -> ParsedRequest:
            return parse_request(self, conversation, settings, hooks, progress)

        parse("?")  # the settings are checked at once, the conversations as they come
        return self._batch(parse, iter(conversations))

    # ── requests from an event loop ──

    def astream(
        self,
        conversation: Conversation,
        *,
        progress: Progress | None = None,
        hooks: Sequence[Hook] = (),
        accepted: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> AsyncGenerator[Piece]:
        """As `stream`, for asyncio: `async for piece in engine.astream(…)`.

        Cancelling the task that waits for a piece, or closing the iterator (`contextlib.aclosing`), cancels the
        request. Media are opened, hooks run and `progress` is called in other threads.

        Args:
            accepted: Called when the media are open and the prompt fits, long before the first piece.
        """
        return self._async_streams.stream(parse_request(self, conversation, settings, hooks, progress), accepted)

    async def aanswer(self, conversation: Conversation, **settings: Any) -> Answer:
        """As `answer`, for asyncio. Cancelling the task cancels the request."""
        _check_one(settings)
        return whole_answer([piece async for piece in self.astream(conversation, **settings)])

    async def ascore(
        self,
        conversation: Conversation,
        questions: Sequence[Question],
        *,
        num_media: int | None = None,
        **settings: Any,
    ) -> list[Scores]:
        """The log-probabilities of given answers to many questions about one conversation, for asyncio.

        Takes what `astream` takes, but for how tokens are chosen. Cancelling the task cancels the requests.

        Args:
            num_media: Cut pictures into crops as in a conversation of so many media; default: as many as there are.

        Raises:
            RequestError: as `astream`, and for an answer that is too long.
        """
        parsed = parse_request(self, conversation, settings, (), None)
        cut_as = replace(parsed.sample_format, num_media=num_media)
        return await self._async_streams.score(replace(parsed, questions=tuple(questions), sample_format=cut_as))

    @property
    def similarity(self) -> Similarity:
        """What frames are compared with questions by; opened on first use."""
        if isinstance(self._similarity, str):
            self._similarity = Similarity.open(self._similarity, self.device)
        return self._similarity

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        """Positions of the language sequence that the model was made to read."""
        return self.model.config.max_position_embeddings

    # ── the thread that waits steps the scheduler ──

    def _stream(self, parsed: ParsedRequest) -> Generator[Piece]:
        requests = prepare(self, parsed)
        self.submit(requests)
        running = list(requests)
        pieces: dict[int, list[Piece]] = {request.choice: [] for request in requests}
        try:
            while running:
                self.wait_until(lambda: any(request.pieces or request.finished for request in running))
                for request in list(running):
                    ended = request.finished  # before its last piece is taken
                    while request.pieces:
                        pieces[request.choice].append(request.pieces.popleft())
                        yield pieces[request.choice][-1]
                    if request.error is not None:
                        raise request.error
                    if ended:
                        running.remove(request)
                        if parsed.hooks:
                            answer = whole_answer(pieces[request.choice])
                            made = run_after_answer(parsed.hooks, answer, parsed.progress)
                            if made:
                                yield Piece("", choice=request.choice, made=made)
        finally:
            self.cancel(requests)

    def _batch(
        self, parse: Callable[[Any], ParsedRequest], conversations: Iterator[Any]
    ) -> Iterator[Answer | LongviewError]:
        def start(conversation: Any) -> tuple[ParsedRequest, Request]:
            parsed = parse(conversation)
            (request,) = prepare(self, parsed)
            self.submit([request])
            return parsed, request

        pending: deque[Future[tuple[ParsedRequest, Request]]] = deque()
        pool = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="longview-batch")
        try:
            while True:
                while (
                    len(pending) < 2 * self.scheduler.max_requests and (given := next(conversations, pool)) is not pool
                ):
                    pending.append(pool.submit(start, given))
                    pending[-1].add_done_callback(lambda _: self._wake())
                if not pending:
                    return
                head = pending[0]
                self.wait_until(lambda: head.done() and (head.exception() is not None or head.result()[1].finished))  # noqa: B023
                pending.popleft()
                yield self._outcome(head)
        finally:
            for future in pending:
                future.cancel()
            pool.shutdown(wait=True)
            started = [future for future in pending if not future.cancelled() and not future.exception()]
            self.cancel([future.result()[1] for future in started])

    def _outcome(self, future: Future[tuple[ParsedRequest, Request]]) -> Answer | LongviewError:
        """The answer of a request of a batch that has ended, or its error if the caller can mend it."""
        try:
            parsed, request = future.result()
            if request.error is not None:
                raise request.error
            answer = whole_answer(request.pieces)
            return replace(answer, made=run_after_answer(parsed.hooks, answer, parsed.progress))
        except LongviewError as error:
            return error

    def submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.scheduler.add(request)
        self._wake()

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Step the scheduler, or sleep while another thread does, until `done()`."""
        with self._condition:
            while self._stepping and not done():
                self._num_sleeping += 1
                self._condition.wait()
                self._num_sleeping -= 1
            if done():
                return
            self._stepping = True
        try:
            while not done():
                wakes = self._num_wakes
                if not self.scheduler.step():
                    with self._condition:
                        while self._num_wakes == wakes:  # until pixels are ready, or a request comes
                            self._condition.wait()
                elif self._num_sleeping:
                    with self._condition:
                        self._condition.notify_all()
        except BaseException as error:
            reason = error if isinstance(error, Exception) else RequestError("the engine was interrupted; ask again")
            self.scheduler.abort(reason)
            raise
        finally:
            with self._condition:
                self._stepping = False
                self._condition.notify_all()

    def _wake(self) -> None:
        """There may be something new to do; from any thread."""
        with self._condition:
            self._num_wakes += 1
            self._condition.notify_all()

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests that have not ended: now, or, while another thread steps the scheduler, by the next step."""
        left = [request for request in requests if not request.finished]
        for request in left:
            request.cancelled = True
        if left:
            self.drop()
            self._wake()

    def drop(self) -> None:
        """Free what cancelled requests hold, unless another thread steps the scheduler, whose next step does."""
        with self._condition:
            if not self._stepping:
                self.scheduler.drop()


def _check_one(settings: Mapping[str, Any]) -> None:
    """
    Raises:
        RequestError: several answers are asked of a method that gives one.
    """
    if settings.get("n", 1) != 1:
        raise RequestError("answer gives one answer; use answers(…, n=…) for several")


def _or(given: int | None, default: int) -> int:
    return default if given is None else given
