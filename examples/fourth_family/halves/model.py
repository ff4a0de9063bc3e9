"""From pixels to logits. What follows from pictures standing in the sequence is `PicturesInSequence`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from longview.models.halves.config import HalvesConfig
from longview.models.halves.fusion import HalfColours
from longview.models.halves.processor import PLACEHOLDER
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2ForCausalLM

from longview.messages import Progress
from longview.models import checkpoint
from longview.models.base import Footprint, count_parameters
from longview.models.sequence import Merged, PicturesInSequence, merge


class HalvesModel(PicturesInSequence, PreTrainedModel, GenerationMixin):
    """A language model that is given the mean colours of a picture's halves."""

    config_class = HalvesConfig
    placeholder = PLACEHOLDER
    detail = ""
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    parts = {"vision": (), "connector": ("colours.",), "language": ("language_model.",)}  # noqa: RUF012

    def __init__(self, config: HalvesConfig) -> None:
        super().__init__(config)
        self.colours = HalfColours(config.hidden_size)
        self.language_model = Qwen2ForCausalLM(config)
        self.post_init()

    # ── vision and fusion ──

    def encode(
        self, pixel_values: Tensor, progress: Progress | None = None, details: list[Tensor] | None = None
    ) -> Tensor:
        """Pixels (N, 3, R, R) → embeddings (N, 2, D)."""
        weight = self.colours.projection.weight
        embeds: list[Tensor] = []
        for chunk in pixel_values.split(self.config.vision_batch_size):
            embeds.append(self.colours(chunk.to(weight.device, weight.dtype)))
            if progress is not None:
                progress(sum(map(len, embeds)), len(pixel_values), "encoding pictures")
        return torch.cat(embeds)

    def merge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None,
        features: Sequence[Tensor] | None,
        left_padding: bool = False,
    ) -> Merged:
        """Text tokens and each row's pictures (n, 2, D) as one sequence."""
        tokens = self.get_input_embeddings()(input_ids.clamp(min=0))
        pictures = features or [tokens.new_zeros(0, 1, tokens.shape[-1])] * len(tokens)
        placed = [own.to(tokens.device, tokens.dtype) for own in pictures]
        return merge(tokens, input_ids == PLACEHOLDER, attention_mask, labels, placed, left_padding=left_padding)

    # ── opening ──

    @classmethod
    def from_pretrained(cls, name: str | PathLike, *args: Any, config: Any = None, **kwargs: Any) -> HalvesModel:
        """Open a saved folder or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments."""
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        if not isinstance(config, HalvesConfig):
            config = checkpoint.open_config(HalvesConfig, folder)
        cls.check(config, checkpoint.tensor_shapes(folder), folder)
        arguments = checkpoint.safe_arguments(kwargs)
        model = super().from_pretrained(folder, *args, config=config, **arguments)
        return checkpoint.with_device_map(model, arguments)

    @classmethod
    def check(cls, config: HalvesConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Make sure that a config and the tensors of its checkpoint belong together."""
        checkpoint.check_shapes(checkpoint.shapes_of(cls, config, folder), shapes, folder)

    @classmethod
    def footprint(cls, config: HalvesConfig, dtype: torch.dtype) -> Footprint:
        """What a model of this config costs in memory in a dtype; nothing is allocated."""
        parameters, size = count_parameters(cls, config), dtype.itemsize
        head = config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_key_value_heads * head * size * config.num_hidden_layers
        pixels = 3 * config.picture_size**2 * 4
        return Footprint(
            family="halves",
            release=config.release,
            parameters=parameters,
            weight_bytes=parameters * size,
            patches_per_picture=2,
            picture_bytes=2 * token_bytes,
            transient_bytes=2 * config.hidden_size * size + pixels,
            token_bytes=token_bytes,
            working_bytes=config.vision_batch_size * pixels,
            context_length=config.max_position_embeddings,
            picture_positions=2,
        )

    # ── what transformers and the contract ask for ──

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def plain_language_model(self) -> Qwen2ForCausalLM:
        """The same weights without any component for pictures."""
        return self.language_model
