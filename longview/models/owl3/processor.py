"""Messages and frames → what `Owl3Model.forward` takes.

    system   <|im_start|>system\n…<|im_end|>                                   empty where the conversation has none
    user     \n<|im_start|>user\n▣ What is this?<|im_end|>                     ▣: the placeholder of one picture
    answer   \n<|im_start|>assistant\nA cat.<|im_end|><|endoftext|>

The placeholder `<|image|>` is no special token but five ordinary ones, and texts between placeholders are tokenised
separately: both matter for equal ids. In `prepare` the structure decides: only a media part becomes a placeholder,
only the template makes special tokens, whatever a user's text contains. The authors' own calls are in `compat.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from longview.answer_evidence import PatchGrid
from longview.errors import CheckpointError, RequestError
from longview.media import Medium
from longview.messages import Message
from longview.models import checkpoint
from longview.models.base import DEFAULT_FORMAT, IGNORED, EncoderInput, ModelInputs, SampleFormat
from longview.models.owl3.compat import PLACEHOLDER, OfficialProcessorCalls
from longview.models.owl3.config import Owl3Config
from longview.models.processing import (
    EncodesText,
    Segment,
    check_media,
    frames_used,
    join_texts,
    pad_rows,
    special_ids,
)
from longview.models.tiling import cut, resize
from longview.requests import MediaOptions

GRIDS = ((2, 2), (1, 3), (1, 4), (3, 1), (4, 1), (2, 3), (3, 2))
"""Candidate (rows, columns), in the order in which ties are decided."""
DETAIL = {"low": False, "high": True, "original": True}
"""Whether a picture is cut, by the detail that its part asks for."""


class Owl3Processor(EncodesText, OfficialProcessorCalls):
    """Tokenizer, chat format and picture processing of the mPLUG-Owl3 releases.

    Args:
        cut_enable: Cut pictures into crops and a global view, as the authors do by default; frames of videos never are.
        cut_pictures: How many pictures of a conversation are cut at most: where there are more, none is. Default: all.
    """

    default_media = MediaOptions(select="owl3")
    draws = False
    crop_settings = ("cut",)

    def __init__(
        self, tokenizer: Any, config: Owl3Config, cut_enable: bool = True, cut_pictures: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.cut_enable = cut_enable
        self.cut_pictures = cut_pictures
        self._placeholder = self._encode(PLACEHOLDER)
        self._specials = special_ids(tokenizer, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """See `longview.models.base.Processor.media_defaults`."""
        return cls.default_media

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> Owl3Processor:
        """Open the tokenizer and settings of a checkpoint folder or hub id."""
        folder = checkpoint.resolve(str(name), revision=kwargs.get("revision"))
        config = kwargs.get("config") or checkpoint.open_config(Owl3Config, folder)
        return cls(checkpoint.open_tokenizer(folder), config, *cls.cuts_of(folder))

    @staticmethod
    def cuts_of(folder: Path) -> tuple[bool, int | None]:
        """Whether a folder's settings let pictures be cut, and how many; the official folders say nothing: all are."""
        settings = folder / "preprocessor_config.json"
        fields = checkpoint.read_json(folder, settings.name) if settings.exists() else {}
        cut_enable, cut_pictures = fields.get("cut_enable", True), fields.get("cut_pictures")
        if not isinstance(cut_enable, bool):
            raise CheckpointError(f"{settings}: cut_enable is {cut_enable!r:.40}; expected true or false")
        if cut_pictures is not None and (type(cut_pictures) is not int or cut_pictures < 1):
            raise CheckpointError(
                f"{settings}: cut_pictures is {cut_pictures!r:.40}; expected a whole number from 1 up"
            )
        return cut_enable, cut_pictures

    def to_dict(self) -> dict[str, Any]:
        """See `longview.models.base.Processor.to_dict`."""
        most = {} if self.cut_pictures is None else {"cut_pictures": self.cut_pictures}
        return {**super().to_dict(), "cut_enable": self.cut_enable, **most}

    @property
    def end_tokens(self) -> list[int]:
        return [self._specials["<|im_end|>"], self._specials["<|endoftext|>"]]

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        train: bool = False,
        sample_format: SampleFormat = DEFAULT_FORMAT,
    ) -> ModelInputs:
        """One conversation → ModelInputs. See `longview.models.base.Processor.prepare`."""
        check_media(messages, media, "mPLUG-Owl3")
        # the release of July 2024 was not trained on crops of several pictures
        num_media = sample_format.num_media or len(media)
        cuts = self.cut_enable and (self.config.release != "240728" or num_media == 1)
        cuts = cuts and (self.cut_pictures is None or num_media <= self.cut_pictures)
        cuts = cuts if sample_format.cut is None else sample_format.cut
        encoder_inputs: list[EncoderInput] = []
        turns: list[tuple[str, list[Segment]]] = []
        crops: list[int] = []
        queue = iter(media)
        for message in messages:
            segments: list[Segment] = []
            for part in message.parts:
                if part.type == "text":
                    starts_line = segments and segments[-1] is None and part.text[:1].isalnum()
                    segments.append("\n" + part.text if starts_line else part.text)
                    continue
                medium = next(queue)
                if medium.kind == "video":
                    grid, placed = None, self.video_segments(len(medium.frames))
                else:
                    grid, placed = self.cut_picture(medium.frames[0].image, DETAIL.get(part.detail, cuts))
                segments += placed
                count = sum(segment is None for segment in placed) // len(medium.frames)
                settings, pixels = (self.config.picture_size, grid), partial(self.pixels, grid=grid)
                encoder_inputs += [
                    EncoderInput(len(crops), i, count, settings, pixels, partial(self.grids, grid=grid))
                    for i in range(len(medium.frames))
                ]
                crops.append(count)
            turns.append((message.role, segments))
        inputs = self.tokenize_plain(turns) if sample_format.plain else self.tokenize_turns(turns, train=train)
        num_pictures = sum(encoder_input.num_pictures for encoder_input in encoder_inputs)
        return ModelInputs(
            inputs,
            length=inputs["input_ids"].shape[1],
            frames=frames_used(media, crops),
            num_pictures=num_pictures,
            visual_tokens=num_pictures * self.config.patches_per_picture,
            warnings=tuple(warning for medium in media for warning in medium.warnings),
            media=media,
            encoder_inputs=encoder_inputs,
        )

    def collate(self, samples: Sequence[ModelInputs], padding_side: str = "right") -> BatchFeature:
        """Pad rows to the longest; placeholders move with left padding."""
        batch, pads = pad_rows(samples, self._specials["<|endoftext|>"], padding_side)
        shifts = pads if padding_side == "left" else [0] * len(pads)
        rows = [sample.text_inputs["placeholder_starts"][0] for sample in samples]
        starts = [[start + shift for start in row] for row, shift in zip(rows, shifts, strict=True)]
        return BatchFeature({**batch, "placeholder_starts": starts})

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """The tokens of the placeholders. See `longview.models.base.Processor.placeholder_positions`."""
        width = len(self._encode(PLACEHOLDER, parse_specials=True))
        starts = [(row, start) for row, starts in enumerate(batch["placeholder_starts"]) for start in starts]
        return torch.tensor(starts, dtype=torch.long).view(-1, 1, 2) + torch.tensor([[0, i] for i in range(width)])

    # ── text ──

    def cut_picture(self, image: Image.Image, cuts: bool) -> tuple[tuple[int, int] | None, list[Segment]]:
        """The (rows, columns) that one picture is cut into, or None, and its text and placeholders."""
        if not cuts:
            return None, [None]
        grid = choose_grid(image.width, image.height, self.config.picture_size)
        return grid, self.template(*grid)

    def template(self, rows: int, columns: int) -> list[Segment]:
        """The release's text for a picture cut into rows · columns crops, with a placeholder for each view."""
        segments: list[Segment] = []
        if self.config.release == "240728":
            segments.append(f"Cut to {rows} rows {columns} columns with a global view\n")
            for i in range(rows):
                for j in range(columns):
                    segments += [f"subimg({i},{j})", None, " " if j + 1 < columns else "\n"]
            return [*segments, "global_view", None]
        segments.append(f"<|start_cut|>{rows}*{columns}\n")
        for _ in range(rows):
            segments += [None, " "] * (columns - 1) + [None, "\n"]
        return [*segments, None, "<|end_cut|>"]

    def video_segments(self, num_frames: int) -> list[Segment]:
        """The release's text for the frames of a video.

        Raises:
            RequestError: there are none.
        """
        if not num_frames:
            raise RequestError("a video needs at least one frame; choose more")
        frames: list[Segment] = [None] * num_frames
        return frames if self.config.release == "240728" else ["<|start_video_frame|>", *frames, "<|end_video_frame|>"]

    def tokenize_turns(
        self,
        turns: Sequence[tuple[str, list[Segment]]],
        train: bool = False,
        parse_specials: bool = False,
        open_answer: bool = True,
    ) -> BatchFeature:
        """Roles and their segments, in the chat template → `input_ids`, `placeholder_starts`, and `labels` in training.

        Args:
            parse_specials: Whether `<|im_end|>` and the like in a turn's text are special tokens.
            open_answer: Append the header of the answer, unless training; the authors' callers append it themselves.
        """
        if open_answer and not train:
            turns = [*turns, ("assistant", [])]
        ids: list[int] = []
        labels: list[int] = []
        starts: list[int] = []

        def add(tokens: list[int], learn: bool = False) -> None:
            ids.extend(tokens)
            labels.extend(tokens if learn else [IGNORED] * len(tokens))

        if not turns or turns[0][0] != "system":
            turns = [("system", []), *turns]
        for number, (role, segments) in enumerate(turns):
            begin = [] if number == 0 else self._encode("\n")
            add([*begin, self._specials["<|im_start|>"]])
            if role == "assistant":
                add(self._encode("assistant\n"))
                if number + 1 == len(turns) and not train:
                    break
                answer = "".join(segment for segment in segments if segment)
                add([*self._encode(answer, parse_specials), self._specials["<|im_end|>"]], learn=True)
                add([self._specials["<|endoftext|>"]], learn=True)
                continue
            for texts in join_texts([f"{role}\n", *segments]):
                if texts is None:
                    starts.append(len(ids))
                    add(self._placeholder)
                else:
                    add(self._encode("".join(texts), parse_specials))
            add([self._specials["<|im_end|>"]])
        return self._tensors(ids, labels if train else None, starts)

    def tokenize_plain(self, turns: Sequence[tuple[str, list[Segment]]]) -> BatchFeature:
        """As `tokenize_turns` in training, without template and end tokens: the texts are concatenated."""
        ids: list[int] = []
        labels: list[int] = []
        starts: list[int] = []
        for role, segments in turns:
            for texts in join_texts(segments):
                if texts is None:
                    starts.append(len(ids))
                tokens = self._placeholder if texts is None else self._encode("".join(texts))
                ids += tokens
                labels += tokens if role == "assistant" else [IGNORED] * len(tokens)
        return self._tensors(ids, labels, starts)

    @staticmethod
    def _tensors(ids: list[int], labels: list[int] | None, placeholder_starts: list[int]) -> BatchFeature:
        """A row as `forward` takes it."""
        fields = {
            "input_ids": torch.tensor([ids], dtype=torch.long),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "placeholder_starts": [placeholder_starts],
        }
        return BatchFeature(
            fields if labels is None else {**fields, "labels": torch.tensor([labels], dtype=torch.long)}
        )

    # ── pictures ──

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """See `longview.models.base.Processor.pixel_inputs`."""
        return {"pixel_values": torch.stack([self.views(image, None)[0] for image in images])}

    def pixels(self, image: Image.Image, grid: tuple[int, int] | None) -> dict[str, Tensor]:
        """One picture → what `Owl3Model.encode` takes."""
        return {"pixel_values": torch.stack(self.views(image, grid))}

    def grids(self, width: int, height: int, grid: tuple[int, int] | None) -> list[PatchGrid]:
        """Where the patches of `views` are on a picture of this size."""
        size, side = self.config.picture_size, self.config.grid_side
        reached = side * self.config.vision_config.patch_size
        rows, columns = grid or (0, 0)
        places = [
            (column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows)
            for row in range(rows)
            for column in range(columns)
        ]
        places.append((0.0, 0.0, width, height))
        return [PatchGrid.of_crop(reached, side, side, (0, 0, size, size), place) for place in places]

    def views(self, image: Image.Image, grid: tuple[int, int] | None) -> list[Tensor]:
        """One picture → (3, R, R) tensors in [−1, 1]: its crops row after row and the global view last, or that alone.

        Sizes ignore the aspect ratio; resampling is PIL's bicubic.
        """
        side = self.config.picture_size
        image = image.convert("RGB")
        crops = []
        if grid is not None:
            rows, columns = grid
            crops = cut(resize(image, (columns * side, rows * side), Image.Resampling.BICUBIC), rows, columns)
        crops.append(resize(image, (side, side), Image.Resampling.BICUBIC))
        return [_normalised(crop) for crop in crops]


def _normalised(image: Image.Image) -> Tensor:
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
    return torch.from_numpy((pixels - np.float32(0.5)) / np.float32(0.5))


def choose_grid(width: int, height: int, side: int) -> tuple[int, int]:
    """The (rows, columns) whose canvas of `side`-pixel crops fits a picture's shape best, then its size.

    Boxes stand on a common corner; the overlap of the picture enlarged to the canvas' width counts a hundredfold.
    float32 throughout and first maximum wins, as in the authors' code.
    """

    def overlap(area: int, other: int, common: int) -> np.float32:
        return np.float32(common) / (np.float32(area + other - common) + np.float32(1e-5))

    scores = []
    for rows, columns in GRIDS:
        wide, high = columns * side, rows * side
        enlarged = int(height / width * wide)
        shape = overlap(wide * high, wide * enlarged, wide * min(high, enlarged))
        size = overlap(wide * high, width * height, min(wide, width) * min(high, height))
        scores.append(shape * np.float32(100) + size)
    return GRIDS[int(np.argmax(scores))]
