"""Processors as transformers' programs call them: `apply_chat_template`, `processor(text=…, images=…)`, `decode`.

    messages ── open_media ── Processor.prepare ── load_pixels or collate ── BatchFeature ── forward, generate

The engine's own path, so the tokens are the same. There is no Jinja template: it would write placeholders into a
string, in which a picture and a text that looks like one are the same. What `apply_chat_template` renders as a string
is a `Prompt`, which keeps its messages; these decide what the model gets, not the string's letters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from longview.errors import RequestError
from longview.media import Medium, open_media
from longview.messages import Message, Part, PartType, Source, ask
from longview.models.base import IGNORED, ModelInputs
from longview.requests import Limits, MediaOptions
from longview.settings import check_names, parse

OPTIONS = ("padding", "padding_side", "return_tensors", "add_special_tokens", "num_frames", "fps", "media", "limits")
"""Keywords of `ChatProcessor.__call__` and `apply_chat_template` beside those that have a place of their own."""
SETTINGS = "preprocessor_config.json"
SOURCES = ("source", "path", "url", "base64")


@dataclass(frozen=True)
class Chat:
    """A conversation, and how its tokens end."""

    messages: tuple[Message, ...]
    ending: Literal["answer", "closed", "open"] = "answer"
    """Before an answer that is to follow; behind the last message; or inside it, which the model is to continue."""

    @property
    def media(self) -> list[Part]:
        return [part for message in self.messages for part in message.media]

    def with_media(self, parts: Iterator[Part] | Sequence[Part]) -> Chat:
        """The same conversation with other parts in the places of its pictures and videos."""
        queue = iter(parts)
        messages = [
            replace(message, parts=tuple(part if part.type == "text" else next(queue) for part in message.parts))
            for message in self.messages
        ]
        return replace(self, messages=tuple(messages))


class Prompt(str):
    """A conversation as text, for people. It keeps its messages, by which a processor goes."""

    chat: Chat

    def __new__(cls, text: str, chat: Chat) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.chat = chat
        return prompt

    def __getnewargs__(self) -> tuple[str, Chat]:  # type: ignore[override]  # str's has one entry
        return str(self), self.chat


class ChatProcessor(ProcessorMixin):
    """Mixin of the families' processors: all of transformers' `ProcessorMixin` that follows from `prepare`."""

    chat_template = None
    tokenizer: Any
    default_media: MediaOptions
    prepare: Callable[..., ModelInputs]
    collate: Callable[..., BatchFeature]

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **options: Any
    ) -> BatchFeature:
        """Prompts or questions, with their pictures and videos → what `forward` and `generate` take.

        Args:
            text: One or a list. A `Prompt` of `apply_chat_template` is the conversation that it shows; any other string
                is the user's question, before which its media stand, as `longview.ask` puts them.
            images: Pictures in any form of `longview.image`: one, a list, or a list of lists, one for each text. They
                take the places of the pictures in prompts, in order; left out, a prompt brings its own.
            videos: The same for videos, as one list for all texts.
            options: As for `apply_chat_template`.

        Raises:
            RequestError: text and media do not match, or an option that is not known.
            MediaError: a picture or video cannot be opened.
        """
        if audio is not None or text is None:
            raise RequestError("a processor takes text, and images and videos beside it; give text, and no audio")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(each, str) for each in texts):
            raise RequestError(f"text is a string or a list of strings, not {text!r:.80}")
        pictures = _share(images, _nested(images), "image", texts)
        clips = _share(videos, False, "video", texts)
        chats = [_fill(each, *given) for each, *given in zip(texts, pictures, clips, strict=True)]
        return _batch(self, chats, options)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Messages, in our own or Hugging Face's spelling, or a list of conversations → a prompt, or tensors.

        Args:
            add_generation_prompt: End where the answer begins.
            continue_final_message: End inside the last message, the assistant's, for the model to continue.
            return_assistant_tokens_mask: Add `assistant_masks` (B, T), 1 for tokens of the assistant's messages.
            tokenize: Return tensors: with `return_dict` all that `forward` and `generate` take, else `input_ids`.
            options: `padding_side` of a batch: left before an answer, right otherwise; `num_frames` and `fps` of
                videos, or `media` and `limits`, as for `longview.Engine.stream`. Rows are padded, and tensors
                PyTorch's, whatever `padding` and `return_tensors` say.

        Returns:
            Without `tokenize` a `Prompt`, or a list of them, in which media are `<image>` and `<video>`.

        Raises:
            RequestError: malformed messages, a picture without a source, or an option that is not known.
            MediaError: a picture or video cannot be opened.
        """
        for name, given in (("chat_template", chat_template), ("tools", tools), ("documents", documents)):
            if given is not None:
                raise RequestError(f"{name} is not taken: the template of these models is fixed; leave it out")
        if add_generation_prompt and continue_final_message:
            raise RequestError("add_generation_prompt begins an answer, continue_final_message goes on; choose one")
        ending: Any = "answer" if add_generation_prompt else "open" if continue_final_message else "closed"
        several = _is_batch(conversation)
        chats = [_read(messages, ending) for messages in (conversation if several else [conversation])]
        options = {"return_tensors": return_tensors, **options, **(processor_kwargs or {})}
        _check(options)
        if not tokenize:
            prompts = [Prompt(_render(self, chat), chat) for chat in chats]
            return prompts if several else prompts[0]
        inputs = _batch(self, chats, options, return_assistant_tokens_mask)
        return inputs if return_dict else inputs["input_ids"]

    # ── tokens → text ──

    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """As the tokenizer's; placeholders of pictures, whose ids are negative, are left out."""
        return self.tokenizer.decode(_text_ids(token_ids), *args, **kwargs)

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[str]:
        """As `decode`, for several rows."""
        return [self.decode(row, *args, **kwargs) for row in sequences]

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Rows of ids → texts."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    # ── saving ──

    def to_dict(self) -> dict[str, Any]:
        """The settings beside the tokenizer, as preprocessor_config.json has them."""
        return {"processor_class": type(self).__name__}

    def save_pretrained(self, folder: str | PathLike, push_to_hub: bool = False, **_: Any) -> None:
        """Write tokenizer and settings beside the weights.

        Raises:
            RequestError: it should also be pushed to the hub, which is `push_to_hub`'s to do.
        """
        if push_to_hub:
            raise RequestError("save_pretrained writes a folder; call processor.push_to_hub(…) for the hub")
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / SETTINGS).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.tokenizer).__name__})"


