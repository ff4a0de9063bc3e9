"""What a family promises: the contracts of its config, its processor and its model, and what passes between them.

    messages + media ── Processor.prepare ── ModelInputs ── Model.encode ── features (N, P, D)
                                                 └─ Model.embed_pictures ── Model.forward ── logits (B, T, V)

Engine, training, evaluation and bench ask nothing else of a family; `tests/models/test_contract.py` holds every folder
to it. What the implementations share is in `longview.models.processing` and `longview.models.sequence`.

Letters of shapes, everywhere: B batch, T text tokens, N pictures (crops or frames), P patches a picture, D model width
(or head width, where heads are spelt out), H heads, Hkv key/value heads, V vocabulary, R pixel side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from longview.answer_evidence import Detail, PatchGrid
from longview.errors import MediaError
from longview.media import Medium
from longview.messages import FrameUsed, Message, Progress
from longview.requests import MediaOptions

IGNORED = -100
"""The label of a position that the loss ignores; transformers' ignore index."""


@dataclass(frozen=True)
class EncoderInput:
    """What the vision encoder gets of one frame. Pixels are made when asked for, so that memory stays bounded."""

    medium: int
    """Which medium of the conversation, from 0."""
    frame: int
    """Which of the medium's frames, from 0."""
    num_pictures: int
    """Crops: rows of each tensor in `pixels`."""
    settings: Hashable
    """All that decides the pixels besides the frame: sizes, the grid of crops, how they are normalised."""
    pixels: Callable[[Image.Image], Mapping[str, Tensor]]
    """The frame's picture → the arguments of `Model.encode`, by name, each with a row a crop."""
    grids: Callable[[int, int], Sequence[PatchGrid]]
    """Width and height of the frame → where the patches of all crops lie on it, in the order of their features."""


@dataclass
class ModelInputs:
    """One conversation as a processor prepared it for the model."""

    text_inputs: BatchFeature
    """The arguments of the family's `forward`, with a batch of one row, but for the pixels of `encoder_inputs`."""
    length: int
    """Positions of the language sequence: text tokens, and pictures where the family puts them there."""
    frames: tuple[FrameUsed, ...] = ()
    """The frames behind the pictures, in order, for the receipt."""
    num_pictures: int = 0
    """Rows of pixels: crops of pictures, and frames. A picture that is cut counts as its crops."""
    visual_tokens: int = 0
    """Features of all of them, whether or not they take positions of the language sequence."""
    warnings: tuple[str, ...] = ()
    media: Sequence[Medium] = ()
    encoder_inputs: Sequence[EncoderInput] = ()
    """Frames of `media`, in the order in which `forward` takes the pictures."""
    _pixels: Mapping[str, Tensor] | None = field(default=None, init=False, repr=False)

    def load_pixels(self) -> BatchFeature:
        """The arguments of the family's `forward`, pixels included. The first call decodes them, and they are kept.

        Raises:
            MediaError: a frame cannot be decoded.
        """
        if self._pixels is None:
            loaded = [pixels for _, pixels in self.iterate_pixels(self.encoder_inputs)]
            names = loaded[0] if loaded else ()
            self._pixels = {name: torch.cat([pixels[name] for pixels in loaded]) for name in names}
        return BatchFeature({**self.text_inputs, **self._pixels})

    def iterate_pixels(
        self, encoder_inputs: Sequence[EncoderInput]
    ) -> Iterator[tuple[EncoderInput, Mapping[str, Tensor]]]:
        """The pixels of some of `self.encoder_inputs`, given in their order; frames are decoded on the way."""
        for encoder_input, image in self.iterate_frames(encoder_inputs):
            yield encoder_input, encoder_input.pixels(image)

    def iterate_frames(self, encoder_inputs: Sequence[EncoderInput]) -> Iterator[tuple[EncoderInput, Image.Image]]:
        """The pictures of some of `self.encoder_inputs`, given in their order, decoded on the way."""
        for number, medium in enumerate(self.media):
            wanted = [encoder_input for encoder_input in encoder_inputs if encoder_input.medium == number]
            frames = iter(medium.read([encoder_input.frame for encoder_input in wanted]))
            for encoder_input in wanted:
                try:
                    frame = next(frames)
                except MediaError as error:
                    error.medium = number
                    raise
                yield encoder_input, frame.image


@dataclass(frozen=True)
class SampleFormat:
    """How a conversation is laid out for training, where that differs from how the processor is set."""

    plain: bool = False
    """Without the chat template: the user's media and, right behind them, the answer, as captions are learned."""
    cut: bool | None = None
    """Whether pictures are cut into crops."""
    max_partition: int | None = None
    """How many crops a picture is cut into at most."""
    num_media: int | None = None
    """How many media there are for the question how pictures are cut, where some have been left out."""


