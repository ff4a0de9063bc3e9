"""MGM from pixels to logits.

    pixels (N, 3, S, S) ─┬─ small views (N, v, 3, R, R) ── CLIP ── Q (N, v, P, C) ──┬── mining ── (N, T, C), T = v · P
                         └─ ConvNeXt ── F (N, Ca, S/4, S/4) ────────────────────────┘      │
                                                                       projector ── embeddings (N, T, D)
                                                                                           │
    ids (B, L) ── embeddings (B, L, D), each placeholder replaced by a picture's T embeddings ┘
                                      └── language model ── logits (B, L + N·(T − 1), vocabulary)

A picture is one view, or in HD five: its quarters and the whole of it (`fusion.py`).
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
from transformers import (
    CLIPVisionModel,
    GemmaForCausalLM,
    GenerationMixin,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.convnext.modeling_convnext import ConvNextLayer

from longview.errors import CheckpointError, RequestError
from longview.media import Progress
from longview.models import checkpoint
from longview.models.base import Footprint, PicturesInSequence, count_parameters
from longview.models.mgm import convert
from longview.models.mgm.config import MGMConfig
from longview.models.mgm.fusion import PatchInfoMining, look_closely, small_views
from longview.models.mgm.processor import PLACEHOLDER, MGMProcessor
from longview.models.mgm.towers import HighResolutionTower, coarse_features
from longview.models.packing import pack
from longview.models.sequence import Merged, mask_after, merge, split_mask
from longview.models.transformers_seams import CACHE_NAMES, takes_cache_by_either_name

LANGUAGE_MODELS: dict[str, Any] = {
    "llama": LlamaForCausalLM,
    "gemma": GemmaForCausalLM,
    "mixtral": MixtralForCausalLM,
    "mistral": MistralForCausalLM,
}


class MGMModel(PicturesInSequence, PreTrainedModel, GenerationMixin):
    """A language model that reads pictures as few words, each of which has looked closely. Opens official folders."""

    config_class = MGMConfig
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
    """What a recipe can name; a parameter belongs to the first part one of whose names occurs in its own."""

    def __init__(self, config: MGMConfig) -> None:
        super().__init__(config)
        coarse, fine = config.vision_config.hidden_size, sum(config.vision_aux_config.hidden_sizes)
        self.language_model = LANGUAGE_MODELS[config.language](config.text_config)
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.vision_tower_aux = HighResolutionTower(config.vision_aux_config)
        self.mining = PatchInfoMining(coarse, fine)
        self.projector = make_projector(config)
        self._processor: MGMProcessor | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConvNextLayer) and module.layer_scale_parameter is not None:
            init.constant_(module.layer_scale_parameter, self.config.vision_aux_config.layer_scale_init_value)

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
        """Open an official or our own folder, or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments.

        Args:
            vision_tower, vision_tower_aux: Folders of the towers, in place of those that config.json names;
                "checkpoint" takes the checkpoint's own copy of the high-resolution tower.
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
        arguments = checkpoint.safe_arguments(kwargs)
        first_stage = convert.stage_one_file(folder)
        if first_stage is not None:
            return cls._around(model_base, config, first_stage, arguments)
        if model_base is not None:
            raise CheckpointError(f"{folder} holds a whole model; leave model_base {str(model_base)!r} out")
        cls.check(config, checkpoint.tensor_shapes(folder), folder)
        model = super().from_pretrained(folder, *args, config=config, **arguments)
        if config.tied:  # transformers leaves a head that differs from the embeddings as it is
            model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
        if convert.wants_file(config):
            model.vision_tower_aux.load_state_dict(convert.fine_state(config, folder))
        return checkpoint.with_device_map(model, arguments)

    @classmethod
    def _around(
        cls, base: str | PathLike | None, config: MGMConfig, file: Path, arguments: Mapping[str, Any]
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
        cls.check(config, {**checkpoint.tensor_shapes(folder), **found}, file.parent)
        language = LANGUAGE_MODELS[config.language].from_pretrained(folder, config=text, **arguments)
        with torch.device("meta"):
            model = cls(config)
        model.language_model = language
        place = language.get_input_embeddings().weight
        state = {convert.ours(name): tensor for name, tensor in tensors.items()}
        if convert.wants_file(config):
            state |= {f"vision_tower_aux.{name}": t for name, t in convert.fine_state(config, file.parent).items()}
        for name, part in model.named_children():
            if name == "language_model":
                continue
            part.to_empty(device=place.device).to(place.dtype)
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            part.load_state_dict(own, strict=False)
        positions = model.vision_tower.embeddings
        positions.position_ids.copy_(torch.arange(positions.num_positions))
        model.config._name_or_path = str(file.parent)
        return checkpoint.with_device_map(model.eval(), arguments)

    @classmethod
    def check(cls, config: MGMConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Settle a config by the tensors of its checkpoint, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """
        convert.settle(config, shapes, folder)
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
            passing_bytes=positions * text.hidden_size * size + 3 * config.image_size_aux**2 * 4,
            token_bytes=token_bytes,
            working_bytes=pictures_at_a_time(config) * (widths + mined) * size,
            context_length=config.max_position_embeddings,
            picture_positions=positions,
        )

    # ── plumbing transformers asks for ──

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def plain_language_model(self) -> Any:
        """The same weights without any part for pictures: a stock language model."""
        return self.language_model

    # ── the official interface ──

    @property
    def processor(self) -> MGMProcessor:
        """The processor of the folder that the model was opened from."""
        if self._processor is None:
            if not self.name_or_path:
                raise RequestError("a model made from a config alone has no tokenizer; give it one: init_processor(…)")
            self._processor = MGMProcessor.from_pretrained(self.name_or_path, config=self.config)
        return self._processor

    def init_processor(self, tokenizer: Any) -> MGMProcessor:
        """A processor around a tokenizer; the official calls use it from now on."""
        self._processor = MGMProcessor(tokenizer, self.config)
        return self._processor

    def get_vision_tower(self) -> CLIPVisionModel:
        return self.vision_tower

    def get_vision_tower_aux(self) -> HighResolutionTower:
        return self.vision_tower_aux

    # ── the forward pass ──

    def encode(self, pixel_values: Tensor, progress: Progress | None = None) -> Tensor:
        """Pixels (N, 3, S, S) → embeddings (N, T, D), a few pictures at a time."""
        embeds: list[Tensor] = []
        for chunk in pixel_values.split(pictures_at_a_time(self.config)):
            embeds.append(
                self.encode_images(
                    small_views(chunk, self.config.vision_config.image_size, self.config.image_grid), chunk
                )
            )
            if progress is not None:
                progress(sum(map(len, embeds)), len(pixel_values), "looking at pictures")
        return torch.cat(embeds)

    def encode_images(self, images: Tensor, images_aux: Tensor | None) -> Tensor:
        """The authors' two sizes of the same pictures → embeddings (n, T, D).

        Args:
            images: (n, 3, R, R), or in HD (n, views, 3, R, R), the crops row after row and the whole picture last.
            images_aux: (n, 3, S, S); None: no picture is looked at closely.
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
        coarse = coarse.unflatten(0, images.shape[:2])  # (n, views, P, C)
        if images_aux is None:
            seen = torch.cat([coarse[:, -1:], coarse[:, :-1]], dim=1).flatten(1, 2)
        else:
            stem = self.vision_tower_aux.embeddings.patch_embeddings.weight
            fine = self.vision_tower_aux(images_aux.to(stem.device, stem.dtype))
            seen = look_closely(self.mining, coarse, fine.to(coarse.device), self.config.image_grid)
        return self.projector(seen)

    def embed_pictures(
        self, model_inputs: Mapping[str, Any], progress: Progress | None = None, features: Tensor | None = None
    ) -> dict[str, Any]:
        """A batch of the processor with the pictures in the sequence: arguments of `forward`.

        Args:
            features: What `encode` made of the pictures, (N, T, D), in place of their pixels.
        """
        arguments = dict(model_inputs)
        ids, pixels = arguments.pop("input_ids"), arguments.pop("pixel_values", None)
        placeholders = (ids == PLACEHOLDER).sum(1).tolist()
        shown = pixels if features is None else features
        check_counts(0 if shown is None else len(shown), sum(placeholders))
        if features is None and pixels is not None:
            features = self.encode(pixels, progress)
        merged = self.merge(
            ids,
            arguments.pop("attention_mask", None),
            arguments.pop("labels", None),
            None if features is None else features.split(placeholders),
            left_padding=arguments.pop("left_padding", False),
        )
        arguments |= {"inputs_embeds": merged.embeds, "attention_mask": merged.mask.long()}
        if merged.labels is not None:
            arguments["labels"] = merged.labels
        return arguments

    def merge(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        pictures: Sequence[Tensor] | None,
        limit: int | None = None,
        left_padding: bool = False,
    ) -> Merged:
        """Words and pictures, one (n, T, D) a row, → one sequence; see `sequence.merge` for the other arguments."""
        ids = input_ids.to(self.device)
        mask = torch.ones_like(ids).bool() if attention_mask is None else attention_mask.to(self.device).bool()
        table: Any = self.get_input_embeddings()
        words = table(ids.clamp(min=0))
        if pictures is None:
            pictures = [words.new_zeros(0, 1, words.shape[-1])] * len(ids)
        # Gemma's table scales what it embeds; the model was trained with pictures scaled as well
        scale = table.embed_scale.to(words.dtype) if hasattr(table, "embed_scale") else 1.0
        placed = [shown.to(words.device, words.dtype) * scale for shown in pictures]
        labels = None if labels is None else labels.to(self.device)
        return merge(words, ids == PLACEHOLDER, mask, labels, placed, slice(limit), left_padding, compact=True)

    pack = staticmethod(pack)

    def pictures_of(
        self, input_ids: Tensor, images: Tensor | Sequence[Tensor], images_aux: Tensor | Sequence[Tensor] | None
    ) -> list[Tensor]:
        """The authors' pictures as embeddings, one (n, T, D) a row.

        Raises:
            RequestError: as many of them as do not match the placeholders.
        """
        images = images if isinstance(images, Tensor) else torch.stack(list(images))
        if images_aux is not None and not isinstance(images_aux, Tensor):
            images_aux = torch.stack(list(images_aux))
        placeholders = (input_ids == PLACEHOLDER).sum(1).tolist()
        num_pictures, slots = len(images), [max(1, count) for count in placeholders]
        if num_pictures == sum(placeholders):
            slots = placeholders
        elif num_pictures != sum(slots):  # in the authors' batches, a row without pictures holds one of zeros
            check_counts(num_pictures, sum(placeholders))
        if images_aux is not None and len(images_aux) != num_pictures:
            raise RequestError(f"images holds {num_pictures} pictures, images_aux {len(images_aux)}; give both sizes")
        step = pictures_at_a_time(self.config)
        fine = images_aux.split(step) if images_aux is not None else [None] * -(-num_pictures // step)
        embeds = [self.encode_images(small, large) for small, large in zip(images.split(step), fine, strict=True)]
        rows = torch.cat(embeds).split(slots)
        return [row[:count] for row, count in zip(rows, placeholders, strict=True)]

    def _merged(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        pixel_values: Tensor | None,
        images: Tensor | Sequence[Tensor] | None,
        images_aux: Tensor | Sequence[Tensor] | None,
        left_padding: bool,
    ) -> Merged:
        """Words and pictures of either way in as one sequence; the authors' way cuts what is too long."""
        counts = (input_ids == PLACEHOLDER).sum(1).tolist()
        if images is None:
            check_counts(0 if pixel_values is None else len(pixel_values), sum(counts))
            pictures = None if pixel_values is None else self.encode(pixel_values).split(counts)
            return self.merge(input_ids, attention_mask, labels, pictures, None, left_padding)
        limit = self.config.tokenizer_model_max_length
        longest = input_ids.shape[1] + max(counts) * (self.config.patches_per_picture - 1)
        if limit is not None and longest > limit:
            warnings.warn(
                f"only {limit} of {longest} positions of words and pictures are kept: raise the config's "
                "tokenizer_model_max_length, or show fewer pictures",
                stacklevel=4,
            )
        pictures = self.pictures_of(input_ids, images, images_aux)
        return self.merge(input_ids, attention_mask, labels, pictures, limit, left_padding)

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
        pixel_values: Tensor | None = None,
        left_padding: bool = False,
        images: Tensor | Sequence[Tensor] | None = None,
        images_aux: Tensor | Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass over `input_ids` (B, T), which continue `past_key_values` where there are any.

        Args:
            input_ids: Words, and −200 for each picture.
            attention_mask: (B, past + T), 0 for padding on either side.
            labels: (B, T), −100 where nothing is learned; they grow with the pictures as the ids do.
            pixel_values: (N, 3, S, S), the pictures of all rows, row after row.
            images, images_aux: The authors' way to give the same in two sizes; see `encode_images`. A row without
                placeholders may hold one picture, which is not shown. Rows are cut at `tokenizer_model_max_length`.
            left_padding: Pad rows in front, where pictures make them different in length.
            inputs_embeds: What `embed_pictures` made of words and pictures, in place of both.

        Raises:
            RequestError: the numbers of pictures and placeholders differ.
        """
        shows = pixel_values is not None or images is not None
        if input_ids is not None and (shows or bool((input_ids == PLACEHOLDER).any())):
            behind, here = split_mask(attention_mask, input_ids.shape[1])
            left = left_padding or (images is not None and self.config.tokenizer_padding_side == "left")
            merged = self._merged(input_ids, here, labels, pixel_values, images, images_aux, left)
            inputs_embeds, labels, input_ids = merged.embeds, merged.labels, None
            past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
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
        inputs: Tensor | None = None,
        images: Tensor | Sequence[Tensor] | None = None,
        images_aux: Tensor | Sequence[Tensor] | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with transformers' machinery: greedy, beams, sampling, streamers. Returns the *new* tokens only.

        What the call leaves open is generation_config.json's to say.
        """
        ids = input_ids if input_ids is not None else inputs
        if ids is None:
            raise RequestError("generate needs input_ids; make them with the processor")
        kwargs.pop("left_padding", None)
        merged = self._merged(ids, attention_mask, None, pixel_values, images, images_aux, left_padding=True)
        return super().generate(inputs_embeds=merged.embeds, attention_mask=merged.mask.long(), **kwargs)


register_checkpoint_conversion_mapping(MGMModel.__name__, convert.renamings(), overwrite=True)


def make_projector(config: MGMConfig) -> nn.Module:
    """What leads from the low-resolution tower's width to the language model's."""
    assert config.projector_layers is not None
    layers: list[nn.Module] = [nn.Linear(config.vision_config.hidden_size, config.hidden_size)]
    if config.mm_projector_type == "linear":
        return layers[0]
    for _ in range(1, config.projector_layers):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)


def pictures_at_a_time(config: MGMConfig) -> int:
    """How many pictures the towers read at a time."""
    return max(1, config.vision_batch_size // config.image_grid**2)


def check_counts(num_pictures: int, num_placeholders: int) -> None:
    """The seam of the modalities: as many pictures as placeholders, or an error with both numbers."""
    if num_pictures != num_placeholders:
        raise RequestError(
            f"{num_pictures} pictures for {num_placeholders} placeholders; "
            "pixel_values or images and input_ids must come from the same processor call"
        )
