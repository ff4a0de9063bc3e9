"""The contract of a family: what a processor promises, so that engine, training and evaluation need not know which.

Letters of shapes, everywhere: B batch, T text tokens, N pictures (crops or frames), P patches a picture, D model width
(or head width, where heads are spelt out), H heads, Hkv key/value heads, V vocabulary, R pixel side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from longview.errors import RequestError
from longview.media import MediaOptions, Medium
from longview.messages import FrameUsed, Message
from longview.models.sequence import IGNORED, positions_of


@dataclass(frozen=True)
class Sight:
    """What the tower is shown of one frame. Its pixels are made when they are needed: a film's need never all exist."""

    medium: int
    """Which medium of the conversation, from 0."""
    frame: int
    """Which of the medium's frames, from 0."""
    num_pictures: int
    """Crops: rows of each tensor in `pixels`."""
    settings: Hashable
    """All that decides the pixels besides the frame: sizes, the grid of crops, how they are normalised."""
    pixels: Callable[[Image.Image], Mapping[str, Tensor]]
    """The frame's picture → the arguments of the model's `encode`, by name, each with a row a crop."""


@dataclass
class Inputs:
    """What a processor makes of one conversation."""

    words: BatchFeature
    """The arguments of the family's `forward`, with a batch of one row; those for pixels are missing if `sights` are
    given."""
    length: int
    """Positions of the language sequence: words, and pictures where the family puts them there."""
    frames: tuple[FrameUsed, ...] = ()
    """The frames behind the pictures, in order, for the receipt."""
    num_pictures: int = 0
    visual_tokens: int = 0
    warnings: tuple[str, ...] = ()
    media: Sequence[Medium] = ()
    sights: Sequence[Sight] = ()
    """What is seen of `media`, in the order in which `forward` takes the pictures."""

    @cached_property
    def tensors(self) -> BatchFeature:
        """The arguments of the family's `forward`, under their official names, pixels included."""
        shown = [pixels for _, pixels in self.shown(self.sights)]
        for name in shown[0] if shown else ():
            self.words[name] = torch.cat([pixels[name] for pixels in shown])
        return self.words

    def shown(self, sights: Sequence[Sight]) -> Iterator[tuple[Sight, Mapping[str, Tensor]]]:
        """The pixels of some sights, which follow the order of `self.sights`; frames are decoded on the way."""
        for number, medium in enumerate(self.media):
            wanted = [sight for sight in sights if sight.medium == number]
            frames = medium.read([sight.frame for sight in wanted])
            for sight, frame in zip(wanted, frames, strict=True):
                assert frame.image is not None, "a frame that was read holds a picture"
                yield sight, sight.pixels(frame.image)


@dataclass(frozen=True)
class Layout:
    """How a conversation is laid out for training, where that differs from how the processor is set."""

    plain: bool = False
    """Without the chat template: what the user shows and, right behind it, the answer, as captions are learned."""
    cut: bool | None = None
    """Whether pictures are cut into crops."""
    max_partition: int | None = None
    """How many crops a picture is cut into at most."""


AS_SET = Layout()

PROGRAM_BYTES = 512 << 20
"""Python and its libraries, once torch and transformers are imported."""


@dataclass(frozen=True)
class Footprint:
    """What a model costs in memory, from its config alone. Bytes throughout."""

    family: str
    release: str
    parameters: int
    weight_bytes: int
    patches_per_picture: int
    picture_bytes: int
    """Kept for each picture while its conversation lasts: keys and values."""
    passing_bytes: int
    """Held for each picture until its keys and values are made: pixels and features."""
    word_bytes: int
    """Keys and values of a position of the language sequence."""
    working_bytes: int
    """The largest intermediate results, whatever the number of pictures."""
    context_length: int
    """Positions of the language sequence."""
    picture_positions: int = 0
    """Those that a picture takes, beside its placeholder's words; 0 where pictures never enter the sequence."""

    def holds(self, num_pictures: int) -> bool:
        """Whether so many pictures leave room for words in the language sequence."""
        return num_pictures * self.picture_positions < self.context_length

    def needed(self, num_pictures: int, num_words: int = 1024) -> int:
        """Bytes to look at so many pictures with a prompt and answer of so many text tokens, the program included."""
        words, pictures = num_words * self.word_bytes, num_pictures * (self.picture_bytes + self.passing_bytes)
        return PROGRAM_BYTES + self.weight_bytes + words + pictures + (self.working_bytes if num_pictures else 0)


