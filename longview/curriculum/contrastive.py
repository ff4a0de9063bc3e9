"""Two towers that learn which pictures a text fits: SigLIP's pairwise sigmoid loss on the synthetic world.

    pictures ── vision tower ──┐
                               ├── t · cosine + b (N texts, N pictures) ── does text i fit picture j?
    texts ──── text tower ─────┘

Each text is drawn for one picture of the batch and, the world being known, held against all others: "a red circle" fits
every picture with a red circle, so pairs are not taken for wrong that are right.

Source: arXiv 2303.15343.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil

from longview.curriculum.pool import Pool
from longview.errors import CheckpointError, RecipeError
from longview.train.recipe import ModelPart, Stage
from longview.train.saved.folder import REPAIR
from longview.world.naming import all_facts, facts_held, facts_named
from longview.world.questions import ask_about_picture, vocabulary
from longview.world.scenes import Picture

SCALE, BIAS = 10.0, -3.0
"""Of the cosine, at first. One pair in nine fits, not one in a batch as in the paper: a milder bias will do."""
PAD, UNKNOWN = "<pad>", "<unk>"
FAMILY = "siglip"


class SiglipConfig(transformers.SiglipConfig):
    """transformers' config, and what painting the world needs of it."""

    @property
    def picture_size(self) -> int:
        """Pixels of a picture's side."""
        return self.vision_config.image_size


class SiglipModel(transformers.SiglipModel):
    """transformers' model, and what a recipe can name of it. Its folders are transformers' own."""

    config_class = SiglipConfig
    parts = {"vision": ("vision_model",), "language": ("text_model",), "scale": ("logit_",)}  # noqa: RUF012

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels (N, 3, R, R) → the features of their patches (N, P, D)."""
        return self.vision_model(pixel_values=pixel_values).last_hidden_state


class PairProcessor:
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
        form = {"padding": "max_length", "truncation": True, "max_length": self._positions}
        return self.tokenizer(list(texts), return_tensors="pt", **form)["input_ids"]

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self._images.save_pretrained(folder)


def open_towers(part: ModelPart, folder: Path) -> tuple[SiglipModel, PairProcessor]:
    """New towers in fp32, and their processor, which is written to `folder`; a resumed run keeps its words.

    Raises:
        RecipeError: the towers do not fit each other.
    """
    tokenizer = _open_words(folder) if (folder / "tokenizer.json").exists() else build_words()
    text, vision = (dict(part.config.get(key) or {}) for key in ("text_config", "vision_config"))
    width, words = vision.get("hidden_size"), text.get("hidden_size")
    if width is None or width != words:
        raise RecipeError(
            f"model.config: text_config and vision_config need one hidden_size; found {words} and {width}"
        )
    if "vocab_size" in text:
        raise RecipeError("model.config.text_config.vocab_size is decided by the tokenizer; leave it out")
    ends = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    text |= {"vocab_size": len(tokenizer), "projection_size": width, **ends}
    config = SiglipConfig(**{**part.config, "text_config": text, "vision_config": vision})
    model = SiglipModel._from_config(config, attn_implementation=part.attention, dtype=torch.float32)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(SCALE))
        model.logit_bias.fill_(BIAS)
    processor = PairProcessor(tokenizer, config.picture_size, config.text_config.max_position_embeddings)
    processor.save_pretrained(folder)
    return model, processor


def build_words() -> PreTrainedTokenizerFast:
    """A tokenizer of the world's words in small letters, and of digits; all else is unknown or dropped."""
    words = {word.lower() for word in vocabulary()} | {w for fact in all_facts() for w in fact.split() if w.isalpha()}
    ids = {word: number for number, word in enumerate([PAD, UNKNOWN, *"0123456789", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}"), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)


def _open_words(folder: Path) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the library raises nothing more particular
        path = folder / "tokenizer.json"
        raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); {REPAIR}") from error


def pairs_loss(
    model: Any, processor: Any, pool: Pool, stage: Stage, rng: random.Random
) -> tuple[Tensor, dict[str, Any]]:
    """The sigmoid loss of a batch of pictures and as many texts, summed over the pictures of each text."""
    chosen = [rng.randrange(pool.stills) for _ in range(stage.batch)]
    texts = [draw_text(rng, pool.pictures[index]) for index in chosen]
    fits = torch.tensor(fit(texts, [pool.pictures[index] for index in chosen]))
    pixels = processor.pixel_inputs([Image.fromarray(pool.pixels[index]) for index in chosen])
    ids = processor.texts(texts)
    output = model(input_ids=ids, **pixels)  # logits (texts, pictures)
    loss = -functional.logsigmoid(torch.where(fits, 1.0, -1.0) * output.logits_per_text).sum(-1).mean()
    found = fits.gather(1, output.logits_per_text.argmax(-1, keepdim=True)).float().mean()
    notes = {"samples": stage.batch, "tokens": ids.numel(), "pictures": stage.batch}
    return loss, notes | {"fit": round(fits.float().mean().item(), 3), "found": round(found.item(), 3)}


def fit(texts: Sequence[str], pictures: Sequence[Picture]) -> list[list[bool]]:
    """Which texts fit which pictures, (texts, pictures)."""
    held = [facts_held(picture) for picture in pictures]
    return [[named <= facts for facts in held] for named in map(facts_named, texts)]


def draw_text(rng: random.Random, picture: Picture) -> str:
    """A question about a picture, or a short description of some of it; it names something, unless nothing is there."""
    for _ in range(40):
        text = _describe(rng, picture) if rng.random() < 0.35 else ask_about_picture(rng, picture).text
        if rng.random() < 0.15:
            text = text.rstrip("?.")
        named = facts_named(text)
        if named and named <= facts_held(picture):
            return text
    return "nothing"


def _describe(rng: random.Random, picture: Picture) -> str:
    """One to three of the things of a picture, each by some of what it is; perhaps the sign."""
    things = rng.sample(picture.things, min(len(picture.things), rng.randint(1, 3)))
    phrases = []
    for thing in things:
        words = (rng.choice(("", thing.size)), rng.choice(("", thing.colour, thing.colour)), thing.shape)
        phrases.append(rng.choice(("a ", "")) + " ".join(word for word in words if word))
    if picture.sign and rng.random() < 0.5:
        phrases = [*phrases[:2], f"a sign that says {picture.sign.text}"]
    return " and ".join(phrases)
