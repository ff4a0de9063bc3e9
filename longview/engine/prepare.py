"""A conversation and its settings → requests for the scheduler: check, open media, run hooks, make the model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from longview.engine.hooks import Hook, parse_hooks, run_before_model
from longview.engine.request import Clock, Request, RequestContext
from longview.engine.sampling import Sampler
from longview.engine.scheduler import best_effort
from longview.engine.score import Question, answer_tokens
from longview.engine.token_bytes import TokenBytes
from longview.errors import RequestError
from longview.media import Medium, RelevanceQuery, distinctly_named
from longview.messages import Conversation, Message, Progress, parse_messages
from longview.models.base import DEFAULT_FORMAT, EncoderInput, ModelInputs, SampleFormat
from longview.models.sources import DEMOS
from longview.notebook import THUMBNAILS, spread
from longview.plugins import hooks_of
from longview.requests import RequestSettings
from longview.world.recognition import is_drawn, warning_of

if TYPE_CHECKING:
    from longview.engine.engine import Engine


MAX_SCORED = 256
"""Tokens of an answer that is scored, at most."""
MAX_DRAWN = 4096
"""Media of which an engine remembers whether they are of the world that embedded models know."""


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose messages and settings are well formed. Nothing has been opened for it."""

    messages: list[Message]
    settings: RequestSettings
    hooks: Sequence[Hook] = ()
    progress: Progress | None = None
    questions: Sequence[Question] = ()
    """Questions whose answers are scored, one request for each; none: the conversation is answered."""
    sample_format: SampleFormat = DEFAULT_FORMAT
    """How pictures are cut, where that is not by the processor's settings and what the conversation shows."""


def parse_request(
    engine: Engine,
    conversation: Conversation,
    settings: dict[str, Any],
    hooks: Sequence[Hook],
    progress: Progress | None,
) -> ParsedRequest:
    """Check a request. Hooks run in this order: the engine's, the request's, those that its settings name.

    Raises:
        RequestError: malformed messages, an unknown setting, one out of range, or a hook that the model cannot serve.
    """
    parsed = RequestSettings.of(**settings)
    every = [*engine.hooks, *parse_hooks(hooks), *hooks_of(parsed)]
    messages = parse_messages(conversation)
    for hook in every:
        hook.check(engine)
    if parsed.max_partition is not None and "max_partition" not in engine.processor.crop_settings:
        raise RequestError(
            "max_partition is how many crops a picture is cut into, and this model does not ask; leave it out"
        )
    cut_as = SampleFormat(max_partition=parsed.max_partition)
    return ParsedRequest(messages, parsed, every, progress, sample_format=cut_as)


def prepare(engine: Engine, parsed: ParsedRequest) -> list[Request]:
    """Open the media, run the hooks and make the model inputs, in the caller's thread; one request for each answer.

    Raises:
        MediaError: a medium cannot be opened.
        RequestError: the prompt is longer than the context, or a grammar is malformed.
    """
    clock, settings = Clock(), parsed.settings
    conversation = [part for message in parsed.messages for part in message.media]
    parts = [*conversation, *(part for question in parsed.questions for part in question.media)]
    by_content = settings.media.by_content and any(part.type == "video" for part in parts)
    published = settings.media.relevance_query == "published"
    opened = engine.video_cache.open_media(
        parts,
        settings.media,
        settings.limits,
        parsed.progress,
        engine.processor.default_media,
        RelevanceQuery(relevance_question(parsed.messages), engine.similarity, published) if by_content else None,
        any(hook.reads_frames for hook in parsed.hooks),
    )
    media = distinctly_named(opened)
    try:
        return _make_requests(engine, parsed, clock, media)
    except BaseException:  # a refused request keeps no file open, although the video cache has its media
        for medium in media:
            medium.close()
        raise


def _make_requests(engine: Engine, parsed: ParsedRequest, clock: Clock, media: Sequence[Medium]) -> list[Request]:
    count, settings = sum(len(message.media) for message in parsed.messages), parsed.settings
    messages, notes = run_before_model(parsed.hooks, parsed.messages, media[:count], parsed.progress)
    clock.end_phase("media")
    requests: list[Request] = []
    answers: dict[str | tuple[int, ...], list[int]] = {}
    for question, own in _with_own_media(parsed.questions, media[count:]):
        prompt = messages if question is None else question.messages(messages)
        inputs = engine.processor.prepare(prompt, [*media[:count], *own], sample_format=parsed.sample_format)
        if inputs.length >= engine.context_length:
            raise RequestError(
                f"the conversation is {inputs.length} tokens long, and the model reads {engine.context_length}; "
                "shorten it, or show fewer frames (--frames)"
            )
        if engine.name in DEMOS and not requests:
            inputs = replace(inputs, warnings=(*inputs.warnings, *domain_warnings(engine, media)))
        inputs = replace(inputs, encoder_inputs=_keeping_thumbnails(inputs))
        context = _context(engine, parsed, notes)
        if not requests:
            clock.end_phase("preprocess")
        first = requests[0] if requests else None
        if question is not None:  # of what is scored the first prefix will do: it has all that they share
            tokens = _answers(engine, question, inputs, answers)
            sampler = Sampler(settings.params) if first is None else first.sampler  # nothing is sampled
            requests.append(Request(inputs, context, clock.copy(), sampler, len(requests), first, not first, tokens))
            continue
        positions = engine.processor.placeholder_positions(inputs.text_inputs)[..., 1] if settings.evidence else None
        for number, sampler in enumerate(_samplers(engine, parsed)):
            request = Request(inputs, context, clock.copy(), sampler, len(requests), first, picture_positions=positions)
            requests.append(request)
            first = requests[-1] if number == 0 else first
    return requests


