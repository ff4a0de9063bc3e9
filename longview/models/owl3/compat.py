"""The calling conventions of mPLUG-Owl3's authors, in all their historic forms, as mixins of our model and processor.

    processor = model.init_processor(tokenizer)
    inputs = processor(messages, images=[…], videos=[…])          input_ids, pixel_values, media_offset
    model.generate(**inputs, tokenizer=tokenizer, decode_text=True)

In their strings, `<|image|>` and `<|video|>` in a user's text are media, and `<|im_end|>` and the like special tokens.
Where placeholders stand is `media_offset`; our own form of it is `placeholder_starts`, a list of indices for each row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, GenerationConfig, GenerationMixin

from longview.errors import RequestError
from longview.messages import ROLES
from longview.models import checkpoint
from longview.models.chat import ChatProcessor
from longview.models.owl3.visual_kv_cache import Owl3Cache, VisualKVCache
from longview.models.processing import Segment
from longview.models.sequence import check_counts, positions_of
from longview.models.transformers_seams import CACHE_NAME, takes_cache_by_either_name
from longview.wording import counted

PLACEHOLDER = "<|image|>"
_MARKERS = re.compile(r"(<\|image\|>|<\|video\|>)")  # `split` gives text and markers in turn

GREEDY = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
"""What `generate` starts from. Spelt out, or transformers fills in the sampling of generation_config.json."""


# ── where placeholders stand ─────────────────────────────────────────────────────────────────────────────────────────


def read_media_offset(media_offset: Tensor | Sequence) -> list[list[int]]:
    """Any historic form of `media_offset` → for each row, the indices at which its placeholders start.

    A list of B index lists or tensors (None or empty: no picture); one index tensor for a batch of one; or the counting
    tensor (B, T, 2) of 240728 and 241014: pictures of earlier rows, and those plus the pictures before the token.
    """
    if isinstance(media_offset, Tensor):
        if media_offset.dim() == 1:
            media_offset = [media_offset]
        elif media_offset.dim() == 2:
            media_offset = media_offset[None]
    rows: list[list[int]] = []
    for row in media_offset:
        if isinstance(row, Tensor) and row.dim() == 2:
            counts = (row[:, 1] - row[:, 0]).clamp(min=0).tolist()
            rows.append(
                [token - 1 for token in range(1, len(counts)) for _ in range(counts[token] - counts[token - 1])]
            )
        else:
            rows.append([] if row is None else [int(start) for start in row])
    return rows


def write_media_offset(placeholder_starts: list[int], length: int, release: str) -> Tensor | list[Tensor]:
    """One row's `media_offset` in its release's form: the starts (241101), or how many stand before each token."""
    starts = torch.tensor(placeholder_starts, dtype=torch.long)
    if release == "241101":
        return [starts]
    counts = torch.zeros(1, length, 2, dtype=torch.long)
    counts[0, :, 1] = (torch.arange(length)[:, None] > starts).sum(1) if placeholder_starts else -1_000_000
    return counts


def rows_of_starts(
    placeholder_starts: Sequence[Sequence[int]] | None, media_offset: Tensor | Sequence | None, batch_size: int
) -> list[list[int]]:
    """For each row, the ascending indices at which its placeholders start, given in our form, the historic one or none.

    Raises:
        RequestError: both are given, the number of rows differs, or the indices of a row do not ascend.
    """
    if placeholder_starts is not None and media_offset is not None:
        raise RequestError("placeholder_starts and media_offset say the same; give one of them")
    if placeholder_starts is not None:
        name, rows = "placeholder_starts", [list(row) for row in placeholder_starts]
    elif media_offset is not None:
        name, rows = "media_offset", read_media_offset(media_offset)
    else:
        return [[] for _ in range(batch_size)]
    if len(rows) != batch_size:
        raise RequestError(f"{name} describes {len(rows)} rows, but input_ids has {batch_size}")
    if any(starts != sorted(starts) for starts in rows):
        raise RequestError(f"the starts in {name} must ascend within each row")
    return rows


# ── the processor ────────────────────────────────────────────────────────────────────────────────────────────────────


class OfficialProcessorCalls(ChatProcessor):
    """Mixin: conversations as strings with markers, pictures and lists of frames beside them."""

    config: Any
    cut_enable: bool
    cut_picture: Callable[[Image.Image, bool], tuple[tuple[int, int] | None, list[Segment]]]
    video_segments: Callable[[int], list[Segment]]
    views: Callable[[Image.Image, tuple[int, int] | None], list[Tensor]]
    tokenize_turns: Callable[..., BatchFeature]

    def __call__(  # type: ignore[override]  # the authors' order of arguments
        self,
        messages: Sequence[Mapping[str, str]] | None = None,
        images: Any = None,
        videos: Any = None,
        cut_enable: bool | None = None,
        inference_mode: bool = True,
        text: Any = None,
        **options: Any,
    ) -> BatchFeature:
        """Strings with `<|image|>` and `<|video|>` → what `Owl3Model.forward` and `generate` take.

        Each marker takes the next picture or video of its kind; the messages are left as they are. The caller appends
        an assistant message to get the answer's header.

        Args:
            cut_enable: Cut pictures into crops. Default: as the processor is set. With a video, 240728 never cuts.
            inference_mode: Leave the last answer out, so that the model writes it. Off: `labels` are added.
            text: In the place of messages: transformers' form of the call, see `ChatProcessor`; `options` are of it.

        Raises:
            RequestError: markers and media differ in number, a role is unknown, or media are no list.
        """
        if messages is None:
            return super().__call__(images, text, videos, **options)
        for name, given in (("images", images), ("videos", videos)):
            if given is not None and not isinstance(given, (list, tuple)):
                raise RequestError(f"{name} is a list, one entry a marker; wrap the one you have: {name}=[…]")
        cuts = self.cut_enable if cut_enable is None else cut_enable
        if self.config.release == "240728" and videos:
            cuts = False
        images_left, videos_left = list(images or ()), list(videos or ())
        pixels: list[Tensor] = []
        turns: list[tuple[str, list[Segment]]] = []
        for message in messages:
            if message["role"] not in ROLES:
                raise RequestError(f"unknown role {message['role']!r:.80}; expected one of {', '.join(ROLES)}")
            segments: list[Segment] = []
            # only in a user's text are markers more than text
            pieces = _MARKERS.split(message["content"]) if message["role"] == "user" else [message["content"]]
            for number, piece in enumerate(pieces):
                if number % 2 == 0:
                    segments.append(piece)
                elif not (images_left if piece == PLACEHOLDER else videos_left):
                    counts = f"{len(images or ())} images and {len(videos or ())} videos"
                    raise RequestError(f"the messages hold more {piece} than were given: {counts}")
                elif piece == PLACEHOLDER:
                    picture = images_left.pop(0)
                    grid, placed = self.cut_picture(picture, cuts)
                    segments += placed
                    pixels += self.views(picture, grid)
                else:
                    frames = videos_left.pop(0)
                    segments += self.video_segments(len(frames))
                    pixels += [view for frame in frames for view in self.views(frame, None)]
            turns.append((message["role"], segments))
        if images_left or videos_left:
            raise RequestError(
                f"{len(images_left)} images and {len(videos_left)} videos have no marker in the messages; "
                f"write {PLACEHOLDER} or <|video|> where each belongs"
            )
        inputs = self.tokenize_turns(turns, train=not inference_mode, parse_specials=True, open_answer=False)
        (starts,) = inputs.pop("placeholder_starts")
        inputs["media_offset"] = write_media_offset(starts, inputs["input_ids"].shape[1], self.config.release)
        if pixels:
            inputs["pixel_values"] = torch.stack(pixels)
        return inputs


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


class OfficialModelCalls(GenerationMixin):
    """Mixin: `init_processor`, and `generate` with the authors' arguments and defaults."""

    config: Any
    device: torch.device
    name_or_path: str
    processor_class: Any
    encode: Callable[..., Tensor]
    picture_positions: Callable[..., list[list[int]]]

    def init_processor(self, tokenizer: Any) -> Any:
        """A processor with the settings of the folder that the model was opened from."""
        folder = checkpoint.resolve(self.name_or_path) if self.name_or_path else None
        cuts = () if folder is None else self.processor_class.cuts_of(folder)
        return self.processor_class(tokenizer, self.config, *cuts)

    @torch.no_grad()
    @takes_cache_by_either_name
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        media_offset: Tensor | Sequence | None = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        decode_text: bool = False,
        past_key_values: Any = None,
        generation_config: GenerationConfig | None = None,
        placeholder_starts: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with transformers' machinery: greedy, beams, sampling, streamers. Returns the *new* tokens only.

        As in the authors' code, decoding is greedy unless the call says otherwise, whatever generation_config.json
        holds. For a conversation of several turns, give each the same `past_key_values=Owl3Cache(config=model.config)`:
        `input_ids` is the whole conversation, and the pictures of its cached part are not encoded again.

        Args:
            tokenizer: Needed for `decode_text`; also names the end tokens.
            decode_text: Return a list of strings instead of ids.

        Raises:
            RequestError: pictures and placeholders differ in number, or the cache lacks pictures of its text.
        """
        if input_ids is None:
            raise RequestError("generate needs input_ids; make them with the processor")
        if decode_text and tokenizer is None:
            raise RequestError("decode_text=True needs tokenizer=…")
        if decode_text and kwargs.get("return_dict_in_generate"):
            raise RequestError("decode_text returns strings and return_dict_in_generate a dictionary; choose one")
        input_ids = input_ids.to(self.device)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        starts = rows_of_starts(placeholder_starts, media_offset, len(input_ids))
        check_counts(0 if pixel_values is None else len(pixel_values), sum(map(len, starts)))
        if generation_config is None:
            ends = end_tokens(tokenizer, self.config)
            generation_config = GenerationConfig(
                bos_token_id=self.config.bos_token_id,
                eos_token_id=ends or None,
                pad_token_id=ends[-1] if ends else 0,
                **GREEDY,
            )
            kwargs = generation_config.update(**kwargs)  # the rest is for the machinery
        output = super().generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            side_cache=self._side_cache(starts, pixel_values, attention_mask, past_key_values),
            tokenizer=tokenizer,
            **{CACHE_NAME: past_key_values},
            **kwargs,
        )
        if not isinstance(output, Tensor):
            output.sequences = output.sequences[:, input_ids.shape[1] :]
            return output
        output = output[:, input_ids.shape[1] :]
        if not decode_text:
            return output
        stops = set(end_tokens(tokenizer, self.config))
        return [tokenizer.decode(_until(row.tolist(), stops), skip_special_tokens=True).strip() for row in output]

    def _side_cache(
        self, starts: list[list[int]], pixel_values: Tensor | None, attention_mask: Tensor, past_key_values: Any
    ) -> VisualKVCache | None:
        """The pictures of a whole conversation: those of the cache, and the features of those behind its text."""
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        side_cache = past_key_values.side_cache if isinstance(past_key_values, Owl3Cache) else None
        cached = sum(start < past for row in starts for start in row)
        kept = 0 if side_cache is None else side_cache.num_pictures
        if cached != kept:
            raise RequestError(
                f"the text in past_key_values holds {counted(cached, 'placeholder')}, but "
                f"{counted(kept, 'picture')} came with it; give each turn the same Owl3Cache"
            )
        is_new = [start >= past for row in starts for start in row]
        if pixel_values is None or not any(is_new):
            return side_cache
        features = self.encode(pixel_values[torch.tensor(is_new)])
        new_starts = [[start for start in row if start >= past] for row in starts]
        positions = self.picture_positions(new_starts, positions_of(attention_mask), 0, attention_mask.shape[1])
        side_cache = side_cache or VisualKVCache(len(starts), self.config.patches_per_picture)
        side_cache.add(features, new_starts, positions)
        return side_cache


def end_tokens(tokenizer: Any, config: Any) -> list[int]:
    """The ids that end an answer: <|im_end|> and <|endoftext|> of the tokenizer, or the config's."""
    if tokenizer is not None:
        found = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
        return [token for token in found if token is not None]
    configured = config.eos_token_id
    return configured if isinstance(configured, list) else [] if configured is None else [configured]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