# ── messages → tensors ───────────────────────────────────────────────────────────────────────────────────────────────


def _batch(
    processor: ChatProcessor, chats: Sequence[Chat], options: Mapping[str, Any], mask: bool = False
) -> BatchFeature:
    """Conversations as one batch, pixels included."""
    _check(options)
    media, limits = _media_options(options), parse(Limits, "limits", options.get("limits"))
    samples = [_sample(processor, chat, media, limits) for chat in chats]
    lengths = {sample.text_inputs["input_ids"].shape[1] for sample in samples}
    if options.get("padding") is False and len(lengths) > 1:
        raise RequestError(f"padding=False, but the conversations are {sorted(lengths)} tokens long; leave it out")
    side = options.get("padding_side") or ("right" if all(chat.ending == "closed" for chat in chats) else "left")
    batch = samples[0].load_pixels() if len(samples) == 1 else processor.collate(samples, side)
    labels = batch.pop("labels", None)
    if mask:
        if labels is None:
            raise RequestError(
                "return_assistant_tokens_mask is of whole conversations; leave add_generation_prompt out"
            )
        batch["assistant_masks"] = (labels != IGNORED).long()
    return batch


def _sample(processor: ChatProcessor, chat: Chat, options: MediaOptions, limits: Limits) -> ModelInputs:
    missing = next((part.type for part in chat.media if part.source is None), None)
    if missing:
        example = f'{{"type": "{missing}", "path": …}}'
        raise RequestError(f"the messages hold {missing} parts without a source; give {example}, or {missing}s=[…]")
    if options.by_content:
        raise RequestError(f"select {options.select!r} goes by the question, which is the engine's to do")
    return _lay_out(processor, chat, open_media(chat.media, options, limits, default=processor.default_media))


def _lay_out(processor: ChatProcessor, chat: Chat, media: Sequence[Medium]) -> ModelInputs:
    """The tokens of a conversation, ended as it says; with labels, unless an answer is to follow."""
    if chat.ending == "answer":
        return processor.prepare(chat.messages, media)
    whole = processor.prepare(chat.messages, media, train=True)
    if chat.ending == "closed":
        return whole
    *before, last = chat.messages
    if last.role != "assistant":
        raise RequestError(f"the last message is the {last.role}'s; continue_final_message goes on with an answer")
    ids = whole.text_inputs["input_ids"][0].tolist()
    # what stands behind the text is what stays, whatever two letters follow the text
    longer = [Message.of("assistant", last.text + letter) for letter in "01"]
    others = [processor.prepare([*before, each], media, train=True).text_inputs["input_ids"][0] for each in longer]
    cut = min(_common_suffix(ids, other.tolist()) for other in others)
    rows = {
        name: value[:, : len(ids) - cut] if isinstance(value, Tensor) else value
        for name, value in whole.text_inputs.items()
    }
    return replace(whole, text_inputs=BatchFeature(rows), length=whole.length - cut)


def _render(processor: ChatProcessor, chat: Chat) -> str:
    """A conversation as text, for people: media are `<image>` and `<video>`."""
    shown = chat.with_media([Part("text", text=f"<{part.type}>") for part in chat.media])
    ids = _lay_out(processor, shown, []).text_inputs["input_ids"][0].tolist()
    return processor.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


