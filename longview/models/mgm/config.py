"""MGMConfig: every hyper-parameter of MGM (Mini-Gemini); the eleven releases differ in these fields only.

    MGMConfig                       model_type "mgm"
    ├── text_config                 LlamaConfig (Vicuna, Llama 3, Yi) | GemmaConfig | MixtralConfig | MistralConfig
    ├── vision_config               CLIPVisionConfig, the low-resolution tower
    └── vision_aux_config           ConvNextConfig, the high-resolution tower

The official config.json is flat (the language model's fields lie beside MGM's own), often names no `model_type`, and
names its towers by paths. It opens as it is and is written back in the same form, with the two towers described beside,
so that a saved folder needs no other.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import (
    CLIPVisionConfig,
    ConvNextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
)

from longview.errors import CheckpointError

LANGUAGES: dict[str, type[PreTrainedConfig]] = {
    "gemma": GemmaConfig,
    "mixtral": MixtralConfig,
    "mistral": MistralConfig,
    "llama": LlamaConfig,
}
CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""`openai/clip-vit-large-patch14-336`, the low-resolution tower of every release."""
CONVNEXT_L = {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]}
"""`laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup`, their high-resolution tower."""
TOWERS = {"vision_tower": "vision_config", "vision_tower_aux": "vision_aux_config"}
"""The low- and the high-resolution tower, and where a config describes them."""
_NAMES_A_LANGUAGE = re.compile("gemma|mixtral|mistral", re.IGNORECASE)
_ROPE = ("rope_theta", "rope_scaling")


def language_of(model_type: str | None, architectures: Sequence[str] | None) -> str:
    """Which language model a config.json describes, whatever its folder is called; a key of `LANGUAGES`."""
    found = _NAMES_A_LANGUAGE.search(" ".join([*(architectures or []), model_type or ""]))
    return found[0].lower() if found else "llama"


