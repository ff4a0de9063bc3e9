"""load() a model; Engine asks it. Streaming is the primitive; a whole answer, and a batch of them, are folds over it.

messages ── media ── processor ── ModelInputs ── Scheduler: look, read, answer ── TextStream ── Piece, Piece, …
└──────────── the asker's thread ────────┘ └─ whoever waits for a piece turns the wheel, for everybody ─┘

There is no thread behind the engine: those who wait for an answer take turns in stepping the scheduler, and each step
serves all of them. Who asks alone steps alone, and nothing runs when nobody waits.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from longview.engine.compiled import StaticDecodeBatch, compile_blocks
from longview.engine.devices import (
    FP32_ON_CPU_BYTES,
    best_device,
    check_attention,
    check_device,
    dtype_of,
    memory_of,
)
from longview.engine.features import FeatureCache, VideoCache, identity
from longview.engine.grammar import Grammars
from longview.engine.kv_cache import DecodeBatch
from longview.engine.prefix_cache import PrefixCache
from longview.engine.request import Clock, Request, Settings
from longview.engine.sampling import Sampler
from longview.engine.scheduler import Scheduler
from longview.errors import LongviewError, RequestError
from longview.media import Progress, RelevanceQuery
from longview.messages import Answer, Conversation, Message, Piece, parse_messages
from longview.models import adapters, checkpoint, quantization
from longview.models.base import Processor
from longview.models.families import family_of
from longview.models.similarity import Similarity, default_for
from longview.plugins.draw import with_trigger
from longview.plugins.ocr import read_into
from longview.requests import Limits, MediaOptions, RequestSettings, SamplingParams

PREPARERS = 4
"""Threads that open media for a batch."""


def load(
    name: str | PathLike | None = None,
    *,
    adapter: str | PathLike | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    similarity: str | PathLike | None = None,
    quantize: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    compile: bool = False,
    budget: Budget | None = None,
    **options: Any,
) -> Engine:
    """Open a model and make it answer.

    Args:
        name: "demo" (embedded, works offline), a folder, a Hugging Face id, or `modelscope:` and an id there; default:
            the model that the adapter was trained on, or "demo".
        adapter: Folder of a LoRA adapter. It is merged into the weights, unless these are quantised.
        device: "cpu", "cuda", "cuda:1", "mps"; default: the best there is. `device_map="auto"` spreads over several.
        dtype: "float32", "bfloat16", …; default: the checkpoint's, but fp32 for small models on a CPU.
        attn_implementation: "sdpa" (default), "eager", or "flash_attention_2" where that library is installed.
        similarity: The SigLIP checkpoint that `media={"select": "mdp3"}` chooses frames by, a folder or hub id;
            opened when needed. Default: embedded for the demo models, google/siglip-so400m-patch14-384 for others.
        quantize: "int8" or "int4": weights of the language model in so many bits; see `longview.models.quantization`.
        load_8bit, load_4bit: Quantise the language model with bitsandbytes.
        compile: Compile what makes tokens, which takes up to half a minute; see `longview.engine.compiled`.
        budget: What the engine may hold; see `Budget`.
        options: Further arguments of the family's and of transformers' `from_pretrained`. MGM has `vision_tower`,
            `vision_tower_aux` (folders) and `model_base` (the language model of a first stage).

    Raises:
        CheckpointError: no such model, or its folder is incomplete, unsafe or of an unknown family.
        RequestError: no such device, dtype, attention or number of bits here.
    """
    device = device or best_device()
    check_device(device)
    if dtype is not None:
        dtype = dtype_of(dtype)
    if attn_implementation is not None:
        check_attention(attn_implementation)
    if quantize is not None:
        if load_8bit or load_4bit:
            raise RequestError("quantize and load_8bit or load_4bit are two ways to the same; choose one")
        quantization.check(quantize, device, dtype)
        dtype = torch.bfloat16
        if device != "cpu":
            load_8bit, load_4bit = quantize == "int8", quantize == "int4"
    if name is None:
        name = "demo" if adapter is None else adapters.base_of(str(adapter))
    folder = checkpoint.resolve(str(name), revision=revision)
    family = family_of(folder)
    if dtype is None:
        small = 0 < checkpoint.size_on_disk(folder) < FP32_ON_CPU_BYTES
        dtype = "float32" if device == "cpu" and small else "auto"
    if "device_map" not in options:
        options["device_map"] = device
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    known = inspect.signature(family.Model.from_pretrained).parameters
    strange = [option for option in ("vision_tower", "vision_tower_aux", "model_base") if option in options]
    if any(option not in known for option in strange):
        raise RequestError(f"{name} holds all of its parts, so {strange[0]} has no meaning for it; leave it out")
    if load_8bit or load_4bit:
        exact = None if dtype == "auto" else dtype_of(dtype)
        wanted = quantization.bitsandbytes_config(family.Model, load_8bit, load_4bit, device, exact)
        options["quantization_config"] = wanted
    model = family.Model.from_pretrained(folder, dtype=dtype, **options).eval()
    if adapter is not None:
        adapters.open_into(model, str(adapter), merge=not (load_8bit or load_4bit))
    if quantize is not None and device == "cpu":
        quantization.quantize(model, quantize)
    processor = family.Processor.from_pretrained(folder, config=model.config)
    return Engine(model, processor, str(name), str(similarity or default_for(str(name))), budget, compile)


@dataclass(frozen=True)
class Budget:
    """What an engine may hold. None: a share of the memory that the weights leave."""

    requests: int = 64
    """Requests that are answered side by side."""
    states: int | None = None
    """Bytes of keys and values of the requests under way; who does not fit waits. Default: half of the memory left."""
    features: int | None = None
    """Bytes of features of pictures seen before. Default: an eighth."""
    prefixes: int | None = None
    """Bytes of keys and values of conversations that have ended. Default: an eighth."""
    feature_folder: Path | None = None
    """A folder in which features outlive the program, and are shared with others; default: none."""

    def __post_init__(self) -> None:
        for field in fields(self)[:4]:
            value = getattr(self, field.name)
            least = 1 if field.name == "requests" else 0
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise RequestError(f"{field.name} is {value!r:.40}; give a whole number from {least} up")


class Engine:
    """A model, its processor, and the loop that makes them answer. `model` and `processor` are plain objects to use.

    Any number of threads may ask at once; their requests share each pass through the model.
    """

    def __init__(
        self,
        model: Any,
        processor: Processor,
        name: str = "model",
        similarity: str | Similarity | None = None,
        budget: Budget | None = None,
        compile: bool = False,
    ) -> None:
        if compile:
            compile_blocks(model)
        self.model = model
        self.processor = processor
        self.name = name
        self._similarity = similarity or default_for(name)
        budget = budget or Budget()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        left = max(0, int(0.9 * memory_of(str(model.device))) - weights)
        self.videos = VideoCache()
        folder = budget.feature_folder
        self.features = FeatureCache(_or(budget.features, left // 8), folder)
        self.prefixes = PrefixCache(_or(budget.prefixes, left // 8))
        self.scheduler = Scheduler(
            model,
            self.features,
            self.prefixes,
            model_id=identity(model) if folder is not None else "",
            most=budget.requests,
            memory=_or(budget.states, left // 2),
            wake=self._wake,
            decode_batch=StaticDecodeBatch if compile else DecodeBatch,
        )
        self._grammars = Grammars()
        self._turn = threading.Condition()
        self._driven = False  # somebody is stepping the scheduler
        self._sleepers = 0  # who waits for that somebody
        self._calls = 0  # how often there was something new to do

    # ── asking ──

    def answer(self, conversation: Conversation, **settings: Any) -> Answer:
        """A whole answer. Takes what `stream` takes, but for n."""
        if settings.get("n", 1) != 1:
            raise RequestError("answer gives one answer; use answers(…, n=…) for several")
        (answer,) = self.answers(conversation, **settings)
        return answer

    def answers(self, conversation: Conversation, **settings: Any) -> list[Answer]:
        """`n` whole answers to the same question. Takes what `stream` takes."""
        pieces: dict[int, list[Piece]] = {}
        for piece in self.stream(conversation, **settings):
            pieces.setdefault(piece.choice, []).append(piece)
        return [_whole(pieces[choice]) for choice in sorted(pieces)]

    def stream(
        self,
        conversation: Conversation,
        *,
        n: int = 1,
        params: SamplingParams | Mapping[str, Any] | None = None,
        media: MediaOptions | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        ocr: bool = False,
        gen: bool = False,
        **settings: Any,
    ) -> Generator[Piece]:
        """Answer a question, piece by piece; the last piece carries the reason it ended and the receipt.

        Closing the iterator cancels the request: by the next step it costs nothing and holds nothing.

        Args:
            conversation: A question, or messages as in `longview.messages`.
            n: Answers to the same question, each with random choices of its own (`seed`, `seed + 1`, …); their pieces
                come mixed, with `choice` saying whose they are.
            params: How tokens are chosen; or give its fields by name: `stream(…, temperature=0.7, max_tokens=100)`.
            media: Which frames of videos are looked at; default: as the model's authors do.
            limits: What media may cost; see `longview.Limits`.
            progress: Told about slow steps.
            ocr: Read the text in pictures into the question; see `longview.plugins.ocr`.
            gen: Ask for a description of a picture to be painted; see `longview.plugins.draw`.

        Raises:
            RequestError: malformed messages, or a setting out of range, at once.
            MediaError: a medium cannot be opened, when the first piece is asked for.
        """
        question = self._question(conversation, n, params, media, limits, progress, ocr, gen, settings)
        return self._stream(question)

    def batch(self, conversations: Iterable[Conversation], **settings: Any) -> Iterator[Answer | LongviewError]:
        """Answers to many questions, in their order; as many as fit are answered side by side.

        Takes what `answer` takes. A question that fails gives its error in the place of its answer, and harms no other.
        """
        if settings.pop("n", 1) != 1:
            raise RequestError("a batch has one answer a question; ask it n times, with different seeds")
        names = ("params", "media", "limits", "progress", "ocr", "gen")
        given = [settings.pop(name, None) for name in names]

        def question_of(conversation: Conversation) -> _Question:
            return self._question(conversation, 1, *given, settings)  # type: ignore[call-arg]

        question_of("?")  # the settings are checked at once, the conversations as they come
        return self._batch(question_of, iter(conversations))

    @property
    def similarity(self) -> Similarity:
        """What frames are held against questions with; opened on first use."""
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

    # ── a question becomes requests, in the asker's thread ──

    def _question(
        self,
        conversation: Any,
        n: int,
        params: Any,
        media: Any,
        limits: Any,
        progress: Any,
        ocr: Any,
        gen: Any,
        settings: Any,
    ) -> _Question:
        given = {"n": n, "params": params, "media": media, "limits": limits, "ocr": bool(ocr), "gen": bool(gen)}
        asked = RequestSettings.of(**given, **settings)
        messages = parse_messages(conversation)
        if asked.gen and not self.processor.draws:
            raise RequestError(f"{self.name} was not taught to describe pictures to be painted; gen is for MGM models")
        return _Question(messages, asked.n, asked.params, asked.media, asked.limits, progress, asked.ocr, asked.gen)

    def _prepare(self, question: _Question) -> list[Request]:
        """Open the media and write the prompt: everything before the model."""
        clock = Clock()
        parts = [part for message in question.messages for part in message.media]
        watched = question.media.by_content and any(part.type == "video" for part in parts)
        relevance_query = RelevanceQuery(asked(question.messages), self.similarity) if watched else None
        default = self.processor.default_media
        opened = self.videos.open_media(
            parts, question.media, question.limits, question.progress, default, relevance_query, question.ocr
        )
        messages, read = question.messages, None
        if question.ocr:
            messages, read = read_into(messages, opened, question.progress)
        messages = with_trigger(messages) if question.gen else messages
        clock.lap("media")
        inputs = self.processor.prepare(messages, opened)
        if inputs.length >= self.context_length:
            raise RequestError(
                f"the conversation is {inputs.length} tokens long, and the model reads {self.context_length}; "
                "shorten it, or look at fewer frames (--frames)"
            )
        params = question.params
        chosen = {name: value for name, value in asdict(question.media).items() if value is not None}
        settings = Settings(
            model=self.name,
            params=params,
            shown={**asdict(params), "media": chosen},
            decode=lambda ids: self.processor.tokenizer.decode(ids, skip_special_tokens=True),
            end_tokens=self.processor.end_tokens,
            context_length=self.context_length,
            progress=question.progress,
            read=read,
        )
        clock.lap("preprocess")
        requests: list[Request] = []
        for choice in range(question.n):
            matcher = self._grammars.matcher(params, self.processor.tokenizer, settings.end_tokens)
            sampler = Sampler(params, matcher, settings.end_tokens, choice)
            first = requests[0] if requests else None
            requests.append(Request(inputs, settings, clock.again(), sampler, choice, after=first))
        return requests

    def _submit(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.scheduler.add(request)
        self._wake()

    # ── whoever waits turns the wheel ──

    def _stream(self, question: _Question) -> Generator[Piece]:
        requests = self._prepare(question)
        self._submit(requests)
        running = list(requests)
        try:
            while running:
                self._wait_until(lambda: any(request.pieces or request.ended for request in running))
                for request in list(running):
                    ended = request.ended  # before its last piece is taken
                    while request.pieces:
                        yield request.pieces.popleft()
                    if request.error is not None:
                        raise request.error
                    if ended:
                        running.remove(request)
        finally:
            self._cancel(requests)

    def _batch(self, question_of: Callable[[Any], _Question], asked: Iterator[Any]) -> Iterator[Answer | LongviewError]:
        def start(conversation: Any) -> Request:
            (request,) = self._prepare(question_of(conversation))
            self._submit([request])
            return request

        pending: deque[Future[Request]] = deque()
        pool = ThreadPoolExecutor(PREPARERS, thread_name_prefix="longview-batch")
        try:
            while True:
                while len(pending) < 2 * self.scheduler.most and (conversation := next(asked, pool)) is not pool:
                    pending.append(pool.submit(start, conversation))
                    pending[-1].add_done_callback(lambda _: self._wake())
                if not pending:
                    return
                head = pending[0]
                self._wait_until(lambda: head.done() and (head.exception() is not None or head.result().ended))  # noqa: B023
                pending.popleft()
                error = head.exception() or head.result().error
                if error is None:
                    yield _whole(head.result().pieces)
                elif isinstance(error, LongviewError):
                    yield error
                else:
                    raise error
        finally:
            for future in pending:
                future.cancel()
            pool.shutdown(wait=True)
            self._cancel([future.result() for future in pending if not future.cancelled() and not future.exception()])

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Step the scheduler, or let another thread do it, until something is the case."""
        with self._turn:
            while self._driven and not done():
                self._sleepers += 1
                self._turn.wait()
                self._sleepers -= 1
            if done():
                return
            self._driven = True
        try:
            while not done():
                calls = self._calls
                if not self.scheduler.step():
                    with self._turn:
                        while self._calls == calls:  # until a picture is ready to be looked at
                            self._turn.wait()
                elif self._sleepers:
                    with self._turn:
                        self._turn.notify_all()
        except BaseException as error:
            broken = error if isinstance(error, Exception) else RequestError("the engine was interrupted; ask again")
            self.scheduler.abandon(broken)
            raise
        finally:
            with self._turn:
                self._driven = False
                self._turn.notify_all()

    def _wake(self) -> None:
        """There may be something new to do; from any thread."""
        with self._turn:
            self._calls += 1
            self._turn.notify_all()

    def _cancel(self, requests: Sequence[Request]) -> None:
        """Requests that have not ended do so now, or, while another thread is stepping, by the next step."""
        left = [request for request in requests if not request.ended]
        for request in left:
            request.cancelled = True
        if not left:
            return
        with self._turn:
            if not self._driven:
                self.scheduler.drop()
        self._wake()


@dataclass(frozen=True)
class _Question:
    """A request as it was asked, checked."""

    messages: list[Message]
    n: int
    params: SamplingParams
    media: MediaOptions
    limits: Limits
    progress: Progress | None
    ocr: bool
    gen: bool


def _whole(pieces: Iterable[Piece]) -> Answer:
    """An answer from all of its pieces."""
    pieces = list(pieces)
    last = pieces[-1]
    assert last.finish_reason is not None
    assert last.receipt is not None
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    logprobs = None if last.logprobs is None else tuple(each for piece in pieces for each in piece.logprobs or ())
    return Answer("".join(piece.text for piece in pieces), last.finish_reason, last.receipt, tokens, logprobs)


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


def asked(messages: Sequence[Message]) -> str:
    """What the user has said so far, which frames are chosen by."""
    return "\n".join(message.text.strip() for message in messages if message.role == "user").strip()