# ── what callers give ────────────────────────────────────────────────────────────────────────────────────────────────


def _is_batch(conversation: Any) -> bool:
    return isinstance(conversation, (list, tuple)) and bool(conversation) and isinstance(conversation[0], (list, tuple))


def _read(conversation: Any, ending: Literal["answer", "closed", "open"]) -> Chat:
    """One conversation as messages, in which pictures may lack their sources."""
    if isinstance(conversation, (str, Mapping)) or not isinstance(conversation, Sequence) or not conversation:
        raise RequestError(f"a conversation is a list of messages, not {conversation!r:.80}")
    messages = []
    for message in conversation:
        if isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple)):
            message = {**message, "content": [_placeholder(part) or part for part in message["content"]]}
        elif not isinstance(message, (Message, Mapping)):
            raise RequestError(f"a message is a mapping with role and content, not {message!r:.80}")
        messages.append(message if isinstance(message, Message) else Message.from_dict(message))
    return Chat(tuple(messages), ending)


def _placeholder(part: Any) -> Part | None:
    """A part that says only that a picture or video stands here."""
    if not isinstance(part, Mapping) or part.get("type") not in ("image", "video"):
        return None
    kind: PartType = part["type"]
    return Part(kind) if all(part.get(name) is None for name in (kind, *SOURCES)) else None


def _nested(images: Any) -> bool:
    return isinstance(images, (list, tuple)) and bool(images) and isinstance(images[0], (list, tuple))


def _share(given: Any, nested: bool, kind: PartType, texts: Sequence[str]) -> list[list[Source] | None]:
    """Which pictures, or videos, belong to each text; None for texts that bring their own.

    Raises:
        RequestError: they do not fit the texts.
    """
    if given is None:
        return [None] * len(texts)
    sources = list(given) if isinstance(given, (list, tuple)) else [given]
    if nested:
        if len(sources) != len(texts):
            raise RequestError(f"{kind}s holds {len(sources)} lists for {len(texts)} texts; give one for each")
        return [list(each) for each in sources]
    own = [sum(part.type == kind for part in each.chat.media) if isinstance(each, Prompt) else None for each in texts]
    if own == [None]:
        return [sources]
    counts = [1 if count is None else count for count in own]
    if sum(counts) != len(sources):
        raise RequestError(f"the texts have places for {sum(counts)} {kind}s, but {len(sources)} were given")
    queue = iter(sources)
    return [[next(queue) for _ in range(count)] for count in counts]


def _fill(text: str, images: list[Source] | None, videos: list[Source] | None) -> Chat:
    """A prompt with the pictures and videos given for it, or a question about them."""
    if not isinstance(text, Prompt):
        media = [Part("image", source=each) for each in images or []]
        media += [Part("video", source=each) for each in videos or []]
        return Chat((ask(text, *media),))
    queues = {"image": images, "video": videos}
    for kind, given in queues.items():
        places = sum(part.type == kind for part in text.chat.media)
        if given is not None and len(given) != places:
            raise RequestError(f"the prompt has places for {places} {kind}s, but {len(given)} were given")
    left = {kind: iter(given) for kind, given in queues.items() if given is not None}
    return text.chat.with_media(
        replace(part, source=next(left[part.type])) if part.type in left else part for part in text.chat.media
    )


def _check(options: Mapping[str, Any]) -> None:
    """
    Raises:
        RequestError: an option that is not known, or a value that these processors have no use for.
    """
    check_names(options, OPTIONS, "option of a processor")
    for name, values in {
        "padding": (None, True, False, "longest"),
        "padding_side": (None, "left", "right"),
        "return_tensors": (None, "auto", "pt"),
        "add_special_tokens": (None, False),  # the template writes them
    }.items():
        if options.get(name) not in values:
            expected = " or ".join(repr(value) for value in values if value is not None)
            raise RequestError(f"{name} is {options[name]!r:.40}; expected {expected}")


def _media_options(options: Mapping[str, Any]) -> MediaOptions:
    """`media`, with transformers' names for two of its fields."""
    media = parse(MediaOptions, "media", options.get("media"))
    named = {"frames": options.get("num_frames"), "fps": options.get("fps")}
    given = {name: value for name, value in named.items() if value is not None}
    return replace(media, **given) if given else media


def _common_suffix(ids: Sequence[int], others: Sequence[int]) -> int:
    pairs = zip(reversed(ids), reversed(others), strict=False)
    return next((count for count, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(others)))


def _text_ids(token_ids: Any) -> Any:
    """Ids, or rows of them, as lists without placeholders."""
    ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    if isinstance(ids, int):
        return ids
    if ids and not isinstance(ids[0], int):
        return [_text_ids(row) for row in ids]
    return [token for token in ids if token >= 0]
