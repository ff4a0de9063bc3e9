"""Messages and frames → what `Ovis2Model` takes: ChatML with a system prompt, and crops of pictures.

In the ids, a picture is a few negative numbers: one for each crop, others for where the picture, its rows and its
columns begin and end (`crops.py`). Structure decides: only a media part becomes a picture, and only the template makes
special tokens, whatever a user's text contains. The authors' strings, in which `<image>` is a picture, are in
`compat.py`; both build their ids here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from longview.answer_evidence import PatchGrid
from longview.errors import CheckpointError
from longview.media import Medium
from longview.messages import Message
from longview.models import checkpoint
from longview.models.base import DEFAULT_FORMAT, IGNORED, EncoderInput, ModelInputs, SampleFormat
from longview.models.chat import SETTINGS
from longview.models.ovis2 import port
from longview.models.ovis2.compat import SYSTEM_PROMPT, OfficialProcessorCalls
from longview.models.ovis2.config import OvisConfig
from longview.models.ovis2.crops import WHOLE, Grid, ImageSettings, boxes, choose_grid, placeholders
from longview.models.ovis2.fusion import PLACEHOLDER
from longview.models.processing import (
    EncodesText,
    Segment,
    check_media,
    frames_used,
    join_texts,
    pad_rows,
    special_ids,
)
from longview.models.sequence import expanded_positions
from longview.requests import MediaOptions

MAX_CROPS, MAX_CROPS_OF_SEVERAL = 9, 4
"""How many crops a picture is cut into at most, as in the authors' program: the only one, or one of several."""
DETAIL = {"low": 1, "high": MAX_CROPS, "original": MAX_CROPS}
"""How many crops a picture is cut into at most, by the detail that its part asks for."""
COUNTS = ("max_partition", "max_partition_of_several", "frames")
"""What may stand there beside the authors' settings."""


