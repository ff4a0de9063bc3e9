"""Ovis2 from pixels to logits.

    pixels (N, 3, R, R) ── tower, no final norm ── head ── visual tokens (N, T, V) ── table ── embeddings (N, T, D)
                                                                                                      │
    ids (B, L) ── embeddings (B, L, D), each placeholder replaced by a crop's T embeddings (`fusion.merge`) ┘
                                      └── Qwen2 ── lm_head ── logits (B, L + N·(T − 1), vocabulary)

Attribute names are those of the official checkpoints, so no weight is ever renamed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers.initialization as init
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionModel, GenerationMixin, PreTrainedModel, SiglipVisionModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.aimv2.modeling_aimv2 import Aimv2RMSNorm, eager_attention_forward
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from longview.errors import RequestError
from longview.media import Progress
from longview.models import checkpoint
from longview.models.base import Footprint, PicturesInSequence, count_parameters
from longview.models.ovis2 import convert
from longview.models.ovis2.config import Aimv2BackboneConfig, OvisConfig, VisualTokenizerConfig
from longview.models.ovis2.fusion import ATOM, VisualEmbeddingTable, VisualTokenizer, merge
from longview.models.ovis2.processor import Ovis2Processor
from longview.models.packing import pack
from longview.models.sequence import Merged, mask_after, split_mask
from longview.models.transformers_seams import CACHE_NAMES, takes_cache_by_either_name

# ── the tower ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Aimv2Patchifier(nn.Module):
    """Pixels (n, 3, R, R) → patches (n, P, d), row after row."""

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.norm = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.norm(self.proj(pixel_values).flatten(2).transpose(1, 2))


class Aimv2Preprocessor(nn.Module):
    """Patches and where they stand."""

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.patchifier = Aimv2Patchifier(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_size // config.patch_size) ** 2, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patchifier(pixel_values)
        return patches + self.pos_embed[:, : patches.shape[1]].to(patches.device)


class Aimv2Attention(nn.Module):
    """Every patch looks at every patch. Queries, keys and values come out of one matrix."""

    is_causal = False

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        heads = (3, self.config.num_attention_heads, -1)
        query, key, value = self.qkv(hidden).unflatten(-1, heads).permute(2, 0, 3, 1, 4)  # (n, H, P, head width)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        scaling = query.shape[-1] ** -0.5
        seen, _ = interface(self, query, key, value, None, is_causal=False, scaling=scaling, dropout=dropout)
        return functional.dropout(self.proj(seen.flatten(2)), self.config.projection_dropout, self.training)


class Aimv2FeedForward(nn.Module):
    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        wide, bias = config.intermediate_size, config.use_bias
        self.fc1 = nn.Linear(config.hidden_size, wide, bias=bias)
        self.fc2 = nn.Linear(wide, config.hidden_size, bias=bias)
        self.fc3 = nn.Linear(config.hidden_size, wide, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(functional.silu(self.fc1(hidden)) * self.fc3(hidden))


class Aimv2Block(GradientCheckpointingLayer):
    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.norm_1 = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = Aimv2Attention(config)
        self.norm_2 = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Aimv2FeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm_1(hidden))
        return hidden + self.mlp(self.norm_2(hidden))


class Aimv2Trunk(nn.Module):
    """The blocks. The norm after them is in every checkpoint; Ovis2 does not apply it: its numbers depend on that."""

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Aimv2Block(config) for _ in range(config.num_hidden_layers)])
        self.post_trunk_norm = Aimv2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class Aimv2Backbone(PreTrainedModel):
    """AIMv2: pixels (n, 3, R, R) → features (n, P, d), the last block's output.

    transformers' AIMv2 computes the same with three matrices in place of `qkv`; this one has the official names.
    """

    config_class = Aimv2BackboneConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Aimv2Block"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Aimv2BackboneConfig) -> None:
        super().__init__(config)
        self.preprocessor = Aimv2Preprocessor(config)
        self.trunk = Aimv2Trunk(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Aimv2Preprocessor):
            init.normal_(module.pos_embed, std=self.config.initializer_range)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.trunk(self.preprocessor(pixel_values))


class ContrastiveBackbone(nn.Module):
    """A SigLIP or CLIP tower: pixels (n, 3, R, R) → features (n, P, d), CLIP's with its class token first."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, pixel_values: Tensor) -> Tensor:
        hidden = self.vision_model.embeddings(pixel_values)
        if hasattr(self.vision_model, "pre_layrnorm"):
            hidden = self.vision_model.pre_layrnorm(hidden)
        return self.vision_model.encoder(inputs_embeds=hidden).last_hidden_state


