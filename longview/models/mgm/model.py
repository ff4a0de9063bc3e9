"""MGM from pixels to logits.

    pixels (N, 3, S, S) ─┬─ small views (N, v, 3, R, R) ── CLIP ── Q (N, v, p, C) ──┬── mining ── (N, P, C), P = v · p
                         └─ ConvNeXt ── F (N, Ca, S/4, S/4) ────────────────────────┘      │
                                                                       projector ── embeddings (N, P, D)
                                                                                           │
    ids (B, T) ── embeddings (B, T, D) ── each placeholder replaced by a picture's P embeddings ┘
                                      └── language model ── logits (B, L, vocabulary), L = T + n·(P − 1)

A picture is one view, or in HD five: its quarters and the whole of it (`fusion.py`). `forward`, `generate` and
`embed_pictures` are those of `PicturesInSequence`; the authors' names are in `compat.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    GemmaForCausalLM,
    GenerationMixin,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
)

from longview.answer_evidence import Detail
from longview.errors import CheckpointError, RequestError
from longview.messages import Progress
from longview.models import checkpoint, tied_head
from longview.models.arguments import check_kept, configured, opened
from longview.models.base import Footprint, count_parameters
from longview.models.mgm import convert
from longview.models.mgm.compat import OfficialModelCalls
from longview.models.mgm.config import MGMConfig
from longview.models.mgm.fusion import PatchInfoMining, mine_views, small_views
from longview.models.mgm.processor import PLACEHOLDER, MGMProcessor
from longview.models.mgm.towers import HighResolutionTower, coarse_features
from longview.models.sequence import Merged, merge
from longview.models.stray import WithoutStrayAdapters, check_quantization
from longview.models.transformers_seams import CACHE_NAMES, ConvNextLayer, register_checkpoint_conversion_mapping

LANGUAGE_MODELS: dict[str, Any] = {
    "llama": LlamaForCausalLM,
    "gemma": GemmaForCausalLM,
    "mixtral": MixtralForCausalLM,
    "mistral": MistralForCausalLM,
}


class MGMModel(WithoutStrayAdapters, OfficialModelCalls, PreTrainedModel, GenerationMixin):
    """A language model whose pictures are few tokens, each of which has mined fine features. Opens official folders."""

    config_class = MGMConfig
    processor_class = MGMProcessor
    placeholder = PLACEHOLDER
    detail: Detail = "mined"
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [  # noqa: RUF012
        *("LlamaDecoderLayer", "GemmaDecoderLayer", "MixtralDecoderLayer", "MistralDecoderLayer"),
        *("CLIPEncoderLayer", "CLIPVisionEmbeddings", "ConvNextStage", "PatchInfoMining"),
    ]
    _skip_keys_device_placement = [*CACHE_NAMES]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    parts = {  # noqa: RUF012
        "vision": ("vision_tower.", "vision_tower_aux."),
        "connector": ("mining.", "projector."),
        "language": ("language_model.",),
    }

    def __init__(self, config: MGMConfig) -> None:
        super().__init__(config)
        coarse, fine = config.vision_config.hidden_size, sum(config.vision_aux_config.hidden_sizes)
        self.language_model = LANGUAGE_MODELS[config.language](config.text_config)
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.vision_tower_aux = HighResolutionTower(config.vision_aux_config)
        self.mining = PatchInfoMining(coarse, fine)
        self.projector = make_projector(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConvNextLayer) and module.layer_scale_parameter is not None:
            nn.init.constant_(module.layer_scale_parameter, self.config.vision_aux_config.layer_scale_init_value)

    # ── vision and fusion; the language model follows in `PicturesInSequence.forward` ──

    def encode(
        self, pixel_values: Tensor, progress: Progress | None = None, details: list[Tensor] | None = None
    ) -> Tensor:
        """Pixels (N, 3, S, S) → embeddings (N, P, D), a few pictures at a time.

        Args:
            details: Gets how each patch weighs the fine ones that it mines, (n, P, m²).
        """
        side, grid = self.config.vision_config.image_size, self.config.image_grid
        embeds: list[Tensor] = []
        for chunk in pixel_values.split(self.config.pictures_per_chunk):
            embeds.append(self.encode_images(small_views(chunk, side, grid), chunk, details))
            if progress is not None:
                progress(sum(map(len, embeds)), len(pixel_values), "encoding pictures")
        return torch.cat(embeds)

    def encode_images(self, images: Tensor, images_aux: Tensor | None, details: list[Tensor] | None = None) -> Tensor:
        """Two sizes of the same pictures → embeddings (n, P, D).

        Args:
            images: (n, 3, R, R), or in HD (n, views, 3, R, R), the crops row after row and the whole picture last.
            images_aux: (n, 3, S, S); None: nothing is mined.
        """
        views = self.config.views
        if self.config.image_grid == 1 and images.dim() == 4:
            images = images.unsqueeze(1)
        if images.dim() != 5 or images.shape[1] != views:
            form = "(n, 3, R, R)" if views == 1 else f"(n, {views}, 3, R, R), the whole picture last"
            raise RequestError(f"images has the shape {list(images.shape)}; this model takes {form}")
        first = self.vision_tower.embeddings.patch_embedding.weight
        pixels = images.flatten(0, 1).to(first.device, first.dtype)
        coarse = coarse_features(self.vision_tower, pixels, self.config.mm_vision_select_layer)
        coarse = coarse.unflatten(0, images.shape[:2])  # (n, views, p, C)
        if images_aux is None:
            features = torch.cat([coarse[:, -1:], coarse[:, :-1]], dim=1).flatten(1, 2)
        else:
            stem = self.vision_tower_aux.embeddings.patch_embeddings.weight
            fine = self.vision_tower_aux(images_aux.to(stem.device, stem.dtype))
            features = mine_views(self.mining, coarse, fine.to(coarse.device), self.config.image_grid, details)
        return self.projector(features)

    def merge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None,
        features: Sequence[Tensor] | None,
        left_padding: bool = False,
        limit: int | None = None,
    ) -> Merged:
        """Text tokens and each row's pictures (n, P, D) as one sequence, of `limit` positions at most."""
        table: Any = self.get_input_embeddings()
        tokens = table(input_ids.clamp(min=0))
        if features is None:
            features = [tokens.new_zeros(0, 1, tokens.shape[-1])] * len(tokens)
        # Gemma's table scales what it embeds, and the model was trained with pictures scaled as well
        scale = table.embed_scale.to(tokens.dtype) if hasattr(table, "embed_scale") else 1.0
        pictures = [own.to(tokens.device, tokens.dtype) * scale for own in features]
        placeholders = input_ids == PLACEHOLDER
        return merge(tokens, placeholders, attention_mask, labels, pictures, slice(limit), left_padding, compact=True)

    # ── opening ──

    @classmethod
    def from_pretrained(
        cls,
        name: str | PathLike,
        *args: Any,
        config: Any = None,
        vision_tower: str | PathLike | None = None,
        vision_tower_aux: str | PathLike | None = None,
        model_base: str | PathLike | None = None,
        **kwargs: Any,
    ) -> MGMModel:
        """Open an official or saved folder, or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments.

        Args:
            vision_tower, vision_tower_aux: Folders of the towers, in place of those that config.json names;
                "checkpoint" takes the copy of the high-resolution tower that the checkpoint holds.
            model_base: The language model of a folder that holds a first stage only.

        Raises:
            CheckpointError: something about the folder or a tower is missing, unsafe or of the wrong shape; says what.
        """
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        if not isinstance(config, MGMConfig):
            config = checkpoint.open_config(MGMConfig, folder)
        for tower, path in (("vision_tower", vision_tower), ("vision_tower_aux", vision_tower_aux)):
            if path is not None:
                config.given[tower] = str(path)
                config.described.discard(tower)
        config, given, kwargs = configured(config, kwargs)
        arguments = checkpoint.safe_arguments(kwargs)
        first_stage = convert.stage_one_file(folder)
        if first_stage is not None:
            return cls._from_first_stage(model_base, config, first_stage, arguments, given)
        if model_base is not None:
            raise CheckpointError(f"{folder} holds a whole model; leave model_base {str(model_base)!r} out")
        cls.check(config, checkpoint.tensor_shapes(folder), folder)
        check_kept(config, given)
        model, *info = opened(super().from_pretrained, folder, *args, config=config, **arguments)
        if config.tied:
            tied_head.tie(model.language_model, folder)
        if convert.uses_tower_file(config):
            model.vision_tower_aux.load_state_dict(convert.high_resolution_state(config, folder))
        return checkpoint.with_device_map(model, arguments, *info)

    @classmethod
    def _from_first_stage(
        cls,
        base: str | PathLike | None,
        config: MGMConfig,
        file: Path,
        arguments: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> MGMModel:
        """A first stage (towers, mining, projector) around the language model that it was trained with."""
        if base is None:
            raise CheckpointError(
                f"{file.parent} holds the first stage of training only ({file.name}); name the language model it was "
                "trained with: --model-base FOLDER-OR-ID, model_base= in Python"
            )
        tensors = {
            name if name.startswith("model.") else f"model.{name}": tensor
            for name, tensor in checkpoint.read_tensors(file).items()
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        folder = checkpoint.resolve(str(base))
        text = checkpoint.open_config(type(config.text_config), folder)
        config.text_config, config.hidden_size, config.tokenizer_folder = text, text.hidden_size, str(folder)
        config, _, _ = configured(config, given)
        text = config.text_config
        cls.check(config, {**checkpoint.tensor_shapes(folder), **found}, file.parent)
        check_kept(config, given)
        language, *info = opened(LANGUAGE_MODELS[config.language].from_pretrained, folder, config=text, **arguments)
        if text.tie_word_embeddings:
            tied_head.tie(language, folder)
        with torch.device("meta"):
            model = cls(config)
        model.language_model = language
        table = language.get_input_embeddings().weight
        state = {convert.ours(name): tensor for name, tensor in tensors.items()}
        if convert.uses_tower_file(config):
            state |= {
                f"vision_tower_aux.{name}": t for name, t in convert.high_resolution_state(config, file.parent).items()
            }
        for name, component in model.named_children():
            if name == "language_model":
                continue
            component.to_empty(device=table.device).to(table.dtype)
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            component.load_state_dict(own, strict=False)
        positions = model.vision_tower.embeddings
        positions.position_ids.copy_(torch.arange(positions.num_positions))
        model.config._name_or_path = str(file.parent)
        return checkpoint.with_device_map(model.eval(), arguments, *info)

    @classmethod
    def check(cls, config: MGMConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Complete a config by the tensors of its checkpoint, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """
        check_quantization(shapes, folder)
        convert.complete(config, shapes, folder)
        expected = convert.expected_shapes(config, checkpoint.shapes_of(cls, config, folder))
        checkpoint.check_shapes(expected, shapes, folder, optional=convert.optional(config))
        checkpoint.check_generation_config(folder)

    @classmethod
    def footprint(cls, config: MGMConfig, dtype: torch.dtype) -> Footprint:
        """What a model of this config costs in memory in a dtype; nothing is allocated."""
        parameters = count_parameters(cls, config)
        text, vision, size = config.text_config, config.vision_config, dtype.itemsize
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        token_bytes = 2 * text.num_key_value_heads * head * size * text.num_hidden_layers
        positions, fine = config.patches_per_picture, (config.image_size_aux // 4) ** 2
        # the fine features as they are, cut into windows and normalised for keys and values; and these, of one view
        widths = 4 * sum(config.vision_aux_config.hidden_sizes) * fine
        mined = 4 * vision.hidden_size * fine // config.image_grid**2
        return Footprint(
            family="mgm",
            release=config.release,
            parameters=parameters,
            weight_bytes=parameters * size,
            patches_per_picture=positions,
            picture_bytes=positions * token_bytes,
            transient_bytes=positions * text.hidden_size * size + 3 * config.image_size_aux**2 * 4,
            token_bytes=token_bytes,
            working_bytes=config.pictures_per_chunk * (widths + mined) * size,
            context_length=config.max_position_embeddings,
            picture_positions=positions,
        )

    # ── what transformers and the contract ask for ──

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def plain_language_model(self) -> Any:
        """The same weights without any component for pictures: a stock language model."""
        return self.language_model


register_checkpoint_conversion_mapping(MGMModel.__name__, convert.renamings(), overwrite=True)


def make_projector(config: MGMConfig) -> nn.Module:
    """Linear layers from the low-resolution tower's width to the language model's."""
    assert config.projector_layers is not None
    layers: list[nn.Module] = [nn.Linear(config.vision_config.hidden_size, config.hidden_size)]
    if config.mm_projector_type == "linear":
        return layers[0]
    for _ in range(1, config.projector_layers):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
