"""mPLUG-Owl3 from pixels to logits, for all three releases.

    pixels (N, 3, R, R) ── SigLIP, all blocks but the last ── vision2text_model ── features (N, P, hidden)
                                                                                        │ added to a VisualKVCache
    ids (B, T) ── embeddings ── Qwen2 blocks; hyper blocks attend to pictures, too ─────┘ ── lm_head ── (B, T, V)

Attribute names are those of the official checkpoints, so no weight is ever renamed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, SiglipVisionModel

from longview.answer_evidence import Detail
from longview.errors import RequestError
from longview.messages import Progress
from longview.models import checkpoint, tied_head
from longview.models.arguments import check_kept, configured, opened
from longview.models.base import Footprint, count_parameters
from longview.models.fused_gelu import fuse_gelu
from longview.models.owl3 import convert
from longview.models.owl3.attention import BLOCK_KEYS, SCORES_BYTES
from longview.models.owl3.compat import OfficialModelCalls, rows_of_starts
from longview.models.owl3.config import Owl3Config
from longview.models.owl3.fusion import HyperAttention, HyperDecoderLayer
from longview.models.owl3.processor import Owl3Processor
from longview.models.owl3.visual_kv_cache import Owl3Cache, VisualKVCache
from longview.models.packing import pack
from longview.models.sequence import check_counts, pad_chunks, positions_of, slice_positions
from longview.models.stray import WithoutStrayAdapters, check_quantization
from longview.models.transformers_seams import (
    CACHE_NAME,
    CACHE_NAMES,
    CausalLMOutputWithPast,
    takes_cache_by_either_name,
)
from longview.names import check_kv_dtype


@dataclass
class Owl3Output(CausalLMOutputWithPast):
    """transformers' output of a causal language model, and the keys and values of the pictures so far."""

    side_cache: VisualKVCache | None = None
    """For the next pass with `past_key_values`."""


