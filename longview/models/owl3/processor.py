"""Messages and frames → what `Owl3Model.forward` takes; and the authors' own calling convention beside it.

Text is ChatML with an empty system prompt. The placeholder `<|image|>` is no special token but five ordinary ones, and
chunks between placeholders are tokenised separately: both matter for equal ids.

Two ways in, one builder behind them:

    prepare(messages, media)              structure decides: only a media part becomes a placeholder, only the template
                                          makes special tokens, whatever a user's text contains
    processor(messages, images=, videos=) the authors' strings: `<|image|>` and `<|video|>` in a user's text are media
"""

from __future__ import annotations

import json
import re
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

from longview.errors import CheckpointError, RequestError
from longview.media import Medium
from longview.messages import ROLES, Message
from longview.models import checkpoint
from longview.models.base import DEFAULT_FORMAT, EncoderInput, ModelInputs, SampleFormat
from longview.models.owl3.config import Owl3Config
from longview.models.processing import Segment, check_media, frames_used, join_texts, pad_rows
from longview.models.tiling import cut, resize
from longview.requests import MediaOptions

PLACEHOLDER = "<|image|>"
GRIDS = ((2, 2), (1, 3), (1, 4), (3, 1), (4, 1), (2, 3), (3, 2))
"""Candidate (rows, columns), in the order in which ties are decided."""


