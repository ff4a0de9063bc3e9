"""A conversation and its settings → requests for the scheduler: check, open media, run hooks, make the model inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from longview.engine.hooks import Hook, parse_hooks, run_before_model
from longview.engine.request import Clock, Request, RequestContext
from longview.engine.sampling import Sampler
from longview.engine.scheduler import best_effort
from longview.engine.token_bytes import TokenBytes
from longview.errors import RequestError
from longview.media import Medium, RelevanceQuery, distinctly_named
from longview.messages import Conversation, Message, Progress, parse_messages
from longview.models.base import EncoderInput, ModelInputs
from longview.models.sources import DEMOS
from longview.notebook import THUMBNAILS, spread
from longview.plugins import hooks_of
from longview.requests import RequestSettings
from longview.world.recognition import is_drawn, warning_of

if TYPE_CHECKING:
    from longview.engine.engine import Engine


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose messages and settings are well formed. Nothing has been opened for it."""

    messages: list[Message]
    settings: RequestSettings
    hooks: Sequence[Hook] = ()
    progress: Progress | None = None


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
    return ParsedRequest(messages, parsed, every, progress)


def prepare(engine: Engine, parsed: ParsedRequest) -> list[Request]:
    """Open the media, run the hooks and make the model inputs, in the caller's thread; one request for each answer.

    Raises:
        MediaError: a medium cannot be opened.
        RequestError: the prompt is longer than the context, or a grammar is malformed.
    """
    clock, settings = Clock(), parsed.settings
    parts = [part for message in parsed.messages for part in message.media]
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
    settings = parsed.settings
    messages, notes = run_before_model(parsed.hooks, parsed.messages, media, parsed.progress)
    clock.end_phase("media")
    inputs = engine.processor.prepare(messages, media)
    if inputs.length >= engine.context_length:
        raise RequestError(
            f"the conversation is {inputs.length} tokens long, and the model reads {engine.context_length}; "
            "shorten it, or show fewer frames (--frames)"
        )
    if engine.name in DEMOS:
        inputs = replace(inputs, warnings=(*inputs.warnings, *domain_warnings(engine.name, media)))
    inputs = replace(inputs, encoder_inputs=_keeping_thumbnails(inputs))
    chosen = {name: value for name, value in asdict(settings.media).items() if value is not None}
    context = RequestContext(
        model=engine.name,
        params=settings.params,
        settings={**asdict(settings.params), "media": chosen},
        decode=lambda ids: engine.processor.tokenizer.decode(ids, skip_special_tokens=True),
        token_bytes=TokenBytes(engine.processor.tokenizer),
        end_tokens=engine.processor.end_tokens,
        context_length=engine.context_length,
        progress=parsed.progress,
        load_seconds=engine.load_seconds,
        notes=notes,
    )
    clock.end_phase("preprocess")
    requests: list[Request] = []
    for choice in range(settings.n):
        matcher = engine.grammars.matcher(settings.params, engine.processor.tokenizer, context.end_tokens)
        sampler = Sampler(settings.params, matcher, context.end_tokens, choice)
        first = requests[0] if requests else None
        requests.append(Request(inputs, context, clock.copy(), sampler, choice, after=first))
    return requests


def _keeping_thumbnails(inputs: ModelInputs) -> list[EncoderInput]:
    """`inputs.encoder_inputs`, some of which keep a thumbnail of their frame when their pixels are made."""
    found = list(inputs.encoder_inputs)
    for place in spread(len(found)):
        medium = inputs.media[found[place].medium]
        key = medium.digest, medium.frames[found[place].frame].index
        found[place] = replace(found[place], pixels=partial(_pixels_and_thumbnail, found[place].pixels, key))
    return found


def _pixels_and_thumbnail(
    pixels: Callable[[Image.Image], Mapping[str, Tensor]], key: tuple[str, int], image: Image.Image
) -> Mapping[str, Tensor]:
    with best_effort("keeping a thumbnail"):
        THUMBNAILS.put(*key, image)
    return pixels(image)


def domain_warnings(model: str, media: Sequence[Medium]) -> list[str]:
    """A warning for each medium whose first frame is not of the world that embedded models know."""
    return [warning_of(model, medium.name) for medium in media if not is_drawn(next(iter(medium.read([0]))).image)]


def relevance_question(messages: Sequence[Message]) -> str:
    """All that the user has said so far: the question of the relevance query."""
    return "\n".join(message.text.strip() for message in messages if message.role == "user").strip()