class Owl3Model(WithoutStrayAdapters, OfficialModelCalls, PreTrainedModel, GenerationMixin):
    """A language model that attends to pictures inside a few of its blocks.

    Opens official folders (`from_pretrained`); which release a checkpoint is, its tensors say.
    """

    config_class = Owl3Config
    processor_class = Owl3Processor
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer", "HyperDecoderLayer", "SiglipEncoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = [*CACHE_NAMES, "side_cache"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    parts = {  # noqa: RUF012
        "vision": ("vision_model",),
        "connector": ("vision2text_model", "v_kv_proj", "self_attn.gate"),
        "language": ("language_model",),
    }
    """What a recipe can name; a parameter belongs to the first part one of whose names occurs in its own."""
    detail: Detail = ""

    @property
    def signal(self) -> str:
        """See `longview.models.base.Model.signal`."""
        part = {"none": "in the joint softmax over text and pictures", "token": "times the token's gate"}
        how = part.get(self.config.gate, "times the layer's gate")
        return f"attention of the hyper layers to the picture {how}, the mean over heads and these layers"

    def __init__(self, config: Owl3Config) -> None:
        super().__init__(config)
        if config.kv_dtype is not None:
            check_kv_dtype(config.kv_dtype)
        self.vision_model = SiglipVisionModel(config.vision_config)
        fuse_gelu(self.vision_model)
        width = config.vision_config.hidden_size
        if config.projector_layers == 1:
            self.vision2text_model: nn.Module = nn.Linear(width, config.hidden_size)
        else:
            self.vision2text_model = nn.Sequential(
                nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
            )
        self.language_model = Qwen2ForCausalLM(config)
        for number in config.hyper_layers:
            self.language_model.model.layers[number - 1] = HyperDecoderLayer(config, number - 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HyperAttention) and self.config.gate == "vector":
            nn.init.zeros_(module.gate)

    @classmethod
    def from_pretrained(cls, name: str | PathLike, *args: Any, config: Any = None, **kwargs: Any) -> Owl3Model:
        """Open an official or saved folder, or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments.

        Raises:
            CheckpointError: something about the folder is missing, unsafe or of the wrong shape.
        """
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        shapes = checkpoint.tensor_shapes(folder)
        if not isinstance(config, Owl3Config):
            config = checkpoint.open_config(Owl3Config, folder)
        config, given, kwargs = configured(config, kwargs)
        cls.check(config, shapes, folder)
        check_kept(config, given)
        arguments = checkpoint.safe_arguments(kwargs)
        model, *info = opened(super().from_pretrained, folder, *args, config=config, **arguments)
        if config.tie_word_embeddings:
            tied_head.tie(model.language_model, folder)
        return checkpoint.with_device_map(model, arguments, *info)

    @classmethod
    def check(cls, config: Owl3Config, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Complete a config by the shapes of its checkpoint's tensors, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """
        check_quantization(shapes, folder)
        convert.complete(config, shapes, folder)
        expected = checkpoint.shapes_of(cls, config, folder)
        checkpoint.check_shapes(expected, shapes, folder, optional=convert.optional(config))
        checkpoint.check_generation_config(folder)

    @classmethod
    def footprint(cls, config: Owl3Config, dtype: torch.dtype) -> Footprint:
        """What a model of this config costs in memory in a dtype; nothing is allocated."""
        parameters = count_parameters(cls, config)
        vision, size = config.vision_config, dtype.itemsize
        patches, head = config.patches_per_picture, config.hidden_size // config.num_attention_heads
        states = 2 * config.num_key_value_heads * head * size  # a key and a value, in one layer
        visual_states = states if config.kv_dtype is None else 2 * config.num_key_value_heads * (head + 4)  # and scales
        chunk_tokens = config.vision_batch_size * patches
        scores = min(SCORES_BYTES, 4 * 64 * config.num_attention_heads * BLOCK_KEYS)  # of a run of 64 tokens
        return Footprint(
            family="owl3",
            release=config.release,
            parameters=parameters,
            weight_bytes=parameters * size,
            patches_per_picture=patches,
            picture_bytes=patches * visual_states * len(config.hyper_layers),
            transient_bytes=patches * config.hidden_size * size + 3 * config.picture_size**2 * 4,
            token_bytes=states * config.num_hidden_layers,
            # the tower's widest layer twice, and the scores of one block of attention
            working_bytes=chunk_tokens * 2 * (vision.intermediate_size + vision.hidden_size) * size + 3 * scores,
            context_length=config.max_position_embeddings,
        )

    # ── what transformers asks for ──

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def plain_language_model(self) -> Qwen2ForCausalLM:
        """A copy of the weights without any component for pictures: stock Qwen2, sharing no tensors."""
        config = Qwen2Config.from_dict({**self.config.to_dict(), "model_type": "qwen2"})
        config._attn_implementation = self.config._attn_implementation
        plain = Qwen2ForCausalLM(config).to(self.dtype).eval()
        plain.load_state_dict(self.language_model.state_dict(), strict=False)
        return plain

    # ── the forward pass ──

    def encode(
        self, pixel_values: Tensor, progress: Progress | None = None, details: list[Tensor] | None = None
    ) -> Tensor:
        """Pixels (N, 3, R, R) → features (N, P, hidden), `vision_batch_size` pictures at a time.

        The features are the output of the tower's last block but one, so the last block is not run. There are no
        details of patches.
        """
        tower = self.vision_model
        weight = tower.embeddings.patch_embedding.weight
        features: list[Tensor] = []
        for chunk in pixel_values.split(self.config.vision_batch_size):
            hidden = tower.embeddings(chunk.to(weight.device, weight.dtype))
            for block in tower.encoder.layers[:-1]:
                hidden = block(hidden, None)
            features.append(self.vision2text_model(hidden))
            if progress is not None:
                progress(sum(map(len, features)), len(pixel_values), "encoding pictures")
        return torch.cat(features)

    def embed_pictures(
        self, model_inputs: Mapping[str, Any], progress: Progress | None = None, features: Tensor | None = None
    ) -> dict[str, Any]:
        """A batch of the processor with features in place of pixels: arguments of `forward`.

        Args:
            features: What `encode` made of the pictures, (N, P, hidden), in place of their pixels.
        """
        arguments = {key: value for key, value in model_inputs.items() if key != "pixel_values"}
        if features is None and "pixel_values" in model_inputs:
            features = self.encode(model_inputs["pixel_values"], progress)
        if features is not None:
            arguments["image_embeds"] = features
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in arguments.items()}

    @staticmethod
    def pack(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Samples as one row. See `longview.models.packing.pack`, and where samples and placeholders begin."""
        lengths = arguments["attention_mask"].sum(1).tolist()
        begins = [0, *itertools.accumulate(lengths[:-1])]
        rows = rows_of_starts(arguments.get("placeholder_starts"), None, len(lengths))
        starts = [begin + start for begin, row in zip(begins, rows, strict=True) for start in row]
        return pack(arguments) | {"placeholder_starts": [starts], "sample_starts": [begins]}

    @takes_cache_by_either_name
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
        pixel_values: Tensor | None = None,
        placeholder_starts: Sequence[Sequence[int]] | None = None,
        image_embeds: Tensor | None = None,
        side_cache: VisualKVCache | None = None,
        sample_starts: Sequence[Sequence[int]] | None = None,
        media_offset: Tensor | Sequence | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """One pass over `input_ids` (B, T), which continue `past_key_values` where there are any.

        Returns an `Owl3Output` where a cache holds pictures, and the language model's own output where none does.

        Args:
            pixel_values: (N, 3, R, R), the pictures of all rows, row after row; new ones only, where a cache is given.
            placeholder_starts: For each row, the indices in this call's `input_ids` at which placeholders start. They
                may lie beyond its end: the first chunk of a prefill may bring the pictures of all.
            image_embeds: (N, P, hidden) from `encode`, in place of `pixel_values`.
            side_cache: Keys and values of earlier pictures, from the output of the pass that `past_key_values` is of;
                an `Owl3Cache` brings its own. New pictures are added to it in place.
            attention_mask: (B, past + T), 0 for padding on either side.
            sample_starts: Of packed rows, which begin with this call: where the samples of each begin. None attends to
                text or pictures of another; `position_ids` begin again at 0 with each, and there is no mask.
            media_offset: The official form of `placeholder_starts`; see `compat.read_media_offset`.

        Raises:
            RequestError: the numbers of pictures and placeholders differ.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if tokens is None:
            raise RequestError("forward needs input_ids or inputs_embeds")
        batch, length = tokens.shape[:2]
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions_of(attention_mask)[:, -length:]
        if use_cache is None:
            use_cache = past_key_values is not None or (self.config.use_cache and not self.training)
        if use_cache and past_key_values is None:
            past_key_values = Owl3Cache(config=self.config)
        if side_cache is None and isinstance(past_key_values, Owl3Cache):
            side_cache = past_key_values.side_cache

        if image_embeds is None and pixel_values is not None:
            image_embeds = self.encode(pixel_values)
        starts = rows_of_starts(placeholder_starts, media_offset, batch)
        check_counts(0 if image_embeds is None else len(image_embeds), sum(map(len, starts)))
        if image_embeds is not None and len(image_embeds):
            if side_cache is None:
                side_cache = VisualKVCache(batch, self.config.patches_per_picture)
            positions = self.picture_positions(starts, position_ids, past, length)
            side_cache.add(image_embeds, [[past + start for start in row] for row in starts], positions, sample_starts)

        output = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            side_cache=side_cache if side_cache is not None and side_cache.num_pictures else None,
            return_dict=True,
            **{CACHE_NAME: past_key_values},
            **kwargs,
        )
        if past_key_values is None:
            side_cache = None  # without a KV cache, keys and values of pictures are not kept either
        elif side_cache is not None:
            side_cache.end_pass()
        if isinstance(past_key_values, Owl3Cache):
            past_key_values.side_cache = side_cache
        if side_cache is not None:
            output = Owl3Output(**output, side_cache=side_cache)
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def evidence(self, positions: Tensor, **arguments: Any) -> tuple[Tensor, Sequence[int]]:
        """See `longview.models.base.Model.evidence`; the layers are the hyper layers."""
        patches = self.config.patches_per_picture
        given = arguments.pop("side_cache", None)
        side_cache = VisualKVCache(1, patches) if given is None else given
        side_cache.attended = {}
        try:
            self.forward(**arguments, side_cache=side_cache, logits_to_keep=1)
            found = side_cache.attended
        finally:
            side_cache.attended = None
        if not found:
            return torch.zeros(arguments["input_ids"].shape[1], 0, patches), ()
        first = next(iter(found.values()))
        mean = torch.stack([each.to(first.device) for each in found.values()]).mean(0)
        return mean.unflatten(1, (-1, patches)), tuple(found)

    def picture_starts(self, arguments: Mapping[str, Any]) -> list[int]:
        """Where the placeholders of one row of `embed_pictures`'s arguments start."""
        return rows_of_starts(arguments.get("placeholder_starts"), None, 1)[0]

    def prefill_chunk(self, arguments: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
        """See `longview.models.base.Model.prefill_chunk`. Pictures come with their placeholders' first tokens."""
        chunk = slice_positions(arguments, begin, end)
        starts = self.picture_starts(arguments)
        here = [number for number, start in enumerate(starts) if begin <= start < end]
        if not here:
            return chunk
        embeds = arguments["image_embeds"][here[0] : here[-1] + 1]
        return {**chunk, "image_embeds": embeds, "placeholder_starts": [[starts[number] - begin for number in here]]}

    def collate_chunks(self, chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `longview.models.base.Model.collate_chunks`."""
        embeds = [chunk["image_embeds"] for chunk in chunks if "image_embeds" in chunk]
        if not embeds:
            return pad_chunks(chunks)
        starts = [row for chunk in chunks for row in chunk.get("placeholder_starts", [[]])]
        return {**pad_chunks(chunks), "image_embeds": torch.cat(embeds), "placeholder_starts": starts}

    def picture_positions(
        self, starts: list[list[int]], position_ids: Tensor | None, past: int, length: int
    ) -> list[list[int]]:
        """The MI-RoPE position of each picture of each row; padding before a placeholder does not count."""
        extra = 0 if self.config.joint_softmax else 1
        positions = []
        rows = [] if position_ids is None else position_ids.tolist()  # at once: a GPU is waited for
        for number, row_starts in enumerate(starts):
            if position_ids is None:
                positions.append([past + start + extra for start in row_starts])
                continue
            row = rows[min(number, len(rows) - 1)]
            beyond = row[-1] - (length - 1)
            positions.append([(row[start] if start < length else beyond + start) + extra for start in row_starts])
        return positions
