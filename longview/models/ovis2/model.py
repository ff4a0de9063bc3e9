"""Ovis2 from pixels to logits.

    pixels (N, 3, R, R) ── tower ── head ── visual tokens (N, P, V) ── table ── embeddings (N, P, D)
                                                                                        │
    ids (B, T) ── embeddings (B, T, D) ── each placeholder replaced by a crop's P embeddings ┘
                                             └── Qwen2 ── lm_head ── logits (B, L, vocabulary), L = T + n·(P − 1)

`forward`, `generate` and `embed_pictures` are those of `PicturesInSequence`; the authors' names are in `compat.py`.
Attribute names are those of the official checkpoints, so no weight is ever renamed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen2ForCausalLM

from longview.answer_evidence import Detail
from longview.messages import Progress
from longview.models import checkpoint, tied_head
from longview.models.arguments import check_kept, configured, opened
from longview.models.base import Footprint, count_parameters
from longview.models.ovis2 import convert, fusion, port
from longview.models.ovis2.compat import OfficialModelCalls
from longview.models.ovis2.config import OvisConfig
from longview.models.ovis2.fusion import PLACEHOLDER, VisualEmbeddingTable, VisualTokenizer
from longview.models.ovis2.processor import Ovis2Processor
from longview.models.ovis2.towers import make_backbone
from longview.models.sequence import Merged
from longview.models.stray import WithoutStrayAdapters, check_quantization
from longview.models.transformers_seams import CACHE_NAMES


class Ovis2Model(WithoutStrayAdapters, OfficialModelCalls, PreTrainedModel, GenerationMixin):
    """A language model whose pictures are embedded as text is: by the rows of a table.

    Opens official folders, and those of transformers' own port.
    """

    config_class = OvisConfig
    processor_class = Ovis2Processor
    placeholder = PLACEHOLDER
    detail: Detail = "words"
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

    def __init__(self, config: OvisConfig) -> None:
        super().__init__(config)
        visual = config.visual_tokenizer_config
        self.llm = Qwen2ForCausalLM(config.llm_config)
        self.visual_tokenizer = VisualTokenizer(visual, make_backbone(visual))
        self.vte = VisualEmbeddingTable(visual.vocab_size, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VisualEmbeddingTable):
            nn.init.normal_(module.weight)

    # ── vision and fusion; the language model follows in `PicturesInSequence.forward` ──

    def encode(
        self, pixel_values: Tensor, progress: Progress | None = None, details: list[Tensor] | None = None
    ) -> Tensor:
        """Pixels (N, 3, R, R) → embeddings (N, P, D), `vision_batch_size` crops at a time.

        Args:
            details: Gets the likeliest visual words and their probabilities, (n, P, k, 2).
        """
        visual = self.visual_tokenizer
        device = pixel_values.device if visual.device.type == "meta" else visual.device  # meta: kept on disk
        embeds: list[Tensor] = []
        for chunk in pixel_values.split(self.config.vision_batch_size):
            tokens = visual(chunk.to(device, visual.dtype))  # (n, P, V)
            embeds.append(self.vte(tokens))
            if details is not None:
                details.append(fusion.likeliest_words(tokens))
            if progress is not None:
                progress(sum(map(len, embeds)), len(pixel_values), "encoding pictures")
        return torch.cat(embeds)

    def has_pictures(self, input_ids: Tensor) -> bool:
        """Crops or indicators; and in training always, because `merge` then gives every parameter a gradient."""
        return self.training or bool((input_ids < 0).any())

    def merge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None,
        features: Sequence[Tensor] | None,
        left_padding: bool = False,
    ) -> Merged:
        """Text tokens, indicators and each row's crops (n, P, D) as one sequence; see `fusion.merge`."""
        tokens = self.get_input_embeddings()(input_ids.clamp(min=0))
        if features is None:
            if self.training:  # with weight 0: every parameter gets a gradient, in each process of a distributed run
                blank = torch.zeros(1, 3, self.config.picture_size, self.config.picture_size)
                tokens = tokens + 0.0 * self.encode(blank).sum().to(tokens.device, tokens.dtype)
            features = [tokens.new_zeros(0, 1, tokens.shape[-1])] * len(tokens)
        merged = fusion.merge(
            tokens,
            input_ids,
            attention_mask,
            labels,
            [crops.to(tokens.device, tokens.dtype) for crops in features],
            self.vte.indicators(tokens.device).to(tokens.device, tokens.dtype),
            self.config.multimodal_max_length,
            left_padding,
        )
        longest = input_ids.shape[1] + max(map(len, features)) * (features[0].shape[1] - 1)
        if longest > self.config.multimodal_max_length:
            kept = f"{'last' if left_padding else 'first'} {self.config.multimodal_max_length}"
            warnings.warn(
                f"only the {kept} of {longest} positions of text and pictures are kept: raise multimodal_max_length, "
                "or give fewer pictures",
                stacklevel=5,
            )
        return merged

    # ── opening ──

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike,
        *args: Any,
        config: Any = None,
        llm_attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> Ovis2Model:
        """Open an official or saved folder, or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments.

        Args:
            llm_attn_implementation: The language model's, as a field of the authors' config; `attn_implementation` is
                the other parts', too.

        Raises:
            CheckpointError: something about the folder is missing, unsafe or of the wrong shape; says what.
        """
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        shapes = checkpoint.tensor_shapes(folder)
        if not isinstance(config, OvisConfig):
            config = checkpoint.open_config(OvisConfig, folder)
        if llm_attn_implementation is not None:
            whole = kwargs.get("attn_implementation")
            others = whole if isinstance(whole, Mapping) else {} if whole is None else {"": whole}
            kwargs["attn_implementation"] = {**others, "llm_config": llm_attn_implementation}
        config, given, kwargs = configured(config, kwargs)
        cls.check(config, shapes, folder)
        check_kept(config, given)
        arguments = checkpoint.safe_arguments(kwargs)
        stored = port.stored(folder) if port.names_in(shapes) else {}
        official = None if stored else folder
        model, *info = opened(super().from_pretrained, official, *args, config=config, **arguments, **stored)
        if model.generation_config.eos_token_id is None:  # without generation_config.json, only the top level is read
            model.generation_config.eos_token_id = config.llm_config.eos_token_id
        if config.tied:
            tied_head.tie(model.llm, folder)
        return checkpoint.with_device_map(model, arguments, *info)

    @classmethod
    def check(cls, config: OvisConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Complete a config by the tensors of its checkpoint, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """
        shapes = port.official_shapes(shapes)
        check_quantization(shapes, folder, opened=("gptq",))
        convert.complete(config, shapes, folder)
        convert.check_quantisation(config, shapes, folder)
        expected = convert.expected_shapes(checkpoint.shapes_of(cls, config, folder), shapes)
        checkpoint.check_shapes(expected, shapes, folder, optional=convert.optional(config))
        checkpoint.check_generation_config(folder)

    @classmethod
    def footprint(cls, config: OvisConfig, dtype: torch.dtype) -> Footprint:
        """What a model of this config costs in memory in a dtype; nothing is allocated."""
        parameters = count_parameters(cls, config)
        text, visual, size = config.llm_config, config.visual_tokenizer_config, dtype.itemsize
        tower, positions = visual.backbone_config, config.patches_per_picture
        head = text.hidden_size // text.num_attention_heads
        token_bytes = 2 * text.num_key_value_heads * head * size * text.num_hidden_layers
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
            transient_bytes=positions * text.hidden_size * size + 3 * tower.image_size**2 * 4,
            token_bytes=token_bytes,
            working_bytes=config.vision_batch_size * widest * size,
            context_length=config.max_position_embeddings,
            picture_positions=positions,
        )

    # ── what transformers and the contract ask for ──

    @property
    def language_model(self) -> Qwen2ForCausalLM:
        """The language model, under the name every family has for it."""
        return self.llm

    def plain_language_model(self) -> Qwen2ForCausalLM:
        """The same weights without any component for pictures: stock Qwen2."""
        return self.llm

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()