def make_backbone(config: VisualTokenizerConfig) -> nn.Module:
    """The tower that a visual tokenizer names."""
    if config.kind == "aimv2":
        return Aimv2Backbone(config.backbone_config)
    tower = SiglipVisionModel if config.kind == "siglip" else CLIPVisionModel
    return ContrastiveBackbone(tower(config.backbone_config))


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ovis2Model(PicturesInSequence, PreTrainedModel, GenerationMixin):
    """A language model that reads pictures as words of a visual vocabulary. Opens official folders."""

    config_class = OvisConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer", "Aimv2Block", "SiglipEncoderLayer", "CLIPEncoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = [*CACHE_NAMES]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    parts = {  # noqa: RUF012
        "vision": ("visual_tokenizer.backbone.",),
        "connector": ("visual_tokenizer.head.", "vte."),
        "language": ("llm.",),
    }
    """What a recipe can name; a parameter belongs to the first part one of whose names occurs in its own."""

    def __init__(self, config: OvisConfig) -> None:
        super().__init__(config)
        visual = config.visual_tokenizer_config
        self.llm = Qwen2ForCausalLM(config.llm_config)
        self.visual_tokenizer = VisualTokenizer(visual, make_backbone(visual))
        self.vte = VisualEmbeddingTable(visual.vocab_size, config.hidden_size)
        self._processor: Ovis2Processor | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualEmbeddingTable):
            init.normal_(module.weight)

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike,
        *args: Any,
        config: Any = None,
        multimodal_max_length: int | None = None,
        **kwargs: Any,
    ) -> Ovis2Model:
        """Open an official or our own folder, or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments.

        Raises:
            CheckpointError: something about the folder is missing, unsafe or of the wrong shape; says what.
        """
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        shapes = checkpoint.tensor_shapes(folder)
        if not isinstance(config, OvisConfig):
            config = checkpoint.open_config(OvisConfig, folder)
        if multimodal_max_length is not None:
            config.multimodal_max_length = multimodal_max_length
        cls.check(config, shapes, folder)
        arguments = checkpoint.safe_arguments(kwargs)
        model = super().from_pretrained(folder, *args, config=config, **arguments)
        if config.tied:  # transformers leaves a head that differs from the embeddings as it is
            model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
        return checkpoint.with_device_map(model, arguments)

    @classmethod
    def check(cls, config: OvisConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Settle a config by the tensors of its checkpoint, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """
        convert.settle(config, shapes, folder)
        convert.check_quantisation(config, shapes, folder)
        expected = convert.expected_shapes(checkpoint.shapes_of(cls, config, folder), shapes)
        checkpoint.check_shapes(expected, shapes, folder, optional=convert.optional(config))
        checkpoint.check_generation_config(folder)

    @classmethod
    def footprint(cls, config: OvisConfig, dtype: torch.dtype) -> Footprint:
        """What a model of this config costs in memory in a dtype; nothing is allocated."""
        parameters = count_parameters(cls, config)
        words, visual, size = config.llm_config, config.visual_tokenizer_config, dtype.itemsize
        tower, positions = visual.backbone_config, config.patches_per_picture
        head = words.hidden_size // words.num_attention_heads
        token_bytes = 2 * words.num_key_value_heads * head * size * words.num_hidden_layers
        patches = (tower.image_size // tower.patch_size) ** 2
        # a tower's widest layer twice, or the head's logits, the visual tokens and their padded copy
        widest = max(2 * patches * (tower.intermediate_size + tower.hidden_size), 3 * positions * visual.vocab_size)
        return Footprint(
            family="ovis2",
            release=config.release,
            parameters=parameters,
            weight_bytes=parameters * size,
            patches_per_picture=positions,
            picture_bytes=positions * token_bytes,
            passing_bytes=positions * words.hidden_size * size + 3 * tower.image_size**2 * 4,
            token_bytes=token_bytes,
            working_bytes=config.vision_batch_size * widest * size,
            context_length=config.max_position_embeddings,
            picture_positions=positions,
        )

    # ── plumbing transformers asks for ──

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    @property
    def language_model(self) -> Qwen2ForCausalLM:
        """The language model, under the name every family has for it."""
        return self.llm

    def plain_language_model(self) -> Qwen2ForCausalLM:
        """The same weights without any part for pictures: stock Qwen2."""
        return self.llm

    # ── the official interface ──

    @property
    def processor(self) -> Ovis2Processor:
        """The processor of the folder that the model was opened from."""
        if self._processor is None:
            if not self.name_or_path:
                raise RequestError("a model made from a config alone has no tokenizer; give it one: init_processor(…)")
            self._processor = Ovis2Processor.from_pretrained(self.name_or_path, config=self.config)
        return self._processor

    def init_processor(self, tokenizer: Any) -> Ovis2Processor:
        """A processor around a tokenizer; the official calls use it from now on."""
        self._processor = Ovis2Processor(tokenizer, self.config)
        return self._processor

    def preprocess_inputs(self, text_or_conversations: Any, images: Any = (), **settings: Any) -> tuple:
        """See `Ovis2Processor.preprocess_inputs`."""
        return self.processor.preprocess_inputs(text_or_conversations, images, **settings)

    def get_text_tokenizer(self) -> Any:
        return self.processor.tokenizer

    def get_visual_tokenizer(self) -> VisualTokenizer:
        return self.visual_tokenizer

    def get_llm(self) -> Qwen2ForCausalLM:
        return self.llm

    def get_vte(self) -> VisualEmbeddingTable:
        return self.vte

    def get_wte(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_lm_head(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    @torch.no_grad()
    def re_init_vte(self, mean: float, std: float) -> None:
        """Draw the visual embedding table anew, as training from scratch does with the text embeddings' statistics."""
        self.vte.weight.normal_(mean, std)

    # ── the forward pass ──

    def encode(self, pixel_values: Tensor, progress: Progress | None = None) -> Tensor:
        """Pixels (N, 3, R, R) → embeddings (N, T, D), `vision_batch_size` crops at a time."""
        visual = self.visual_tokenizer
        device = pixel_values.device if visual.device.type == "meta" else visual.device  # meta: kept on disk
        embeds: list[Tensor] = []
        for chunk in pixel_values.split(self.config.vision_batch_size):
            embeds.append(self.vte(visual(chunk.to(device, visual.dtype))))
            if progress is not None:
                progress(sum(map(len, embeds)), len(pixel_values), "looking at pictures")
        return torch.cat(embeds)

    def embed_pictures(
        self, model_inputs: Mapping[str, Any], progress: Progress | None = None, features: Tensor | None = None
    ) -> dict[str, Any]:
        """A batch of the processor with the pictures in the sequence: arguments of `forward`.

        Args:
            features: What `encode` made of the pictures, (N, T, D), in place of their pixels.
        """
        arguments = dict(model_inputs)
        merged = self.merge(
            arguments.pop("input_ids"),
            arguments.pop("attention_mask", None),
            arguments.pop("labels", None),
            arguments.pop("pixel_values", None),
            left_padding=arguments.pop("left_padding", False),
            progress=progress,
            features=features,
        )
        arguments |= {"inputs_embeds": merged.embeds, "attention_mask": merged.mask.long()}
        if merged.labels is not None:
            arguments["labels"] = merged.labels
        return arguments

    def merge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor | None] | None = None,
        left_padding: bool = False,
        progress: Progress | None = None,
        features: Tensor | None = None,
    ) -> Merged:
        """Words and pictures → one sequence; see `forward`, `embed_pictures` and `fusion.merge`."""
        ids = input_ids.to(self.device)
        mask = torch.ones_like(ids).bool() if attention_mask is None else attention_mask.to(self.device).bool()
        placeholders = (ids == ATOM).sum(1).tolist()
        if features is not None:
            check_counts(len(features), sum(placeholders))
            crops, spare = None, None
        else:
            crops, spare = self.crops_of(pixel_values, placeholders)
        words = self.get_input_embeddings()(ids.clamp(min=0))
        if spare is not None:  # seen with weight 0: every parameter gets a gradient, on each machine of a training run
            words = words + 0.0 * self.encode(spare).sum().to(words.device, words.dtype)
        if features is not None:
            embeds = features.to(words.device, words.dtype)
        elif crops is None:
            embeds = words.new_zeros(0, 1, words.shape[-1])
        else:
            embeds = self.encode(crops, progress).to(words.device, words.dtype)
        indicators = self.vte.indicators(words.device).to(words.device, words.dtype)
        merged = merge(
            words,
            ids,
            mask,
            None if labels is None else labels.to(self.device),
            embeds.split(placeholders),
            indicators,
            self.config.multimodal_max_length,
            left_padding,
        )
        if ids.shape[1] + max(placeholders) * (embeds.shape[1] - 1) > self.config.multimodal_max_length:
            self._warn_of_cut(left_padding)
        return merged

    pack = staticmethod(pack)

    def _warn_of_cut(self, left_padding: bool) -> None:
        kept = f"{'last' if left_padding else 'first'} {self.config.multimodal_max_length} positions"
        warnings.warn(
            f"only the {kept} of words and pictures are kept: raise multimodal_max_length, or show fewer pictures",
            stacklevel=4,
        )

    def crops_of(
        self, pixel_values: Tensor | Sequence[Tensor | None] | None, placeholders: list[int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The crops to be shown, row after row, and those that are only there so that every parameter gets a gradient.

        Raises:
            RequestError: as many rows, or crops in one of them, as do not match the placeholders.
        """
        if pixel_values is None or isinstance(pixel_values, Tensor):
            check_counts(0 if pixel_values is None else len(pixel_values), sum(placeholders))
            shown = [] if pixel_values is None else [pixel_values]
            spare = []
        else:
            if len(pixel_values) != len(placeholders):
                raise RequestError(
                    f"pixel_values describes {len(pixel_values)} rows, but input_ids has {len(placeholders)}"
                )
            rows = [(pixels, count) for pixels, count in zip(pixel_values, placeholders, strict=True)]
            spare = [pixels for pixels, count in rows if pixels is not None and not count]
            for row, (pixels, count) in enumerate(rows):
                if count or pixels is None:
                    check_counts(0 if pixels is None else len(pixels), count, f" in row {row}")
            shown = [pixels for pixels, count in rows if pixels is not None and count]
        if not self.training:
            spare = []
        elif not shown and not spare:
            side = self.config.visual_tokenizer_config.backbone_config.image_size
            spare = [torch.zeros(1, 3, side, side)]
        return torch.cat(list(shown)) if shown else None, torch.cat(spare) if spare else None

    @takes_cache_by_either_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | Sequence[Tensor | None] | None = None,
        left_padding: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass over `input_ids` (B, T), which continue `past_key_values` where there are any.

        Args:
            input_ids: Words, and negative ids: −300 for a crop, −301 … −305 for indicators.
            attention_mask: (B, past + T), 0 for padding on either side.
            labels: (B, T), −100 where nothing is learned; they grow with the crops as the ids do.
            pixel_values: One (n, 3, R, R) or None a row; or one (N, 3, R, R), the crops of all rows, row after row. A
                row without placeholders may hold a crop of zeros: it is seen with weight 0 in training, else not.
            left_padding: Pad rows in front, where crops make them different in length.
            inputs_embeds: What `embed_pictures` made of words and pictures, in place of both.

        Raises:
            RequestError: the numbers of pictures and placeholders differ.
        """
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        fresh = input_ids is not None and not past and (self.training or bool((input_ids < 0).any()))
        if input_ids is not None and (fresh or pixel_values is not None):
            behind, here = split_mask(attention_mask, input_ids.shape[1])
            merged = self.merge(input_ids, here, labels, pixel_values, left_padding)
            inputs_embeds, labels, input_ids = merged.embeds, merged.labels, None
            attention_mask = mask_after(behind, merged, past)
        return self.forward_language_model(
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor | None] | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with transformers' machinery: greedy, beams, sampling, streamers. Returns the *new* tokens only.

        As in the authors' code, what the call leaves open is generation_config.json's to say. A setting that is given
        as None, as their program does, means that there is none.
        """
        if input_ids is None:
            raise RequestError("generate needs input_ids; make them with preprocess_inputs or the processor")
        kwargs.pop("left_padding", None)
        merged = self.merge(input_ids, attention_mask, None, pixel_values, left_padding=True)
        return super().generate(inputs_embeds=merged.embeds, attention_mask=merged.mask.long(), **kwargs)


def check_counts(num_pictures: int, num_placeholders: int, where: str = "") -> None:
    """The seam of the modalities: as many pictures as placeholders, or an error with both numbers."""
    if num_pictures != num_placeholders:
        raise RequestError(
            f"{num_pictures} pictures for {num_placeholders} placeholders{where}; "
            "pixel_values and input_ids must come from the same preprocess_inputs or processor call"
        )
