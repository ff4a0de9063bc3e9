"""What all tests share: one thread, no deadlines for hypothesis, a byte tokenizer, and each family's tiny models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LONGVIEW_CONFIG"] = str(Path(__file__).parent / "none.json")  # not the user's

import hypothesis
import pytest
import torch
import transformers
from samples import POSITIONS, SPECIALS, tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from longview.models.families import families

torch.set_num_threads(1)
hypothesis.settings.register_profile("longview", deadline=None)  # a busy machine may pause any example
hypothesis.settings.load_profile("longview")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
]


@pytest.fixture(scope="module")  # while it is open, a loop of asyncio runs in this thread
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and Qwen2's three special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=SPECIALS)


VARIANTS = [(name, variant) for name, family in sorted(families().items()) for variant in family.Config.variants]


@pytest.fixture(scope="session", params=VARIANTS, ids="-".join)
def tiny(request, tokenizer):
    """Each family's variants in turn, as a tiny random model and its processor: the laws hold for all."""
    name, variant = request.param
    return tiny_model(families()[name], variant, tokenizer)


@pytest.fixture(scope="session")
def towers(tokenizer, tmp_path_factory) -> Path:
    """A tiny random SigLIP folder."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 300, "max_position_embeddings": POSITIONS, "projection_size": 32}
    ends = {"pad_token_id": 256, "bos_token_id": None, "eos_token_id": None}
    config = SiglipConfig(
        text_config={**size, **text, **ends}, vision_config={**size, "image_size": 24, "patch_size": 8}
    )
    folder = tmp_path_factory.mktemp("siglip") / "towers"
    SiglipModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|endoftext|>").save_pretrained(
        folder
    )
    SiglipImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder
