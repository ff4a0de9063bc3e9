"""mPLUG-Owl3 from pixels to logits, for all three releases.

    pixels (N, 3, R, R) ── SigLIP, all blocks but the last ── vision2text_model ── features (N, P, D)
                                                                                        │ hung in a VisualKVCache
    ids (B, T) ── embeddings ── Qwen2 blocks; in the hyper layers words look at pictures ┘ ── lm_head ── (B, T, V)

Attribute names are those of the official checkpoints, so no weight is ever renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from longview.errors import RequestError
from longview.media import Progress
from longview.models import checkpoint
from longview.models.base import Footprint, count_parameters
from longview.models.owl3 import convert
from longview.models.owl3.config import Owl3Config
from longview.models.owl3.fusion import BLOCK_KEYS, SCORES_BYTES, HyperAttention, HyperDecoderLayer, VisualKVCache
from longview.models.owl3.processor import Owl3Processor, placeholder_starts
from longview.models.packing import borders, pack
from longview.models.sequence import check_counts, pad_chunks, positions_of, slice_positions
from longview.models.transformers_seams import CACHE_NAME, CACHE_NAMES, takes_cache_by_either_name

GREEDY = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
"""What `generate` starts from. Spelt out, or transformers fills in the sampling of generation_config.json."""


class Owl3Model(PreTrainedModel, GenerationMixin):
    """A language model that looks at pictures inside a few of its blocks.

    Opens official folders (`from_pretrained`); which release a checkpoint is, its tensors say.
    """

    config_class = Owl3Config
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

    def __init__(self, config: Owl3Config) -> None:
        super().__init__(config)
        self.vision_model = SiglipVisionModel(config.vision_config)
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
        """Open an official or our own folder, or a hub id; takes `PreTrainedModel.from_pretrained`'s arguments.

        Raises:
            CheckpointError: something about the folder is missing, unsafe or of the wrong shape; says what.
        """
        folder = checkpoint.resolve(str(name), revision=kwargs.pop("revision", None))
        shapes = checkpoint.tensor_shapes(folder)
        if not isinstance(config, Owl3Config):
            config = checkpoint.open_config(Owl3Config, folder)
        cls.check(config, shapes, folder)
        arguments = checkpoint.safe_arguments(kwargs)
        model = super().from_pretrained(folder, *args, config=config, **arguments)
        return checkpoint.with_device_map(model, arguments)

    @classmethod
    def check(cls, config: Owl3Config, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Settle a config by the tensors of its checkpoint, and make sure that they belong together.

        Raises:
            CheckpointError: they do not.
        """
        convert.settle(config, shapes, folder)
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
        chunk_tokens = config.vision_batch_size * patches
        scores = min(SCORES_BYTES, 4 * 64 * config.num_attention_heads * BLOCK_KEYS)  # of a run of 64 words
        return Footprint(
            family="owl3",
            release=config.release,
            parameters=parameters,
            weight_bytes=parameters * size,
            patches_per_picture=patches,
            picture_bytes=patches * states * len(config.hyper_layers),
            passing_bytes=patches * config.hidden_size * size + 3 * config.picture_size**2 * 4,
            token_bytes=states * config.num_hidden_layers,
            # the tower's widest layer twice, and the scores of one block of attention
            working_bytes=chunk_tokens * 2 * (vision.intermediate_size + vision.hidden_size) * size + 3 * scores,
            context_length=config.max_position_embeddings,
        )

    # ── plumbing transformers asks for ──

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def plain_language_model(self) -> Qwen2ForCausalLM:
        """The same weights without any part for pictures: stock Qwen2, sharing nothing."""
        config = Qwen2Config.from_dict({**self.config.to_dict(), "model_type": "qwen2"})
        config._attn_implementation = self.config._attn_implementation
        plain = Qwen2ForCausalLM(config).to(self.dtype).eval()
        plain.load_state_dict(self.language_model.state_dict(), strict=False)
        return plain

    def init_processor(self, tokenizer: Any) -> Owl3Processor:
        """The official way to a processor, with the settings of the folder that the model was opened from."""
        cuts = Owl3Processor.cuts_in(checkpoint.resolve(self.name_or_path)) if self.name_or_path else True
        return Owl3Processor(tokenizer, self.config, cuts)

    # ── the forward pass ──

    def encode(self, pixel_values: Tensor, progress: Progress | None = None) -> Tensor:
        """Pixels (N, 3, R, R) → features (N, P, D), `vision_batch_size` pictures at a time.

        The features are the output of the tower's last block but one, so the last block is not run.
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
                progress(sum(map(len, features)), len(pixel_values), "looking at pictures")
        return torch.cat(features)

    def embed_pictures(
        self, model_inputs: Mapping[str, Any], progress: Progress | None = None, features: Tensor | None = None
    ) -> dict[str, Any]:
        """A batch of the processor with features in place of pixels: arguments of `forward`.

        Args:
            features: What `encode` made of the pictures, (N, P, D), in place of their pixels.
        """
        arguments = {key: value for key, value in model_inputs.items() if key != "pixel_values"}
        if features is None and "pixel_values" in model_inputs:
            features = self.encode(model_inputs["pixel_values"], progress)
        if features is not None:
            arguments["image_embeds"] = features
        return {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in arguments.items()}

    @staticmethod
    def pack(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Samples as one row. See `longview.models.packing.pack`; the places of pictures move along."""
        lengths = arguments["attention_mask"].sum(1).tolist()
        rows = placeholder_starts(arguments.get("media_offset"), len(lengths))
        begins = [sum(lengths[:row]) for row in range(len(lengths))]
        starts = [begin + start for begin, row in zip(begins, rows, strict=True) for start in row]
        return pack(arguments) | {"media_offset": [torch.tensor(starts, dtype=torch.long)]}

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
        media_offset: Tensor | Sequence | None = None,
        image_embeds: Tensor | None = None,
        side_cache: VisualKVCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass over `input_ids` (B, T), which continue `past_key_values` where there are any.

        Args:
            pixel_values: (N, 3, R, R), the pictures of all rows, row after row; new ones only, where a cache is given.
            media_offset: Where each row's placeholders start, as indices into this call's `input_ids` (they may lie
                beyond its end: a prefill in chunks hangs all pictures at once). A list of B index lists (241101), or
                the counting tensor (B, T, 2) of the releases before.
            image_embeds: (N, P, D) from `encode`, in place of `pixel_values`.
            side_cache: Pictures hung already; generation and the engine pass it.
            attention_mask: (B, past + T), 0 for padding on either side.
            position_ids: (B, T). Without an attention_mask and a cache, each 0 begins another sample of a packed row,
                which sees neither words nor pictures of those before it.

        Raises:
            RequestError: the numbers of pictures and placeholders differ.
        """
        words = input_ids if input_ids is not None else inputs_embeds
        if words is None:
            raise RequestError("forward needs input_ids or inputs_embeds")
        batch, length = words.shape[:2]
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = positions_of(attention_mask)[:, -length:]
        if use_cache is None:
            use_cache = past_key_values is not None or (self.config.use_cache and not self.training)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        if side_cache is None:
            side_cache = getattr(past_key_values, "side_cache", None)
        if image_embeds is None and pixel_values is not None:
            image_embeds = self.encode(pixel_values)
        starts = placeholder_starts(media_offset, batch)
        check_counts(0 if image_embeds is None else len(image_embeds), sum(map(len, starts)))
        if image_embeds is not None and len(image_embeds):
            if side_cache is None:
                side_cache = VisualKVCache(batch, self.config.patches_per_picture)
            turns = self.picture_positions(starts, position_ids, past, length)
            side_cache.hang(image_embeds, [[past + s for s in row] for row in starts], turns)
            if position_ids is not None and attention_mask is None and not past:
                side_cache.part([borders(row) for row in position_ids.expand(batch, -1)])
        if side_cache is not None and past_key_values is not None:
            past_key_values.side_cache = side_cache

        output = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            side_cache=side_cache if side_cache is not None and side_cache.num_pictures else None,
            **{CACHE_NAME: past_key_values},
            **kwargs,
        )
        if side_cache is not None and past_key_values is not None:
            side_cache.settled()
        return output

    def picture_starts(self, arguments: Mapping[str, Any]) -> list[int]:
        """Where the pictures of one row of `embed_pictures`'s arguments stand in its sequence."""
        return placeholder_starts(arguments.get("media_offset"), 1)[0]

    def prefill_chunk(self, arguments: Mapping[str, Any], begin: int, end: int) -> dict[str, Any]:
        """What `forward` takes to continue a cache that holds `begin` positions of one row up to position `end`.

        Pictures hang with the words they stand before, so that looking at many is cut into pieces, too.
        """
        words = slice_positions(arguments, begin, end)
        starts = self.picture_starts(arguments)
        here = [number for number, start in enumerate(starts) if begin <= start < end]
        if not here:
            return words
        embeds = arguments["image_embeds"][here[0] : here[-1] + 1]
        return {**words, "image_embeds": embeds, "media_offset": [[starts[number] - begin for number in here]]}

    def collate_chunks(self, chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Several rows' chunks from position 0 as one batch, padded on the right."""
        embeds = [chunk["image_embeds"] for chunk in chunks if "image_embeds" in chunk]
        if not embeds:
            return pad_chunks(chunks)
        starts = [start for chunk in chunks for start in chunk.get("media_offset", [[]])]
        return {**pad_chunks(chunks), "image_embeds": torch.cat(embeds), "media_offset": starts}

    def picture_positions(
        self, starts: list[list[int]], position_ids: Tensor | None, past: int, length: int
    ) -> list[list[int]]:
        """MI-RoPE: the position by which each picture's keys turn; padding before a placeholder does not count."""
        extra = 0 if self.config.fused else 1
        turns = []
        for row, row_starts in enumerate(starts):
            if position_ids is None:
                turns.append([past + start + extra for start in row_starts])
                continue
            here = position_ids[min(row, len(position_ids) - 1)].tolist()
            beyond = here[-1] - (length - 1)
            turns.append([(here[s] if s < length else beyond + s) + extra for s in row_starts])
        return turns

    # ── generation ──

    @torch.no_grad()
    @takes_cache_by_either_name
    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        media_offset: Tensor | Sequence | None = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        decode_text: bool = False,
        past_key_values: Cache | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate with transformers' machinery: greedy, beams, sampling, streamers. Returns the *new* tokens only.

        As in the authors' code, decoding is greedy unless the call says otherwise, whatever generation_config.json
        holds. With `past_key_values` of an earlier turn, `input_ids` is the whole conversation and the pictures that
        stand in its cached part are not encoded again.

        Args:
            tokenizer: Needed for `decode_text`; also names the end tokens.
            decode_text: Return a list of strings instead of ids.
        """
        if input_ids is None:
            raise RequestError("generate needs input_ids; make them with the processor")
        if decode_text and kwargs.get("return_dict_in_generate"):
            raise RequestError("decode_text returns strings and return_dict_in_generate a dictionary; choose one")
        batch = len(input_ids)
        input_ids = input_ids.to(self.device)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        starts = placeholder_starts(media_offset, batch)
        check_counts(0 if pixel_values is None else len(pixel_values), sum(map(len, starts)))
        side_cache = getattr(past_key_values, "side_cache", None)
        fresh = [[start >= past for start in row] for row in starts]
        if any(map(any, fresh)):
            assert pixel_values is not None
            features = self.encode(pixel_values[torch.tensor([new for row in fresh for new in row])])
            starts = [[start for start in row if start >= past] for row in starts]
            side_cache = side_cache or VisualKVCache(batch, self.config.patches_per_picture)
            turns = self.picture_positions(starts, positions_of(attention_mask), 0, input_ids.shape[1])
            side_cache.hang(features, starts, turns)
        if generation_config is None:
            ends = end_tokens(tokenizer, self.config)
            generation_config = GenerationConfig(
                bos_token_id=self.config.bos_token_id,
                eos_token_id=ends or None,
                pad_token_id=ends[-1] if ends else 0,
                **GREEDY,
            )
            kwargs = generation_config.update(**kwargs)  # the rest is for the machinery
        output = super().generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            side_cache=side_cache,
            tokenizer=tokenizer,
            **{CACHE_NAME: past_key_values},
            **kwargs,
        )
        if not isinstance(output, Tensor):
            output.sequences = output.sequences[:, input_ids.shape[1] :]
            return output
        output = output[:, input_ids.shape[1] :]
        if not decode_text:
            return output
        if tokenizer is None:
            raise RequestError("decode_text=True needs tokenizer=…")
        stops = set(end_tokens(tokenizer, self.config))
        return [tokenizer.decode(_until(row.tolist(), stops), skip_special_tokens=True).strip() for row in output]


def end_tokens(tokenizer: Any, config: Owl3Config) -> list[int]:
    """The ids that end an answer: <|im_end|> and <|endoftext|> of the tokenizer, or the config's."""
    if tokenizer is not None:
        found = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
        return [token for token in found if token is not None]
    configured = config.eos_token_id
    return configured if isinstance(configured, list) else [] if configured is None else [configured]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]