class Processor(Protocol):
    """Messages + frames → Inputs; tokens → text."""

    tokenizer: Any
    default_media: MediaOptions
    draws: bool
    """Whether the model was taught to describe pictures to be painted."""
    cutting: tuple[str, ...]
    """Fields of `Layout` that change how its pictures are cut; none where the model decides."""

    @classmethod
    def sampling(cls, folder: Path) -> MediaOptions:
        """The `default_media` of the model in a folder; only its config and settings are read."""

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer."""

    def prepare(
        self, messages: Sequence[Message], media: Sequence[Medium], train: bool = False, layout: Layout = AS_SET
    ) -> Inputs:
        """One conversation and its media, in the order in which they stand in the messages.

        Args:
            train: The last message is the assistant's; `tensors` gain `labels`, −100 but for the assistant's words.
            layout: Where it differs from how the processor is set.

        Raises:
            RequestError: a medium where the family allows none, or media that do not match the messages.
        """

    def collate(self, samples: Sequence[Inputs], padding_side: str = "right") -> BatchFeature:
        """Several conversations as one batch: the arguments of `forward`."""

    def pictures(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Pictures, each whole and uncut: the arguments of the model's `encode`."""

    def save_pretrained(self, folder: str | PathLike) -> None:
        """Write tokenizer and settings beside the weights."""

    def places(self, batch: Mapping[str, Any]) -> Tensor:
        """Which hidden states stand for the pictures of a batch padded on the right: rows and positions, (N, W, 2)."""


Kind = TypeVar("Kind", bound="Carried")


class Carried(Protocol):
    """What a family keeps beside the keys and values of words, as `gallery` of a cache; owl3's pictures are such."""

    @classmethod
    def joined(cls: type[Kind], rows: Sequence[Kind | None]) -> Kind:
        """What several conversations keep, as one batch; None for one that keeps nothing."""

    def row(self: Kind, number: int) -> Kind | None:
        """What one of several conversations keeps, as a copy; None if that is nothing."""

    def until(self: Kind, position: int) -> Kind:
        """What one conversation keeps before a position of its sequence; nothing is copied."""

    def nbytes(self) -> int:
        """Bytes of its tensors."""


class InSequence:
    """What is the same in models whose pictures stand among the words, owl3's model answering for itself."""

    language_model: Any

    def picture_starts(self, arguments: Mapping[str, Any]) -> list[int]:
        """Where pictures stand that are no part of the sequence, for one row of `look`'s arguments: nowhere."""
        return []

    def portion(self, arguments: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
        """What `forward` takes to continue a cache that holds `begin` positions of one row up to position `end`."""
        return {name: arguments[name][:, begin:end] for name in ("input_ids", "inputs_embeds") if name in arguments}

    def read(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """The language model's pass over words (B, T), or over words and pictures in one sequence (B, T, D)."""
        words = input_ids if input_ids is not None else inputs_embeds
        if words is None:
            raise RequestError("forward needs input_ids or inputs_embeds")
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions_of(attention_mask)[:, -words.shape[1] :]
        return self.language_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )

    def together(self, portions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Several rows' portions from their beginnings as one batch, padded on the right."""
        name = next(name for name in ("input_ids", "inputs_embeds") if name in portions[0])
        return {name: pad_sequence([portion[name][0] for portion in portions], batch_first=True)}


def count_parameters(model_class: Any, config: Any) -> int:
    """Parameters of a model, from its config alone; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


def pad_rows(samples: Sequence[Inputs], fill: int, padding_side: str) -> tuple[dict[str, Any], list[int]]:
    """Rows padded to the longest, with the pixels of all, and how many positions each was padded by.

    Args:
        fill: The token to pad ids with.

    Raises:
        RequestError: no samples, or no such side.
    """
    if padding_side not in ("left", "right") or not samples:
        raise RequestError(
            f"collate pads {len(samples)} samples on the side {padding_side!r}; give some, and left or right"
        )
    rows = [sample.tensors for sample in samples]
    length = max(row["input_ids"].shape[1] for row in rows)
    pads = [length - row["input_ids"].shape[1] for row in rows]
    sides = [(pad, 0) if padding_side == "left" else (0, pad) for pad in pads]
    batch: dict[str, Any] = {}
    for key, value in {"input_ids": fill, "attention_mask": 0, "labels": IGNORED}.items():
        if key in rows[0]:
            padded = zip(rows, sides, strict=True)
            batch[key] = torch.cat([pad(row[key], side, value=value) for row, side in padded])
    pictures = [row["pixel_values"] for row in rows if "pixel_values" in row]
    if pictures:
        batch["pixel_values"] = torch.cat(pictures)
    return batch, pads


def check_media(messages: Sequence[Message], media: Sequence[Medium], family: str) -> None:
    """As many media as media parts, or an error with both numbers; and all of them in the user's messages.

    Args:
        family: The model's name, for the error.

    Raises:
        RequestError: the numbers differ, or somebody else shows pictures.
    """
    parts = sum(len(message.media) for message in messages)
    if parts != len(media):
        raise RequestError(f"the messages hold {parts} pictures and videos, but {len(media)} were opened")
    stray = next((message.role for message in messages if message.media and message.role != "user"), None)
    if stray:
        raise RequestError(f"{family} looks at pictures in the user's messages only, not in the {stray}'s")


def frames_used(media: Sequence[Medium], crops: Sequence[int]) -> tuple[FrameUsed, ...]:
    """The receipt's list of frames; `crops` says how many pictures each medium's frames became."""
    return tuple(
        FrameUsed(
            medium=number,
            name=medium.name,
            kind=medium.kind,
            index=frame.index,
            seconds=frame.seconds,
            width=medium.width,
            height=medium.height,
            crops=crops[number],
        )
        for number, medium in enumerate(media)
        for frame in medium.frames
    )
