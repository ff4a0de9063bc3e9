"""load() a model; Engine asks it. Streaming is the primitive, a whole answer is a fold over it.

messages ── media ── processor ── Inputs ── model.look ── prefill ── sampler ─┬─ TextStream ── Piece, Piece, …
                                              (pictures → features)           └─ decode one token, again
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import is_flash_attn_2_available

from longview.engine.sampling import Sampler, SamplingParams
from longview.engine.text import TextStream
from longview.errors import RequestError
from longview.media import Limits, Look, MediaOptions, Progress, open_media
from longview.messages import (
    Answer,
    Conversation,
    FinishReason,
    Message,
    Piece,
    Receipt,
    Timings,
    Usage,
    parse_messages,
)
from longview.models import checkpoint
from longview.models.base import Inputs, Processor
from longview.models.families import family_of
from longview.models.quantization import quantization
from longview.models.similarity import Similarity, default_for
from longview.plugins.draw import with_trigger
from longview.plugins.ocr import read_into

Options = TypeVar("Options", MediaOptions, Limits)

FP32_ON_CPU_BYTES = 1 << 30
"""Checkpoints smaller than this run in fp32 on a CPU: exact, and no slower at that size."""


def load(
    name: str | PathLike = "demo",
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    similarity: str | PathLike | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    **options: Any,
) -> Engine:
    """Open a model and make it answer.

    Args:
        name: "demo" (embedded, works offline), a folder, a Hugging Face id, or `modelscope:` and an id there.
        device: "cpu", "cuda", "cuda:1", "mps"; default: the best there is. `device_map="auto"` spreads over several.
        dtype: "float32", "bfloat16", …; default: the checkpoint's, but fp32 for small models on a CPU.
        attn_implementation: "sdpa" (default), "eager", or "flash_attention_2" where that library is installed.
        similarity: The SigLIP checkpoint that `media={"select": "mdp3"}` chooses frames by, a folder or hub id;
            opened when needed. Default: embedded for the demo models, google/siglip-so400m-patch14-384 for others.
        load_8bit, load_4bit: Quantise the language model with bitsandbytes.
        options: Further arguments of the family's and of transformers' `from_pretrained`. MGM has `vision_tower`,
            `vision_tower_aux` (folders) and `model_base` (the language model of a first stage).

    Raises:
        CheckpointError: no such model, or its folder is incomplete, unsafe or of an unknown family.
        RequestError: no such device, dtype or attention here.
    """
    device = device or best_device()
    check_device(device)
    if dtype is not None:
        dtype = dtype_of(dtype)
    if attn_implementation is not None:
        check_attention(attn_implementation)
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
        options["quantization_config"] = quantization(family.Model, load_8bit, load_4bit, device, exact)
    model = family.Model.from_pretrained(folder, dtype=dtype, **options).eval()
    processor = family.Processor.from_pretrained(folder, config=model.config)
    return Engine(model, processor, str(name), str(similarity or default_for(str(name))))


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """
    Raises:
        RequestError: there is no such device here.
    """
    kind, _, index = device.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there or (index and not index.isdigit()):
        raise RequestError(f"unknown device {device!r}; expected cpu, cuda, cuda:N or mps")
    if not there[kind]:
        found = ", ".join(name for name, found in there.items() if found)
        raise RequestError(f"this machine or this build of PyTorch has no {kind} device; choose one of: {found}")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise RequestError(f"there is no device {device!r}; CUDA devices here: 0 … {torch.cuda.device_count() - 1}")


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """A floating-point type by name.

    Raises:
        RequestError: there is no such type.
    """
    found = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RequestError(f"unknown dtype {name!r}; expected float32, bfloat16 or float16")
    return found


def check_attention(name: str) -> None:
    """
    Raises:
        RequestError: there is no such implementation of attention, or its library is missing.
    """
    if name not in ("sdpa", "eager", "flash_attention_2"):
        raise RequestError(f"unknown attention {name!r}; expected sdpa, eager or flash_attention_2")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise RequestError("flash_attention_2 needs the flash-attn package and a GPU it supports; use sdpa here")


@dataclass
class _Clock:
    """Seconds between marks."""

    began: float
    last: float

    @classmethod
    def start(cls) -> _Clock:
        now = time.perf_counter()
        return cls(now, now)

    def lap(self) -> float:
        before, self.last = self.last, time.perf_counter()
        return self.last - before


class Engine:
    """A model, its processor, and the loop that makes them answer. `model` and `processor` are plain objects to use."""

    def __init__(
        self, model: Any, processor: Processor, name: str = "model", similarity: str | Similarity | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self._similarity = similarity or default_for(name)

    def answer(self, conversation: Conversation, **settings: Any) -> Answer:
        """A whole answer. Takes what `stream` takes."""
        text: list[str] = []
        tokens: list[int] = []
        for piece in self.stream(conversation, **settings):
            text.append(piece.text)
            tokens.extend(piece.tokens)
        assert piece.finish_reason is not None
        assert piece.receipt is not None
        return Answer("".join(text), piece.finish_reason, piece.receipt, tuple(tokens))

    def stream(
        self,
        conversation: Conversation,
        *,
        params: SamplingParams | Mapping[str, Any] | None = None,
        media: MediaOptions | Mapping[str, Any] | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        ocr: bool = False,
        gen: bool = False,
        **settings: Any,
    ) -> Iterator[Piece]:
        """Answer a question, piece by piece; the last piece carries the reason it ended and the receipt.

        Args:
            conversation: A question, or messages as in `longview.messages`.
            params: How tokens are chosen; or give its fields by name: `stream(…, temperature=0.7, max_tokens=100)`.
            media: Which frames of videos are looked at; default: as the model's authors do.
            limits: What media may cost; see `longview.media.Limits`.
            progress: Told about slow steps.
            ocr: Read the text in pictures into the question; see `longview.plugins.ocr`.
            gen: Ask for a description of a picture to be painted; see `longview.plugins.draw`.

        Raises:
            RequestError: malformed messages, or a setting out of range, at once.
            MediaError: a medium cannot be opened, when the first piece is asked for.
        """
        if params is not None and settings:
            raise RequestError("give either params=SamplingParams(…) or its fields by name, not both")
        if isinstance(params, Mapping):
            params = SamplingParams.of(**params)
        params = params or SamplingParams.of(**settings)
        chosen = by_name(MediaOptions, "media", media)
        allowed = by_name(Limits, "limits", limits)
        messages = parse_messages(conversation)
        if gen and not self.processor.draws:
            raise RequestError(f"{self.name} was not taught to describe pictures to be painted; gen is for MGM models")
        return self._stream(messages, params, chosen, allowed, progress, ocr, gen)

    @torch.inference_mode()
    def _stream(
        self,
        messages: list[Message],
        params: SamplingParams,
        options: MediaOptions,
        limits: Limits,
        progress: Progress | None,
        ocr: bool,
        gen: bool,
    ) -> Iterator[Piece]:
        clock = _Clock.start()
        parts = [part for message in messages for part in message.media]
        watched = options.by_content and any(part.type == "video" for part in parts)
        look = Look(asked(messages), self.similarity) if watched else None
        opened = open_media(parts, options, limits, progress, default=self.processor.default_media, look=look)
        messages, read = read_into(messages, opened, progress) if ocr else (messages, None)
        messages = with_trigger(messages) if gen else messages
        media_seconds = clock.lap()
        inputs = self.processor.prepare(messages, opened)
        room = self.context_length - inputs.length
        if room < 1:
            raise RequestError(
                f"the conversation is {inputs.length} tokens long, and the model reads {self.context_length}; "
                "shorten it, or look at fewer frames (--frames)"
            )
        preprocess_seconds = clock.lap()
        arguments = self.model.look(inputs.tensors, progress)
        encode_seconds = clock.lap()

        cache = DynamicCache(config=self.model.config)
        # a family may write pictures into the ids, as negative numbers; the sampler counts words
        history = [token for token in inputs.tensors["input_ids"][0].tolist() if token >= 0]
        prompt_words = len(history)
        sampler = Sampler(params)
        text = TextStream(self._decode, params.stop)
        reason: FinishReason | None = None
        pending: list[int] = []
        token = sampler(self._logits(cache, **arguments), history)
        prefill_seconds = clock.lap()
        first_token_seconds = clock.last - clock.began
        budget = min(params.max_tokens, room)
        while reason is None:
            ended = token in self.processor.end_tokens
            history.append(token)
            pending.append(token)
            new = "" if ended else text.push(token)
            if ended or text.stopped:
                reason = "stop"
            elif len(history) - prompt_words >= budget:
                reason = "length"
            elif new:
                yield Piece(new, tuple(pending))
                new, pending = "", []
            if reason is None:
                token = sampler(self._logits(cache, input_ids=torch.tensor([[token]], device=self.device)), history)
        rest = new + text.finish()
        yield Piece(
            rest,
            tuple(pending),
            reason,
            Receipt(
                model=self.name,
                frames=inputs.frames,
                usage=self._usage(inputs, len(history) - prompt_words),
                timings=Timings(
                    media=media_seconds,
                    preprocess=preprocess_seconds,
                    encode=encode_seconds,
                    prefill=prefill_seconds,
                    decode=clock.lap(),
                    first_token=first_token_seconds,
                ),
                settings={
                    **asdict(params),
                    "media": {name: value for name, value in asdict(options).items() if value is not None},
                },
                warnings=inputs.warnings,
                read=read,
            ),
        )

    @property
    def similarity(self) -> Similarity:
        """What frames are held against questions with; opened on first use."""
        if isinstance(self._similarity, str):
            self._similarity = Similarity.open(self._similarity, self.device)
        return self._similarity

    def _logits(self, cache: DynamicCache, **arguments: Any) -> Tensor:
        """One step: the logits (V,) after the last of the positions that `arguments` add to the sequence."""
        output = self.model(past_key_values=cache, use_cache=True, logits_to_keep=1, **arguments)
        return output.logits[0, -1]

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True)

    def _usage(self, inputs: Inputs, completion_tokens: int) -> Usage:
        return Usage(inputs.length, completion_tokens, inputs.num_pictures, inputs.visual_tokens)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        """Positions of the language sequence that the model was made to read."""
        return self.model.config.max_position_embeddings


def asked(messages: Sequence[Message]) -> str:
    """What the user has said so far, which frames are chosen by."""
    return "\n".join(message.text.strip() for message in messages if message.role == "user").strip()


def by_name(kind: type[Options], name: str, given: Any) -> Options:
    """Options as an instance of their class, from one, from a mapping of its fields, or from None.

    Raises:
        RequestError: it is none of these, or names a field that does not exist.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise RequestError(f"{name} is {given!r:.60}; give a {kind.__name__}, or its fields as a mapping")
    known = [field.name for field in fields(kind)]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise RequestError(f"unknown {name} option {unknown[0]!r}; there are {', '.join(known)}")
    return kind(**given)
