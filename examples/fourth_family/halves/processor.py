"""Messages and frames → what `HalvesModel` takes: ChatML, and each picture as a square of R pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longview.models.halves.config import HalvesConfig
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from longview.answer_evidence import PatchGrid
from longview.media import Medium
from longview.messages import Message
from longview.models import checkpoint
from longview.models.base import DEFAULT_FORMAT, IGNORED, EncoderInput, ModelInputs, SampleFormat
from longview.models.chat import ChatProcessor
from longview.models.processing import Segment, check_media, frames_used, join_texts, pad_rows, special_ids
from longview.models.sequence import expanded_positions
from longview.models.tiling import resize
from longview.requests import MediaOptions

PLACEHOLDER = -1
"""Stands in `input_ids` for one picture."""


class HalvesProcessor(ChatProcessor):
    """Tokenizer, chat format and picture processing."""

    default_media = MediaOptions(select="uniform", frames=8)
    draws = False
    crop_settings = ()

    def __init__(self, tokenizer: Any, config: HalvesConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self._begin, self._end = special_ids(tokenizer, ("<|im_start|>", "<|im_end|>")).values()

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> HalvesProcessor:
        """Open the tokenizer of a folder or hub id."""
        folder = checkpoint.resolve(str(name), revision=kwargs.get("revision"))
        config = kwargs.get("config") or checkpoint.open_config(HalvesConfig, folder)
        return cls(checkpoint.open_tokenizer(folder), config)

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """The same for every model of the family."""
        return cls.default_media

    @property
    def end_tokens(self) -> list[int]:
        return [self._end]

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        train: bool = False,
        sample_format: SampleFormat = DEFAULT_FORMAT,
    ) -> ModelInputs:
        """One conversation → ModelInputs. See `base.Processor.prepare`."""
        check_media(messages, media, "Halves")
        ids: list[int] = []
        labels: list[int] = []

        def add(tokens: list[int], learned: bool = False) -> None:
            ids.extend(tokens)
            labels.extend(tokens if learned else [IGNORED] * len(tokens))

        queue = iter(media)
        for message in messages:
            segments: list[Segment] = []
            for part in message.parts:
                segments += [part.text] if part.type == "text" else [None] * len(next(queue).frames)
            learned = train and message.role == "assistant"
            if not sample_format.plain:
                add([self._begin, *self._encode(f"{message.role}\n")])
            for texts in join_texts(segments):
                add([PLACEHOLDER] if texts is None else self._encode("".join(texts)), learned)
            if not sample_format.plain:
                add([self._end], learned)
                add(self._encode("\n"))
        if not train:
            add([self._begin, *self._encode("assistant\n")])
        text_inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if train:
            text_inputs["labels"] = torch.tensor([labels])

        def halves(width: int, height: int) -> list[PatchGrid]:
            return [PatchGrid(0, 0, width, height, rows=1, columns=2, shown=(0, 0, width, height))]

        encoder_inputs = [
            EncoderInput(which, number, 1, self.config.picture_size, lambda image: self.pixel_inputs([image]), halves)
            for which, medium in enumerate(media)
            for number in range(len(medium.frames))
        ]
        num_pictures = len(encoder_inputs)
        return ModelInputs(
            BatchFeature(text_inputs),
            length=len(ids) + num_pictures,  # two positions each, of which the ids hold one
            frames=frames_used(media, [1] * len(media)),
            num_pictures=num_pictures,
            visual_tokens=2 * num_pictures,
            warnings=tuple(warning for medium in media for warning in medium.warnings),
            media=media,
            encoder_inputs=encoder_inputs,
        )

    def collate(self, samples: Sequence[ModelInputs], padding_side: str = "right") -> BatchFeature:
        """Pad rows to the longest; the model pads again, on the same side, where pictures make them longer."""
        batch, _ = pad_rows(samples, self._end, padding_side)
        if padding_side == "left":
            batch["left_padding"] = True
        return BatchFeature(batch)

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Pictures → pixels (n, 3, R, R) in [0, 1]."""
        side = self.config.picture_size
        squares = [resize(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC) for image in images]
        pixels = np.stack([np.asarray(square, np.float32).transpose(2, 0, 1) / 255 for square in squares])
        return {"pixel_values": torch.from_numpy(pixels)}

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """The two tokens of each picture. See `base.Processor.placeholder_positions`."""
        return expanded_positions(batch["input_ids"] == PLACEHOLDER, self.config.patches_per_picture)

    def _encode(self, text: str) -> list[int]:
        """Text → ids, in which nothing a user writes becomes a special token."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
