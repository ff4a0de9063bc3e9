"""The contract of a family: what a processor promises, so that engine, training and evaluation need not know which.

Letters of shapes, everywhere: B batch, T text tokens, N pictures (crops or frames), P patches a picture, D model width
(or head width, where heads are spelt out), H heads, Hkv key/value heads, V vocabulary, R pixel side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image
from torch import Tensor
from transformers import BatchFeature

from longview.errors import RequestError
from longview.media import MediaOptions, Medium
from longview.messages import FrameUsed, Message


@dataclass
class Inputs:
    """What a processor makes of one conversation."""

    tensors: BatchFeature
    """The arguments of the family's `forward`, under their official names, with a batch of one row."""
    length: int
    """Positions of the language sequence: words, and pictures where the family puts them there."""
    frames: tuple[FrameUsed, ...] = ()
    """The frames behind the pictures, in order, for the receipt."""
    num_pictures: int = 0
    visual_tokens: int = 0
    warnings: tuple[str, ...] = ()


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

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer."""

    def prepare(self, messages: Sequence[Message], media: Sequence[Medium], train: bool = False) -> Inputs:
        """One conversation and its media, in the order in which they stand in the messages.

        Args:
            train: The last message is the assistant's; `tensors` gain `labels`, −100 but for the assistant's words.

        Raises:
            RequestError: a medium where the family allows none, or media that do not match the messages.
        """

    def collate(self, samples: Sequence[Inputs], padding_side: str = "right") -> BatchFeature:
        """Several conversations as one batch: the arguments of `forward`."""

    def pictures(self, images: Sequence[Image]) -> dict[str, Tensor]:
        """Pictures, each whole and uncut: the arguments of the model's `encode`."""

    def places(self, batch: Mapping[str, Any]) -> Tensor:
        """Which hidden states stand for the pictures of a batch padded on the right: rows and positions, (N, W, 2)."""


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