DEFAULT_FORMAT = SampleFormat()

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
    transient_bytes: int
    """Needed for each picture until its keys and values are made: pixels and features."""
    token_bytes: int
    """Keys and values of a position of the language sequence."""
    working_bytes: int
    """The largest intermediate results, whatever the number of pictures."""
    context_length: int
    """Positions of the language sequence."""
    picture_positions: int = 0
    """Those that a picture takes, beside its placeholder's tokens; 0 where pictures never enter the sequence."""

    def holds(self, num_pictures: int) -> bool:
        """Whether so many pictures leave room for text in the language sequence."""
        return num_pictures * self.picture_positions < self.context_length

    def needed(self, num_pictures: int, num_tokens: int = 1024) -> int:
        """Bytes for so many pictures with a prompt and answer of so many text tokens, the program included."""
        tokens, pictures = num_tokens * self.token_bytes, num_pictures * (self.picture_bytes + self.transient_bytes)
        return PROGRAM_BYTES + self.weight_bytes + tokens + pictures + (self.working_bytes if num_pictures else 0)


class Config(Protocol):
    """The contract of a family's config: a `PreTrainedConfig` with these fields and properties besides."""

    model_type: str
    variants: tuple[str, ...]
    """What `tiny` makes: one for each way in which releases of the family compute differently."""
    hidden_size: int
    """D: width of the language model."""
    vision_batch_size: int
    """Pictures that `Model.encode` takes at a time; bounds memory, does not change results."""
    max_position_embeddings: int
    """Positions of the language sequence."""

    @property
    def release(self) -> str:
        """What tells one model of the family from another beside its sizes, for `longview info`."""

    @property
    def picture_size(self) -> int:
        """R: pixels along the side of a picture."""

    @property
    def patches_per_picture(self) -> int:
        """P: features that `Model.encode` makes of a picture."""

    @classmethod
    def tiny(cls, variant: str = ..., **changes: Any) -> Config:
        """A model of a few hundred kilobytes with every mechanism of the variant in it, for tests."""

    def __getattr__(self, name: str) -> Any:
        """What every `PreTrainedConfig` has: `get_text_config`, `to_dict`, `save_pretrained`, …"""


class Processor(Protocol):
    """The contract of a family's processor: messages + media → ModelInputs; `tokenizer` makes text of tokens.

    It inherits `longview.models.chat.ChatProcessor`, by which it is transformers' `ProcessorMixin`, too.
    """

    tokenizer: Any
    default_media: MediaOptions
    """How videos are sampled where a request does not say."""
    draws: bool
    """Whether the model was trained to write prompts for an image generator (`--gen`)."""
    crop_settings: tuple[str, ...]
    """Fields of `SampleFormat` that change how its pictures are cut; none where the model decides."""

    def __init__(self, tokenizer: Any, config: Any) -> None: ...

    @classmethod
    def from_pretrained(cls, name: str | PathLike, **kwargs: Any) -> Processor:
        """Open tokenizer and settings of a folder or hub id; `config=` spares reading the model's.

        Raises:
            CheckpointError: something in the folder is missing or malformed.
        """

    def save_pretrained(self, folder: str | PathLike) -> None:
        """Write tokenizer and settings beside the weights."""

    def to_dict(self) -> dict[str, Any]:
        """The settings beside the tokenizer, as preprocessor_config.json has them."""

    @classmethod
    def media_defaults(cls, folder: Path) -> MediaOptions:
        """The `default_media` of the model in a folder; only its config and settings are read."""

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end an answer."""

    def prepare(
        self,
        messages: Sequence[Message],
        media: Sequence[Medium],
        train: bool = False,
        sample_format: SampleFormat = DEFAULT_FORMAT,
    ) -> ModelInputs:
        """One conversation and its media, in the order in which they stand in the messages.

        Args:
            train: The last message is the assistant's; `text_inputs` gain `labels` (1, T), −100 but for the
                assistant's tokens. Otherwise the prompt ends where the answer begins.
            sample_format: Where it differs from how the processor is set.

        Raises:
            RequestError: a medium where the family allows none, or media that do not match the messages.
        """

    def collate(self, samples: Sequence[ModelInputs], padding_side: str = "right") -> BatchFeature:
        """Several conversations as one batch: what `Model.embed_pictures` takes, pixels (N, 3, R, R) included."""

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Pictures, each whole and uncut: the arguments of `Model.encode`."""

    def placeholder_positions(self, batch: Mapping[str, Any]) -> Tensor:
        """Row and position (N, W, 2) of each picture's W hidden states, in a batch padded on the right."""