@strict
class MGMConfig(PreTrainedConfig):
    """A language model, a low-resolution tower for queries, and a high-resolution one for keys and values."""

    model_type = "mgm"
    variants = ("plain", "hd", "gemma", "mixtral")

    text_config: Any = None
    """The language model: one of `LANGUAGES`, or its fields with their `model_type`."""
    vision_config: Any = None
    """The low-resolution tower: a `CLIPVisionConfig`, or its fields."""
    vision_aux_config: Any = None
    """The high-resolution tower: a `ConvNextConfig`, or its fields."""
    image_size_aux: int = 768
    """Side in pixels of what the high-resolution tower encodes; 1536 in HD."""
    image_grid: int = 1
    """Crops along a side of what the low-resolution tower encodes; 2 in HD, which adds the whole picture."""
    image_global: bool = False
    """The whole picture is encoded beside the crops. Goes with `image_grid` above 1."""
    image_aspect_ratio: str | None = None
    """"pad" makes pictures square by a border, as the instructed models want it; else their middle is cut out."""
    mm_vision_tower: str | None = None
    mm_vision_tower_aux: str | None = None
    """Where the towers lie; see `longview.models.mgm.towers`."""
    mm_vision_select_layer: int = -2
    """Which of the low-resolution tower's hidden states is taken."""
    mm_vision_select_feature: str = "patch"
    mm_projector_type: str = "linear"
    """Layers to the language model: "linear", or "mlpNx_gelu": N of them, exact GELUs between, 2 in the releases."""
    mm_use_im_start_end: bool = False
    optimize_vision_tower: bool = False
    optimize_vision_tower_aux: bool = False
    """The high-resolution tower was trained, too: its weights are the checkpoint's and not the published tower's."""
    tokenizer_model_max_length: int | None = None
    """Positions kept of text and pictures together in the authors' calls; in ours, the language model's own limit
    holds."""
    tokenizer_padding_side: str = "right"
    vision_batch_size: int = 4
    """Crops that the towers encode at a time; bounds memory, does not change results."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.described = {tower for tower, own in TOWERS.items() if getattr(self, own) is not None}
        """The towers (keys of `TOWERS`) that the checkpoint itself describes and therefore holds, as ours do."""
        self.given: dict[str, str] = {}
        """Folders of towers given as arguments, in place of those that config.json names."""
        self.tokenizer_folder: str | None = None
        """Where the tokenizer is, if not beside this config."""
        language = language_of(kwargs.pop("model_type", None), self.architectures)
        if isinstance(self.text_config, Mapping):
            fields = dict(self.text_config)
            language = fields.pop("model_type", language)
            self.text_config = _language(language, fields)
        elif self.text_config is None:
            known = {field.name for field in dataclasses.fields(LANGUAGES[language])}
            known -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
            fields = {key: kwargs.pop(key) for key in list(kwargs) if key in known or key in _ROPE}
            activation = kwargs.pop("hidden_activation", None)
            if activation is not None:
                fields["hidden_act"] = activation
            self.text_config = _language(language, fields)
        self.vision_config = _tower(CLIPVisionConfig, self.vision_config, CLIP_L_336)
        self.vision_aux_config = _tower(ConvNextConfig, self.vision_aux_config, CONVNEXT_L)
        super().__post_init__(**kwargs)
        if self.dtype is not None:
            self.text_config.dtype = self.dtype
        self.hidden_size = self.text_config.hidden_size
        if self.mm_vision_select_feature != "patch" or self.mm_use_im_start_end:
            raise CheckpointError(
                "this MGM keeps the class token, or sets pictures between start and end tokens, which no release "
                "does; longview opens those with mm_vision_select_feature 'patch' and mm_use_im_start_end false"
            )
        if not isinstance(self.image_grid, int) or not 1 <= self.image_grid <= 8:
            raise CheckpointError(f"image_grid is {self.image_grid!r} in config.json; expected 1, or 2 for HD")
        if self.image_global != (self.image_grid > 1):
            raise CheckpointError(
                f"image_grid is {self.image_grid} and image_global {str(self.image_global).lower()} in config.json; a "
                "model encodes whole pictures (1, false), or crops and the whole (2, true), as the HD releases do"
            )
        if self.projector_layers is None:
            raise CheckpointError(
                f"unknown mm_projector_type {self.mm_projector_type!r} in config.json; expected linear or mlpNx_gelu"
            )

    # ── sizes ──

    @property
    def language(self) -> str:
        """The kind of language model, a key of `LANGUAGES`."""
        return self.text_config.model_type

    @property
    def release(self) -> str:
        """What distinguishes one MGM from another beside its sizes."""
        return f"{self.language}{', HD' if self.image_grid > 1 else ''}"

    @property
    def projector_layers(self) -> int | None:
        """Linear layers between towers and language model; None for a projector that is unknown."""
        found = re.fullmatch(r"mlp(\d+)x_gelu", self.mm_projector_type)
        return 1 if self.mm_projector_type == "linear" else int(found[1]) if found else None

    @property
    def pictures_per_chunk(self) -> int:
        """Pictures that the towers encode in one chunk, of at most `vision_batch_size` crops."""
        return max(1, self.vision_batch_size // self.image_grid**2)

    @property
    def views(self) -> int:
        """Views of a picture for the low-resolution tower: itself, or each crop and the whole."""
        return 1 if self.image_grid == 1 else self.image_grid**2 + 1

    @property
    def patches_per_view(self) -> int:
        """p: patches of one view, of which each becomes a position of the language sequence."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2

    @property
    def patches_per_picture(self) -> int:
        """P: positions of the language sequence that one picture takes; 576, and 2880 in HD."""
        return self.views * self.patches_per_view

    @property
    def picture_size(self) -> int:
        """S: pixels along the side of a picture."""
        return self.image_size_aux

    @property
    def max_position_embeddings(self) -> int:
        """Positions of the language sequence, text and pictures together."""
        return self.text_config.max_position_embeddings

    @property
    def tied(self) -> bool:
        """The head is the table of text embeddings."""
        return self.text_config.tie_word_embeddings

    # ── what transformers asks for ──

    @property
    def sub_configs(self) -> dict[str, type[PreTrainedConfig]]:
        return {name: type(getattr(self, name)) for name in ("text_config", *TOWERS.values())}

    def get_text_config(self, *_: Any, **__: Any) -> PreTrainedConfig:
        return self.text_config

    def to_dict(self) -> dict[str, Any]:
        """The official form: the language model's fields lie beside our own."""
        own = super().to_dict()
        text = own.pop("text_config")
        names = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"model_type"}
        flat = {key: value for key, value in text.items() if key not in names and not key.startswith("_")}
        rope = flat.get("rope_parameters") or {}
        if rope.get("rope_type", "default") == "default" and "rope_theta" in rope:
            flat["rope_theta"] = flat.pop("rope_parameters")["rope_theta"]
        for transient in ("described", "given", "tokenizer_folder"):
            del own[transient]
        written = {**flat, **own, "architectures": [f"MGM{self.language.capitalize()}ForCausalLM"]}
        return {**written, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        plain = PreTrainedConfig().to_dict()
        written = {key: value for key, value in self.to_dict().items() if key not in plain or value != plain[key]}
        towers = {own: getattr(self, own).to_diff_dict() for own in TOWERS.values()}
        written = {key: value for key, value in written.items() if key != "_name_or_path"} | towers
        self.dict_dtype_to_str(written)
        return written

    @classmethod
    def tiny(cls, variant: str = "plain", **changes: Any) -> MGMConfig:
        """A model of a few hundred kilobytes with every mechanism of the family in it, for tests."""
        text: dict[str, Any] = {
            "model_type": variant if variant in LANGUAGES else "llama",
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1 if variant == "gemma" else 2,
            "max_position_embeddings": 512,
            "head_dim": 16,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        if variant == "mixtral":
            text |= {"num_local_experts": 4, "num_experts_per_tok": 2}
        settings: dict[str, Any] = {
            "text_config": text,
            "vision_config": {
                "hidden_size": 48,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
            },
            "vision_aux_config": {
                "depths": [1, 1, 2, 1],
                "hidden_sizes": [8, 12, 16, 24],
                "layer_scale_init_value": 0.5,
            },
            "image_size_aux": 128 if variant == "hd" else 64,
            "image_grid": 2 if variant == "hd" else 1,
            "image_global": variant == "hd",
            "image_aspect_ratio": "pad",
            "mm_projector_type": "mlp2x_gelu",
        }
        return cls(**copy.deepcopy({**settings, **changes}))


def _language(kind: str, fields: dict[str, Any]) -> PreTrainedConfig:
    if kind not in LANGUAGES:
        raise CheckpointError(
            f"this MGM has a {kind!r} language model; longview runs those with {', '.join(LANGUAGES)}"
        )
    language = LANGUAGES[kind](**{key: value for key, value in fields.items() if key != "hidden_act"})
    if fields.get("hidden_act") is not None:  # after construction: transformers takes Gemma's "gelu" for another one
        language.hidden_act = fields["hidden_act"]
    return language


def _tower(kind: type[PreTrainedConfig], given: Any, default: Mapping[str, Any]) -> Any:
    """A tower's config, from one, from its fields, or from None."""
    if isinstance(given, kind):
        return given
    fields = dict(default) if given is None else {key: value for key, value in given.items() if key != "model_type"}
    return kind(**fields)