class Owl3Processor:
    """Tokenizer, chat format and picture processing of the mPLUG-Owl3 releases.

    Args:
        cut_enable: Cut pictures into crops and a global view, as the authors do by default; frames of videos never are.
    """

    default_media = MediaOptions(select="owl3")
    draws = False
    crop_settings = ("cut",)

    def __init__(self, tokenizer: Any, config: Owl3Config, cut_enable: bool = True) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.cut_enable = cut_enable
        self._placeholder = self._encode(PLACEHOLDER)
        self._specials = {
            token: tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
        }
        unknown = (None, getattr(tokenizer, "unk_token_id", None))
        missing = [token for token, number in self._specials.items() if number in unknown]
        if missing:
            raise RequestError(f"the tokenizer lacks {', '.join(missing)}; use the one in the checkpoint's folder")

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """See `longview.models.base.Processor.sampling`."""
        return cls.default_media

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> Owl3Processor:
        """Open the tokenizer and settings of a checkpoint folder or hub id."""
        folder = checkpoint.resolve(str(name), revision=kwargs.get("revision"))
        config = kwargs.get("config") or checkpoint.open_config(Owl3Config, folder)
        return cls(checkpoint.open_tokenizer(folder), config, cls.cuts_in(folder))

    @staticmethod
    def cuts_in(folder: Path) -> bool:
        """Whether a folder's settings let pictures be cut; the official folders say nothing of it, and mean yes."""
        settings = folder / "preprocessor_config.json"
        cut_enable = checkpoint.read_json(folder, settings.name).get("cut_enable", True) if settings.exists() else True
        if not isinstance(cut_enable, bool):
            raise CheckpointError(f"{settings}: cut_enable is {cut_enable!r:.40}; expected true or false")
        return cut_enable

    def save_pretrained(self, folder: str | PathLike, **_: Any) -> None:
        """Write tokenizer and settings beside the weights."""
        self.tokenizer.save_pretrained(folder)
        settings = {"processor_class": "Owl3Processor", "cut_enable": self.cut_enable}
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")

    @property
    def end_tokens(self) -> list[int]:
        return [self._specials["<|im_end|>"], self._specials["<|endoftext|>"]]

    # ── our way in ──

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
        cuts = self.cut_enable and (self.config.release != "240728" or len(media) == 1)
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
                    grid, shown = None, self._video(len(medium.frames))
                else:
                    grid, shown = self._picture(medium.frames[0].image, cuts)
                segments += shown
                count = sum(segment is None for segment in shown) // len(medium.frames)
                settings, pixels = (self.config.picture_size, grid), partial(self.pixels, grid=grid)
                encoder_inputs += [
                    EncoderInput(len(crops), i, count, settings, pixels) for i in range(len(medium.frames))
                ]
                crops.append(count)
            turns.append((message.role, segments))
        words = self._plain(turns) if sample_format.plain else self._build(turns, [], train=train, parse_specials=False)
        num_pictures = sum(encoder_input.num_pictures for encoder_input in encoder_inputs)
        return ModelInputs(
            words,
            length=words["input_ids"].shape[1],
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
        starts = [placeholder_starts(sample.text_inputs["media_offset"], 1)[0] for sample in samples]
        batch["media_offset"] = [
            torch.tensor([start + shift for start in row], dtype=torch.long)
            for row, shift in zip(starts, shifts, strict=True)
        ]
        return BatchFeature(batch)

    # ── the authors' way in ──

    def __call__(
        self,
        messages: Sequence[Mapping[str, str]],
        images: Sequence[Image.Image] | None = None,
        videos: Sequence[Sequence[Image.Image]] | None = None,
        cut_enable: bool | None = None,
        inference_mode: bool = True,
        **_: Any,
    ) -> BatchFeature:
        """The official convention: strings with `<|image|>` and `<|video|>`, pictures and lists of frames beside them.

        Each marker takes the next picture or video of its kind; the messages are left as they are. The caller appends
        an assistant message to get the answer's header.

        Args:
            cut_enable: Cut pictures into crops. Default: as the processor is set. With a video, 240728 never cuts.
            inference_mode: Leave the last answer out, so that the model writes it. Off: `labels` are added.
        """
        for name, given in (("images", images), ("videos", videos)):
            if given is not None and not isinstance(given, (list, tuple)):
                raise RequestError(f"{name} is a list, one entry a marker; wrap the one you have: {name}=[…]")
        cuts = self.cut_enable if cut_enable is None else cut_enable
        if self.config.release == "240728" and videos:
            cuts = False
        images_left: list[Any] = list(images or ())
        videos_left: list[Any] = list(videos or ())
        pixels: list[Tensor] = []
        turns: list[tuple[str, list[Segment]]] = []
        for message in messages:
            if message["role"] not in ROLES:
                raise RequestError(f"unknown role {message['role']!r:.80}; expected one of {', '.join(ROLES)}")
            segments: list[Segment] = []
            pieces = re.split(r"(<\|image\|>|<\|video\|>)", message["content"]) if message["role"] == "user" else []
            for piece in pieces or [message["content"]]:
                if message["role"] != "user" or piece not in (PLACEHOLDER, "<|video|>"):
                    segments.append(piece)
                    continue
                left = images_left if piece == PLACEHOLDER else videos_left
                if not left:
                    counts = f"{len(images or ())} images and {len(videos or ())} videos"
                    raise RequestError(f"the messages hold more {piece} than were given: {counts}")
                if piece == PLACEHOLDER:
                    picture = left.pop(0)
                    grid, shown = self._picture(picture, cuts)
                    segments += shown
                    pixels += self.views(picture, grid)
                else:
                    frames = left.pop(0)
                    segments += self._video(len(frames))
                    pixels += [view for frame in frames for view in self.views(frame, None)]
            turns.append((message["role"], segments))
        if images_left or videos_left:
            raise RequestError(
                f"{len(images_left)} images and {len(videos_left)} videos have no marker in the messages; "
                f"write {PLACEHOLDER} or <|video|> where each belongs"
            )
        return self._build(turns, pixels, train=not inference_mode, parse_specials=True, open_answer=False)

    # ── text ──

    def _picture(self, image: Image.Image, cuts: bool) -> tuple[tuple[int, int] | None, list[Segment]]:
        """How one picture is cut, if it is, and what stands in the text for it."""
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

    def _video(self, num_frames: int) -> list[Segment]:
        if not num_frames:
            raise RequestError("a video without frames cannot be shown to the model; choose at least one frame")
        frames: list[Segment] = [None] * num_frames
        return frames if self.config.release == "240728" else ["<|start_video_frame|>", *frames, "<|end_video_frame|>"]

    def _build(
        self,
        turns: list[tuple[str, list[Segment]]],
        pixels: list[Tensor],
        train: bool,
        parse_specials: bool,
        open_answer: bool = True,
    ) -> BatchFeature:
        """Turns of text and placeholders → ids, offsets, pixels (and labels).

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
            labels.extend(tokens if learn else [-100] * len(tokens))

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
        tensors = self._tensors(ids, starts)
        if pixels:
            tensors["pixel_values"] = torch.stack(pixels)
        if train:
            tensors["labels"] = torch.tensor([labels], dtype=torch.long)
        return tensors

    def _plain(self, turns: Sequence[tuple[str, list[Segment]]]) -> BatchFeature:
        """Turns side by side, without a template and without an end, and their labels."""
        ids: list[int] = []
        labels: list[int] = []
        starts: list[int] = []
        for role, segments in turns:
            for texts in join_texts(segments):
                if texts is None:
                    starts.append(len(ids))
                tokens = self._placeholder if texts is None else self._encode("".join(texts))
                ids += tokens
                labels += tokens if role == "assistant" else [-100] * len(tokens)
        tensors = self._tensors(ids, starts)
        tensors["labels"] = torch.tensor([labels], dtype=torch.long)
        return tensors

    def _tensors(self, ids: list[int], starts: list[int]) -> BatchFeature:
        """Ids, and where among them pictures start, as `forward` takes them."""
        return BatchFeature(
            {
                "input_ids": torch.tensor([ids], dtype=torch.long),
                "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
                "media_offset": self._media_offset(starts, len(ids)),
            }
        )

    def _media_offset(self, starts: list[int], length: int) -> Tensor | list[Tensor]:
        """Where pictures stand, in the release's form: the starts (241101), or how many stand before each token."""
        if self.config.fused:
            return [torch.tensor(starts, dtype=torch.long)]
        counts = torch.zeros(1, length, 2, dtype=torch.long)
        counts[0, :, 1] = -1_000_000 if not starts else (torch.arange(length)[:, None] > torch.tensor(starts)).sum(1)
        return counts

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """The words of the placeholders. See `longview.models.base.Processor.places`."""
        rows = placeholder_starts(batch.get("media_offset"), len(batch["input_ids"]))
        width = len(self._encode(PLACEHOLDER, parse_specials=True))
        begins = torch.tensor([(row, start) for row, starts in enumerate(rows) for start in starts]).view(-1, 1, 2)
        return begins + torch.stack([torch.zeros(width, dtype=torch.long), torch.arange(width)], dim=-1)

    def _encode(self, text: str, parse_specials: bool = False) -> list[int]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not parse_specials)
        return list(encoded["input_ids"])

    # ── pictures ──

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """See `longview.models.base.Processor.pictures`."""
        return {"pixel_values": torch.stack([self.views(image, None)[0] for image in images])}

    def pixels(self, image: Image.Image, grid: tuple[int, int] | None) -> dict[str, Tensor]:
        """One picture → what `Owl3Model.encode` takes."""
        return {"pixel_values": torch.stack(self.views(image, grid))}

    def views(self, image: Image.Image, grid: tuple[int, int] | None) -> list[Tensor]:
        """One picture → (3, R, R) tensors in [−1, 1]: its crops row after row and the global view last, or the latter.

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
    float32 throughout and first maximum wins, as in the original.
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


def placeholder_starts(media_offset: Tensor | Sequence | None, batch: int) -> list[list[int]]:
    """Any historic form of `media_offset` → for each row, the ascending indices at which its placeholders start.

    A list of B index lists or tensors (None or empty: no picture); one index tensor for a batch of one; or the counting
    tensor (B, T, 2) of 240728 and 241014: pictures of earlier rows, and those plus the pictures before the token.

    Raises:
        RequestError: the form is none of these, or the number of rows differs.
    """
    if media_offset is None:
        return [[] for _ in range(batch)]
    if isinstance(media_offset, Tensor):
        if media_offset.dim() == 1:
            media_offset = [media_offset]
        elif media_offset.dim() == 2:
            media_offset = media_offset[None]
    rows: list[list[int]] = []
    for row in media_offset:
        if isinstance(row, Tensor) and row.dim() == 2:
            seen = (row[:, 1] - row[:, 0]).clamp(min=0).tolist()
            rows.append([token - 1 for token in range(1, len(seen)) for _ in range(seen[token] - seen[token - 1])])
        else:
            rows.append([] if row is None else [int(start) for start in row])
    if len(rows) != batch:
        raise RequestError(f"media_offset describes {len(rows)} rows, but input_ids has {batch}")
    if any(starts != sorted(starts) for starts in rows):
        raise RequestError("the starts in media_offset must ascend within each row")
    return rows
