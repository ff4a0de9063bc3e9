"""The authors' fixtures: tiny official checkpoints, their towers, tokenizers, and pictures made by a formula."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

GOLDEN = Path(__file__).parents[2] / "golden" / "mgm"
VARIANTS = ("plain", "hd", "gemma", "mixtral")
CASES = {"text_only": 0, "one_image": 1, "two_images": 2}
SPECIAL = {  # which tokens begin, end and pad, by tokenizer
    "toy_llama": ("<s>", "</s>", "<unk>"),
    "toy_llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
    "toy_gemma": ("<bos>", "<eos>", "<pad>"),
    "toy_yi_nobos": ("<|startoftext|>", "<|im_end|>", "<unk>"),
}


def synthetic(w: int, h: int, mode: str = "RGB") -> Image.Image:
    """The picture whose formula the fixtures state."""
    y, x = np.mgrid[0:h, 0:w].astype(np.int64)
    channels = [3 * x + 5 * y, x * y, 7 * x + 11 * y + (x * y) // 16]
    return Image.fromarray(np.stack([c % 256 for c in channels], axis=-1).astype(np.uint8)).convert(mode)


def tokenizer_of(name: str, place: Path) -> Any:
    """One of the fixtures' tokenizers; the sentencepiece one as a folder has it, in its newer or older way."""
    if name in SPECIAL:
        begin, end, pad = SPECIAL[name]
        file = str(GOLDEN / "tokenizers" / f"{name}.json")
        return PreTrainedTokenizerFast(tokenizer_file=file, bos_token=begin, eos_token=end, pad_token=pad)
    folder = place / name
    folder.mkdir()
    shutil.copy(GOLDEN / "tokenizers" / "toy_sp.model", folder / "tokenizer.model")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": name.endswith("legacy")}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


def folder_of(variant: str, place: Path, edit: Callable[[dict], None] | None = None, towers: bool = True) -> Path:
    """A copy of a variant's folder, with tensors edited, its towers beside it as the authors have them."""
    folder = Path(shutil.copytree(GOLDEN / variant, place / "work_dirs" / "MGM" / variant))
    if towers:
        shutil.copytree(GOLDEN / "model_zoo", place / "model_zoo")
    if edit is not None:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        tensors: dict = {}
        for file in sorted(set(index["weight_map"].values())):
            tensors |= load_file(folder / file)
            (folder / file).unlink()
        (folder / "model.safetensors.index.json").unlink()
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