def _answers(
    engine: Engine, question: Question, inputs: ModelInputs, known: dict[str | tuple[int, ...], list[int]]
) -> list[list[int]]:
    """The tokens of each answer to a question.

    Args:
        known: Those of other questions' answers, to which these are added.

    Raises:
        RequestError: an answer is too long.
    """
    for answer in question.answers:
        if answer not in known:
            known[answer] = answer_tokens(engine.processor, answer) if isinstance(answer, str) else list(answer)
        most = min(MAX_SCORED, engine.context_length - inputs.length)
        if len(known[answer]) > most:
            raise RequestError(
                f"the answer {answer!r:.60} is {len(known[answer])} tokens long, and at most {most} are scored here; "
                "shorten it, or the conversation"
            )
    return [known[answer] for answer in question.answers]


def _with_own_media(
    questions: Sequence[Question], media: Sequence[Medium]
) -> Iterator[tuple[Question | None, Sequence[Medium]]]:
    """Each question with the media that it shows itself; None where the conversation is all."""
    if not questions:
        yield None, ()
    for question in questions:
        count = len(question.media)
        yield question, media[:count]
        media = media[count:]


def _samplers(engine: Engine, parsed: ParsedRequest) -> Iterator[Sampler]:
    """One for each answer."""
    end_tokens = engine.processor.end_tokens
    for choice in range(parsed.settings.n):
        matcher = engine.grammars.matcher(parsed.settings.params, engine.processor.tokenizer, end_tokens)
        yield Sampler(parsed.settings.params, matcher, end_tokens, choice)


def _context(engine: Engine, parsed: ParsedRequest, notes: Mapping[str, Any]) -> RequestContext:
    settings = parsed.settings
    chosen = {name: value for name, value in asdict(settings.media).items() if value is not None}
    crops = {} if settings.max_partition is None else {"max_partition": settings.max_partition}
    return RequestContext(
        model=engine.name,
        params=settings.params,
        settings={**asdict(settings.params), "media": chosen, **crops},
        decode=lambda ids: engine.processor.tokenizer.decode(ids, skip_special_tokens=True),
        token_bytes=TokenBytes(engine.processor.tokenizer),
        end_tokens=engine.processor.end_tokens,
        context_length=engine.context_length,
        progress=parsed.progress,
        load_seconds=engine.load_seconds,
        notes=notes,
    )


def _keeping_thumbnails(inputs: ModelInputs) -> list[EncoderInput]:
    """`inputs.encoder_inputs`, some of which keep a thumbnail of their frame when their pixels are made."""
    encoder_inputs = list(inputs.encoder_inputs)
    for place in spread(len(encoder_inputs)):
        medium = inputs.media[encoder_inputs[place].medium]
        key = medium.digest, medium.frames[encoder_inputs[place].frame].index
        encoder_inputs[place] = replace(
            encoder_inputs[place], pixels=partial(_pixels_and_thumbnail, encoder_inputs[place].pixels, key)
        )
    return encoder_inputs


def _pixels_and_thumbnail(
    pixels: Callable[[Image.Image], Mapping[str, Tensor]], key: tuple[str, int], image: Image.Image
) -> Mapping[str, Tensor]:
    with best_effort("keeping a thumbnail"):
        THUMBNAILS.put(*key, image)
    return pixels(image)


def domain_warnings(engine: Engine, media: Sequence[Medium]) -> list[str]:
    """A warning for each medium whose first frame is not of the world that embedded models know."""
    warnings = []
    for medium in media:
        key = medium.digest, medium.frames[0].index
        if key not in engine.drawn:  # decoding a frame to look at it takes longer than to answer about it again
            if len(engine.drawn) >= MAX_DRAWN:
                engine.drawn.clear()
            engine.drawn[key] = is_drawn(next(iter(medium.read([0]))).image)
        if not engine.drawn[key]:
            warnings.append(warning_of(engine.name, medium.name))
    return warnings


def relevance_question(messages: Sequence[Message]) -> str:
    """All that the user has said so far: the question of the relevance query."""
    return "\n".join(message.text.strip() for message in messages if message.role == "user").strip()
