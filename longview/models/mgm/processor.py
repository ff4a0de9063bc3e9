"""Messages and frames → what `MGMModel` takes: the template of its language model, and pixels in one size.

A picture is one placeholder among the ids, as is a frame of a video; the model expands it. Pixels are in the size of
the high-resolution tower: the model makes the small views of them. Structure decides: only a media part becomes a
picture, and only the template makes special tokens, whatever a user's text contains. The authors' strings, in which
`<image>` is a picture, are in `compat.py`; both get their ids here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from longview.answer_evidence import Box, PatchGrid
from longview.errors import RequestError
from longview.media import Medium
from longview.messages import Message
from longview.models import checkpoint
from longview.models.base import DEFAULT_FORMAT, IGNORED, EncoderInput, ModelInputs, SampleFormat
from longview.models.llama_tokenizer import SPACE, prefixes_once
from longview.models.mgm import convert
from longview.models.mgm.compat import OfficialProcessorCalls
from longview.models.mgm.config import MGMConfig
from longview.models.mgm.conversation import TEMPLATES, Span, Template, Turn, render, template_of, unasked
from longview.models.mgm.towers import MEAN, STD
from longview.models.processing import Segment, check_media, frames_used, join_texts, pad_rows, special_ids
from longview.models.sequence import expanded_positions
from longview.models.tiling import fit_square, resize
from longview.requests import MediaOptions

PLACEHOLDER = -200
"""Stands in `input_ids` for one picture."""
_MARKER = re.compile(r"</?s>|<\|?\w+\|?>")
"""What the templates write as one token."""
_NUMBERED = re.compile(r"((?:Image|Video) \d+:) $")
_BORDER = tuple(int(255 * mean) for mean in MEAN)


class MGMProcessor(OfficialProcessorCalls):
    """Tokenizer, chat format and picture processing of MGM.

    Args:
        template: A name of `conversation.TEMPLATES`; default: the one whose special tokens the tokenizer has.
    """

    draws = True
    crop_settings = ()

    def __init__(self, tokenizer: Any, config: MGMConfig, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.default_media = _default_media(config)
        added = tokenizer.added_tokens_decoder
        name = template or template_of([token.content for token in added.values()], config.language)
        if name not in TEMPLATES:
            raise RequestError(f"unknown template {name!r}; there are {', '.join(TEMPLATES)}")
        self.template: Template = TEMPLATES[name]
        ends = _MARKER.findall(self.template.end)
        self._ends = list(special_ids(tokenizer, ends).values())
        markers = _MARKER.findall(self.template.text)
        control = [token for token in added.values() if token.special or token.content in markers]
        self._specials = {token.content: tokenizer.convert_tokens_to_ids(token.content) for token in control}
        # the tokenizer finds them in any text
        self._not_special = {token.content for token in control if not token.special}
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._prefixes_once = prefixes_once(tokenizer)
        # where the tokenizer itself would leave out the space that begins a text
        spaced = [" ", SPACE, *(token.content for token in added.values() if not token.special)]
        self._needs_space = re.compile("|".join(map(re.escape, spaced)))
        begin = list(tokenizer("").input_ids)
        self._begin = begin[:1] if begin and begin[0] == tokenizer.bos_token_id else []

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """See `base.Processor.media_defaults`."""
        return _default_media(checkpoint.open_config(MGMConfig, folder))

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> MGMProcessor:
        """Open the tokenizer of a checkpoint folder or hub id."""
        folder = checkpoint.resolve(str(name), revision=kwargs.get("revision"))
        config = kwargs.get("config")
        if config is None:
            config = checkpoint.open_config(MGMConfig, folder)
            convert.complete(config, checkpoint.tensor_shapes(folder), folder)
        tokenizer = checkpoint.open_tokenizer(Path(config.tokenizer_folder) if config.tokenizer_folder else folder)
        return cls(tokenizer, config, kwargs.get("template"))

    @property
    def end_tokens(self) -> list[int]:
        return [token for token in dict.fromkeys([*self._ends, self.tokenizer.eos_token_id]) if token is not None]

    # ── messages → ModelInputs ──

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        train: bool = False,
        sample_format: SampleFormat = DEFAULT_FORMAT,
    ) -> ModelInputs:
        """One conversation → ModelInputs. See `base.Processor.prepare`."""
        check_media(messages, media, "MGM")
        encoder_inputs: list[EncoderInput] = []
        turns: list[Turn] = []
        queue = enumerate(media)
        settings = (self.config.image_size_aux, self.config.image_aspect_ratio)
        for message in messages:
            segments: list[Segment] = []
            for part in message.parts:
                if part.type == "text":
                    segments.append(part.text)
                    continue
                which, medium = next(queue)
                if segments and segments[-1]:  # "Image 2:<image>", as the authors number them
                    segments[-1] = _NUMBERED.sub(r"\1", segments[-1])
                for number in range(len(medium.frames)):
                    segments += ["\n"] * (number > 0) + [None]
                    encoder_inputs.append(
                        EncoderInput(which, number, 1, settings, lambda image: self.pixel_inputs([image]), self.grids)
                    )
            turns.append((message.role, segments))
        warnings = [warning for medium in media for warning in medium.warnings]
        if unasked([turn for turn in turns if turn[0] != "system"]):
            warnings.append("the conversation begins with an answer to nothing, which MGM is not shown; it is left out")
        if not train:
            turns.append(("assistant", None))
        template = TEMPLATES["plain"] if sample_format.plain else self.template
        ids, labels = self._tokens(render(template, turns, learn=train))
        text_inputs: dict[str, Any] = {
            "input_ids": torch.tensor([ids], dtype=torch.long),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if train:
            text_inputs["labels"] = torch.tensor([labels], dtype=torch.long)
        return ModelInputs(
            BatchFeature(text_inputs),
            length=len(ids) + len(encoder_inputs) * (self.config.patches_per_picture - 1),
            frames=frames_used(media, [1] * len(media)),
            num_pictures=len(encoder_inputs),
            visual_tokens=len(encoder_inputs) * self.config.patches_per_picture,
            warnings=(*warnings, *_detail_warnings(messages)),
            media=media,
            encoder_inputs=encoder_inputs,
        )

    def collate(self, samples: Sequence[ModelInputs], padding_side: str = "right") -> BatchFeature:
        """Pad rows to the longest; the model pads again, on the same side, where pictures make them longer."""
        pad = self.tokenizer.pad_token_id
        batch, _ = pad_rows(samples, pad if pad is not None else self.end_tokens[-1], padding_side)
        if padding_side == "left":
            batch["left_padding"] = True
        return BatchFeature(batch)

    # ── pictures ──

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """See `base.Processor.pixel_inputs`."""
        return {"pixel_values": torch.stack([self.pixels(image) for image in images])}

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """The visual tokens. See `base.Processor.placeholder_positions`."""
        return expanded_positions(batch["input_ids"] == PLACEHOLDER, self.config.patches_per_picture)

    def grids(self, width: int, height: int) -> list[PatchGrid]:
        """Where the patches of the views are on a picture of this size: the whole of it first, then its quarters."""
        left, upper, right, lower = self._square(width, height)
        tower, grid = self.config.vision_config, self.config.image_grid
        patches = tower.image_size // tower.patch_size
        part = patches * tower.patch_size / tower.image_size
        views = [(1, 0, 0)] if grid > 1 else []  # how many along a side, and which row and column
        views += [(grid, row, column) for row in range(grid) for column in range(grid)]
        found = []
        for count, row, column in views:
            wide, high = (right - left) / count, (lower - upper) / count
            x, y = left + column * wide, upper + row * high
            shown = (max(x, 0), max(y, 0), min(x + wide, width), min(y + high, height))
            found.append(PatchGrid(x, y, x + part * wide, y + part * high, patches, patches, shown))
        return found

    def _square(self, width: int, height: int) -> Box:
        """What `pixels` shows of a picture of this size, in its pixels: with a border around it, or its middle."""
        longer, shorter, side = max(width, height), min(width, height), self.config.image_size_aux
        if self.config.image_aspect_ratio == "pad":
            left, upper = (longer - width) // 2, (longer - height) // 2
            return -left, -upper, longer - left, longer - upper
        wide, high = int(side * width / shorter), int(side * height / shorter)
        x, y = width / wide, height / high
        left, upper = (wide - side) // 2, (high - side) // 2
        return left * x, upper * y, (left + side) * x, (upper + side) * y

    def pixels(self, image: Image.Image) -> Tensor:
        """One picture → (3, S, S): made square by a border or by cutting its middle out, resized and normalised."""
        image, side = image.convert("RGB"), self.config.image_size_aux
        if self.config.image_aspect_ratio == "pad":
            image = fit_square(image, side, Image.Resampling.BICUBIC, _BORDER)
        else:
            shorter = min(image.size)
            size = (int(side * image.width / shorter), int(side * image.height / shorter))
            left, upper = (size[0] - side) // 2, (size[1] - side) // 2
            image = resize(image, size, Image.Resampling.BICUBIC, (left, upper, left + side, upper + side))
        pixels: Any = (np.asarray(image) * (1 / 255)).astype(np.float32)
        pixels = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    # ── text ──

    def _tokens(self, spans: Sequence[Span | None]) -> tuple[list[int], list[int]]:
        """Pieces → ids and labels."""
        ids, labels = [*self._begin], [IGNORED] * len(self._begin)
        for texts in join_texts(spans):
            if texts is None:
                ids.append(PLACEHOLDER)
                labels.append(IGNORED)
                continue
            for token, learned in self._encode(texts):
                ids.append(token)
                labels.append(token if learned else IGNORED)
        return ids, labels

    def _encode(self, texts: Sequence[Span]) -> Iterator[tuple[int, bool]]:
        """Texts, concatenated → each token, and whether it is learned: whether its first character is.

        One that begins in the header of an answer is none that the model could write, and the authors mask it.
        Where a message's text looks like a special token, only the template's are.
        """
        text = "".join(span.text for span in texts)
        learned: list[bool] = []
        trusted: list[bool] = []
        for span in texts:
            learned += [span.learned] * len(span.text)
            trusted += [span.of_template] * len(span.text)
        specials = [match for match in self._special.finditer(text) if match[0]]
        real = [match for match in specials if all(trusted[match.start() : match.end()])]
        if len(real) == len(specials):
            yield from self._run(text, learned, parse=True)
            return
        begin = 0
        for match in specials:
            if match in real:
                yield from self._run(text, learned, begin, match.start())
                yield self._specials[match[0]], learned[match.start()]
                begin = match.end()
            elif match[0] in self._not_special:  # split in two, it is no token
                yield from self._run(text, learned, begin, match.start() + 1)
                begin = match.start() + 1
        yield from self._run(text, learned, begin)

    def _run(
        self, text: str, learned: Sequence[bool], begin: int = 0, end: int | None = None, parse: bool = False
    ) -> Iterator[tuple[int, bool]]:
        """A stretch of a text → its tokens, without the one that begins a sequence.

        Args:
            parse: Special tokens in it are special tokens.
        """
        text, learned = text[begin:end], learned[begin:end]
        if not text:
            return
        tokenizer = self.tokenizer
        if self._prefixes_once and begin:
            tokenizer = self._without_prefix
        elif self._prefixes_once and self._needs_space.match(text):
            text, learned = f" {text}", [learned[0], *learned]
        encoded = tokenizer(text, add_special_tokens=parse, split_special_tokens=not parse, return_offsets_mapping=True)
        skipped = len(self._begin) if parse else 0
        found = zip(encoded["input_ids"][skipped:], encoded["offset_mapping"][skipped:], strict=True)
        for token, (start, stop) in found:
            yield token, start < stop and learned[start]

    @cached_property
    def _without_prefix(self) -> Any:
        """The tokenizer for what stands behind a special token."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.backend_tokenizer.pre_tokenizer = None
        return tokenizer


def _default_media(config: MGMConfig) -> MediaOptions:
    """As many frames, up to 8, as leave a quarter of the language sequence to text."""
    room = 3 * config.max_position_embeddings // (4 * config.patches_per_picture)
    return MediaOptions(select="uniform", frames=max(1, min(8, room)))


def _detail_warnings(messages: Sequence[Message]) -> list[str]:
    asked = {part.detail for message in messages for part in message.media} - {"auto"}
    return [
        f"detail {detail!r} changes nothing: MGM shows every picture whole, in its two sizes"
        for detail in sorted(asked)
    ]
