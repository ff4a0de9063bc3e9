"""Two new towers of SigLIP's form (arXiv 2303.15343), and their processor: what `objective: contrastive` trains.

    pictures ── vision tower ──┐
                               ├── t · cosine + b (N texts, N pictures) ── does text i fit picture j?
    texts ──── text tower ─────┘

Their folders are transformers' own, so `longview.models.similarity` opens them like any other SigLIP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

from longview.errors import CheckpointError, RecipeError
from longview.train.build import ModelSpec, check_config_keys
from longview.train.recipe import ModelSettings
from longview.train.saved.folder import REPAIR
from longview.world.naming import all_facts
from longview.world.questions import vocabulary

SCALE, BIAS = 10.0, -3.0
"""Of the cosine, at first. One pair in nine fits, not one in a batch as in the paper: a milder bias will do."""
PAD, UNKNOWN = "<pad>", "<unk>"


class SiglipConfig(transformers.SiglipConfig):
    """transformers' config, with the size of its pictures under the families' name."""

    @property
    def picture_size(self) -> int:
        """Pixels of a picture's side."""
        return self.vision_config.image_size


class SiglipModel(transformers.SiglipModel):
    """transformers' model, and the parts that a recipe can name."""

    config_class = SiglipConfig
    parts = {"vision": ("vision_model",), "language": ("text_model",), "scale": ("logit_",)}  # noqa: RUF012

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels (N, 3, R, R) → the features of their patches (N, P, D)."""
        return self.vision_model(pixel_values=pixel_values).last_hidden_state


class SiglipProcessor:
    """Pictures and texts as the towers take them."""

    def __init__(self, tokenizer: Any, side: int, positions: int) -> None:
        self.tokenizer = tokenizer
        self._images = SiglipImageProcessorPil(size={"height": side, "width": side})
        self._positions = positions

    def pixel_inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """The argument of `SiglipModel.encode` for some pictures."""
        return {"pixel_values": self._images(list(images), return_tensors="pt")["pixel_values"]}

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, T), padded or cut to the text tower's length."""
        options = {"padding": "max_length", "truncation": True, "max_length": self._positions}
        return self.tokenizer(list(texts), return_tensors="pt", **options)["input_ids"]

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self._images.save_pretrained(folder)


def open_towers(settings: ModelSettings, folder: Path, kept: Path | None = None) -> ModelSpec:
    """New towers before they have weights; see `longview.train.build.open_spec`.

    Raises:
        RecipeError: the towers do not fit each other.
    """
    if settings.init_from:
        raise RecipeError("model.init_from is for a new model of a family that sees and speaks; leave it out")
    check_config_keys(SiglipConfig, settings.config, "model.config")
    tokenizer = build_tokenizer() if kept is None else _open_tokenizer(kept)
    text, vision = (dict(settings.config.get(key) or {}) for key in ("text_config", "vision_config"))
    width, text_width = vision.get("hidden_size"), text.get("hidden_size")
    if width is None or width != text_width:
        raise RecipeError(
            f"model.config: text_config and vision_config need one hidden_size; found {text_width} and {width}"
        )
    if "vocab_size" in text:
        raise RecipeError("model.config.text_config.vocab_size is decided by the tokenizer; leave it out")
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    text |= {"vocab_size": len(tokenizer), "projection_size": width, **ends}
    config = SiglipConfig(**{**settings.config, "text_config": text, "vision_config": vision})
    processor = SiglipProcessor(tokenizer, config.picture_size, config.text_config.max_position_embeddings)
    processor.save_pretrained(folder)
    return ModelSpec(SiglipModel, config, processor, initialise=_initialise)


@torch.no_grad()
def _initialise(model: SiglipModel) -> None:
    model.logit_scale.fill_(math.log(SCALE))
    model.logit_bias.fill_(BIAS)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the world's words in small letters, and of digits; all else is unknown or dropped."""
    words = {word.lower() for word in vocabulary()} | {w for fact in all_facts() for w in fact.split() if w.isalpha()}
    ids = {word: number for number, word in enumerate([PAD, UNKNOWN, *"0123456789", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:
        path = folder / "tokenizer.json"
        raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {REPAIR}") from error