class Ovis2Processor(EncodesText, OfficialProcessorCalls):
    """Tokenizer, chat format and picture processing of Ovis2.

    Args:
        pixels: How crops become numbers. Default: as the authors' preprocessor_config.json, in the model's size.
        max_partition: How many crops a picture is cut into at most, in messages; frames of videos never are. Default:
            9 for the only picture, 4 for each of several.
        max_partition_of_several: The same for each of several pictures. Default: as `max_partition`.
        frames: How many frames a video is sampled to, unless a request says otherwise. Default: 12.
    """

    default_media = MediaOptions(select="ovis2")
    draws = False
    crop_settings = ("cut", "max_partition")

    def __init__(
        self,
        tokenizer: Any,
        config: OvisConfig,
        image_settings: ImageSettings | None = None,
        max_partition: int | None = None,
        max_partition_of_several: int | None = None,
        frames: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.max_partition = max_partition
        self.max_partition_of_several = max_partition_of_several
        self.default_media = MediaOptions(select="ovis2", frames=frames)
        visual = config.visual_tokenizer_config
        side = visual.backbone_config.image_size
        grey = (0.5, 0.5, 0.5)
        usual = ImageSettings(side, mean=grey, std=grey) if visual.kind == "siglip" else ImageSettings(side)
        self.image_settings = image_settings or usual
        if self.image_settings.side != side:
            raise CheckpointError(
                f"preprocessor_config.json makes crops of {self.image_settings.side} pixels, but config.json's model "
                f"takes {side}; take both from the same checkpoint"
            )
        self._specials = special_ids(tokenizer, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> Ovis2Processor:
        """Open the tokenizer and settings of a checkpoint folder or hub id."""
        folder = checkpoint.resolve(str(name), revision=kwargs.get("revision"))
        config = kwargs.get("config") or checkpoint.open_config(OvisConfig, folder)
        image_settings, fields = None, _settings(folder)
        if fields is not None:
            try:
                image_settings = ImageSettings.of(fields, config.visual_tokenizer_config.kind)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"{folder / SETTINGS} does not say how crops are made ({error!r}); fetch it again"
                ) from None
        counts = {name: kwargs.get(name, (fields or {}).get(name)) for name in COUNTS}
        return cls(checkpoint.open_tokenizer(folder), config, image_settings, **counts)

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """See `base.Processor.media_defaults`."""
        return MediaOptions(select="ovis2", frames=(_settings(folder) or {}).get("frames"))

    def to_dict(self) -> dict[str, Any]:
        """See `base.Processor.to_dict`; as the authors' programs read it."""
        counts = {
            "max_partition": self.max_partition,
            "max_partition_of_several": self.max_partition_of_several,
            "frames": self.default_media.frames,
        }
        settings = self.image_settings.as_dict(self.config.visual_tokenizer_config.kind)
        return {**settings, **{name: count for name, count in counts.items() if count is not None}}

    @property
    def end_tokens(self) -> list[int]:
        return [self._specials["<|im_end|>"], self._specials["<|endoftext|>"]]

    # ── messages → ModelInputs ──

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        train: bool = False,
        sample_format: SampleFormat = DEFAULT_FORMAT,
    ) -> ModelInputs:
        """One conversation → ModelInputs. See `base.Processor.prepare`."""
        check_media(messages, media, "Ovis2")
        num_media = sample_format.num_media or len(media)
        max_crops = (
            sample_format.max_partition
            or (self.max_partition_of_several if num_media > 1 else None)
            or self.max_partition
            or (MAX_CROPS if num_media == 1 else MAX_CROPS_OF_SEVERAL)
        )
        if sample_format.cut is False:
            max_crops = 1
        side = self.image_settings.side
        encoder_inputs: list[EncoderInput] = []
        crops: list[int] = []
        pictures: list[list[int]] = []
        turns: list[tuple[str, list[Segment]]] = []
        queue = iter(media)
        for message in messages:
            segments: list[Segment] = []
            for part in message.parts:
                if part.type == "text":
                    segments.append(part.text)
                    continue
                medium = next(queue)
                most = DETAIL.get(part.detail, max_crops)
                for number, frame in enumerate(medium.frames):
                    grid = WHOLE if medium.kind == "video" else choose_grid(*frame.image.size, side, most)
                    ids = placeholders(*grid)
                    segments += ["\n"] * (number > 0) + [None]
                    pictures.append(ids)
                    settings, pixels = (self.image_settings, grid), partial(self._encoder_pixels, grid=grid)
                    grids = partial(self._grids, grid=grid)
                    encoder_inputs.append(
                        EncoderInput(len(crops), number, ids.count(PLACEHOLDER), settings, pixels, grids)
                    )
                crops.append(ids.count(PLACEHOLDER))
            turns.append((message.role, segments))
        ids, labels = self._plain(turns, pictures) if sample_format.plain else self._build(turns, pictures, learn=train)
        text_inputs: dict[str, Any] = {
            "input_ids": torch.tensor([ids], dtype=torch.long),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        }
        if train:
            text_inputs["labels"] = torch.tensor([labels], dtype=torch.long)
        num_pictures = ids.count(PLACEHOLDER)
        return ModelInputs(
            BatchFeature(text_inputs),
            length=len(ids) + num_pictures * (self.config.patches_per_picture - 1),
            frames=frames_used(media, crops),
            num_pictures=num_pictures,
            visual_tokens=num_pictures * self.config.patches_per_picture,
            warnings=tuple(warning for medium in media for warning in medium.warnings),
            media=media,
            encoder_inputs=encoder_inputs,
        )

    def collate(self, samples: Sequence[ModelInputs], padding_side: str = "right") -> BatchFeature:
        """Pad rows to the longest; the model pads again, on the same side, where crops make them longer."""
        batch, _ = pad_rows(samples, self._specials["<|endoftext|>"], padding_side)
        if padding_side == "left":
            batch["left_padding"] = True
        return BatchFeature(batch)

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """See `base.Processor.pixel_inputs`."""
        return {"pixel_values": torch.stack([self.image_settings.fit(image) for image in images])}

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """The visual tokens. See `base.Processor.placeholder_positions`."""
        return expanded_positions(batch["input_ids"] == PLACEHOLDER, self.config.patches_per_picture)

    def _grids(self, width: int, height: int, grid: Grid) -> list[PatchGrid]:
        """Where the patches of the whole picture and of its crops are."""
        visual = self.config.visual_tokenizer_config
        tower, stride = visual.backbone_config, visual.hidden_stride
        side = -(-(tower.image_size // tower.patch_size) // stride)
        reached = side * stride * tower.patch_size
        found = []
        for box in [(0, 0, width, height), *(boxes(width, height, *grid) if grid != WHOLE else [])]:
            fitted = self.image_settings.fitted(box[2] - box[0], box[3] - box[1])
            if side**2 + 1 == self.config.patches_per_picture:  # a class token comes first, of all of the crop
                found.append(PatchGrid(*box, 1, 1, box))
            found.append(PatchGrid.of_crop(reached, side, side, fitted, box))
        return found

    def _encoder_pixels(self, image: Image.Image, grid: Grid) -> dict[str, Tensor]:
        """One picture → the arguments of `Ovis2Model.encode`."""
        return {"pixel_values": torch.stack(self.image_settings.crops(image, grid))}

    # ── text ──

    def _build(
        self,
        turns: list[tuple[str, list[Segment]]],
        pictures: Sequence[list[int]],
        learn: bool,
        parse_specials: bool = False,
        open_answer: bool | None = None,
    ) -> tuple[list[int], list[int]]:
        """Turns of text and pictures → ids, and labels, which are −100 but for the assistant's texts and their ends.

        Args:
            pictures: The ids of each picture, in order.
            parse_specials: As the authors do: `<|im_end|>` and the like in a text are special tokens, and an answer is
                tokenised together with its header.
            open_answer: The last turn has no end; default: begin an answer after the last turn, unless learning.
        """
        if open_answer is None:
            open_answer = not learn
            turns = [*turns, ("assistant", [])] if open_answer else turns
        if not turns or turns[0][0] != "system":
            turns = [("system", [SYSTEM_PROMPT]), *turns]
        ids: list[int] = []
        labels: list[int] = []
        newline, queue = self._encode("\n"), iter(pictures)
        for number, (role, segments) in enumerate(turns):
            header = [self._specials["<|im_start|>"], *self._encode(f"{role}\n")]
            if role == "assistant" and not parse_specials:
                tokens = [*header, *self._tokens(segments, queue, parse_specials)]
            else:
                tokens = [header[0], *self._tokens([f"{role}\n", *segments], queue, parse_specials)]
            closed = number + 1 < len(turns) or not open_answer
            learned = role == "assistant" and learn
            ids += [*tokens, *([self._specials["<|im_end|>"], *newline] if closed else [])]
            body = [IGNORED if token < 0 else token for token in tokens[len(header) :]]
            labels += [IGNORED] * len(header) + (body if learned else [IGNORED] * len(body))
            if closed:
                labels += [self._specials["<|im_end|>"] if learned else IGNORED] + [IGNORED] * len(newline)
        return ids, labels

    def _plain(
        self, turns: Sequence[tuple[str, list[Segment]]], pictures: Sequence[list[int]]
    ) -> tuple[list[int], list[int]]:
        """Turns concatenated, without a template and end tokens → ids and labels."""
        ids: list[int] = []
        labels: list[int] = []
        queue = iter(pictures)
        for role, segments in turns:
            tokens = self._tokens(segments, queue)
            ids += tokens
            labels += tokens if role == "assistant" else [IGNORED] * len(tokens)
        return ids, labels

    def _tokens(
        self, segments: Sequence[Segment], pictures: Iterator[list[int]], parse_specials: bool = False
    ) -> list[int]:
        """Texts and pictures → ids; each None takes the ids of the next picture."""
        ids: list[int] = []
        for texts in join_texts(segments):
            ids += next(pictures) if texts is None else self._encode("".join(texts), parse_specials)
        return ids


def _settings(folder: Path) -> dict[str, Any] | None:
    """A folder's preprocessor_config.json; None: it has no such file, nor that of transformers' port.

    Raises:
        CheckpointError: it is no JSON object, or one of `COUNTS` is no number from 1 up.
    """
    path = folder / SETTINGS
    if not path.exists():
        path = folder / port.PROCESSOR
    if not path.exists():
        return None
    try:
        fields = dict(json.loads(path.read_text(encoding="utf-8")))
        if path.name == port.PROCESSOR:
            fields = dict(fields["image_processor"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} does not say how crops are made ({error!r}); fetch it again") from None
    for name in COUNTS:
        count = fields.get(name)
        if count is not None and (type(count) is not int or count < 1):
            raise CheckpointError(f"{path}: {name} is {count!r:.40}; expected a whole number from 1 up")
    return fields