class Model(Protocol):
    """The contract of a family's model: a transformers `PreTrainedModel` with these methods besides."""

    config: Any
    """See `Config`."""
    parts: dict[str, tuple[str, ...]]
    """Component ("vision", "connector", "language") → substrings of its parameters' names; the first match counts."""
    language_model: Any
    """A causal language model of transformers, whose decoder layers are `language_model.model.layers`."""
    detail: Detail
    """What `encode` says of a patch besides its features, for evidence."""
    signal: str
    """What `evidence` measures, in a line."""
    training: bool
    device: torch.device
    dtype: torch.dtype

    def __init__(self, config: Any) -> None: ...

    @classmethod
    def from_pretrained(cls, name: str | PathLike, *args: Any, config: Any = None, **kwargs: Any) -> Model:
        """Open an official or saved folder, or a hub id; takes transformers' arguments. Runs no code, opens no pickle.

        Raises:
            CheckpointError: something about the folder is missing, unsafe or of the wrong shape.
        """

    @classmethod
    def check(cls, config: Any, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Complete a config by the shapes of its checkpoint's tensors, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """

    @classmethod
    def footprint(cls, config: Any, dtype: torch.dtype) -> Footprint:
        """What a model of this config costs in memory; nothing is allocated."""

    def encode(
        self, pixel_values: Tensor, progress: Progress | None = None, details: list[Tensor] | None = None
    ) -> Tensor:
        """Pixels (N, 3, R, R) → features (N, P, D), `config.vision_batch_size` pictures at a time.

        Args:
            details: Gets what `detail` names of some pictures' patches, (n, P, …), fp32; nothing where that is "".
        """

    def embed_pictures(
        self, model_inputs: Mapping[str, Any], progress: Progress | None = None, features: Tensor | None = None
    ) -> dict[str, Any]:
        """A batch of the processor → arguments of `forward` with features in place of pixels.

        Args:
            features: What `encode` made of the pictures, (N, P, D); without them the pixels are encoded.
        """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`input_ids` (B, T) or `inputs_embeds` (B, T, D) behind what the cache holds → logits (B, T, V), and a loss.

        Raises:
            RequestError: the numbers of pictures and placeholders differ; says both.
        """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with hooks."""

    def evidence(self, positions: Tensor, **arguments: Any) -> tuple[Tensor, Sequence[int]]:
        """How much of its attention each token of one row gives to each patch: (T, N, P), fp32; and in which layers.

        It runs `forward` with attention computed by the plain formula, for these tokens only. A picture that a token
        cannot see has 0; the sum over a token's pictures is at most 1.

        Args:
            positions: Of each picture's placeholder, (N, W): `Processor.placeholder_positions` without the rows.
            arguments: Of `forward`: a row of `embed_pictures`, or tokens behind what a cache holds.
        """

    def picture_starts(self, arguments: Mapping[str, Any]) -> list[int]:
        """First positions of pictures that are no part of the sequence, for one row of `embed_pictures`."""

    def prefill_chunk(self, arguments: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
        """What `forward` takes to continue a cache that holds `begin` positions of one row up to position `end`."""

    def collate_chunks(self, chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Several rows' chunks from position 0 as one batch, padded on the right."""

    def pack(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Samples (B, T) as one row that keeps them apart; see `longview.models.packing`."""

    def plain_language_model(self) -> Any:
        """The language model alone, as transformers has it, with the same weights."""

    def __getattr__(self, name: str) -> Any:
        """What every `PreTrainedModel` has: `parameters`, `train`, `generate`, `save_pretrained`, embeddings, …"""


SideCacheT = TypeVar("SideCacheT", bound="SideCache")


class SideCache(Protocol):
    """What a family keeps beside the KV cache of text tokens, as mPLUG-Owl3 keeps keys and values of pictures.

    A model that has one takes it as the argument `side_cache` of `forward`, and its output has it as `side_cache`
    where there is anything to keep; a decode pass does not change it. Decoder layers that attend to it have
    `attends_to_side_cache = True`.
    """

    @classmethod
    def joined(cls: type[SideCacheT], rows: Sequence[SideCacheT | None]) -> SideCacheT:
        """What several conversations keep, as one batch; None for one that keeps nothing."""

    def row(self: SideCacheT, number: int) -> SideCacheT | None:
        """What one of several conversations keeps, as a copy; None if that is nothing."""

    def until(self: SideCacheT, position: int) -> SideCacheT:
        """What one conversation keeps before a position of its sequence; nothing is copied."""

    def nbytes(self) -> int:
        """Bytes of its tensors."""


def count_parameters(model_class: Any, config: Any) -> int:
    """Parameters of a model, from its config alone; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


def checkpoint_activations(model: Any, on: bool) -> None:
    """Whether the backward pass computes activations again instead of keeping them; off by default.

    transformers 5.23 renamed its methods for it, and warns of the older names.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()
