"""Language models in 8 and 4 bits: what stays as it is, how near the answers stay, and what cannot be done."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from samples import noise, tiny_model
from torch import nn

import longview
from longview.engine import engine
from longview.errors import MissingExtraError, RequestError
from longview.models.families import families
from longview.models.quantization import quantization, unquantised

KINDS = {"load_8bit": Linear8bitLt, "load_4bit": Linear4bit}


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    found = {}
    wide = {"intermediate_size": 128}  # bitsandbytes' kernel for CPUs takes rows of 64
    for family, variant, words in (
        ("mgm", "plain", "text_config"),
        ("owl3", "241101", ""),
        ("ovis2", "softmax", "llm_config"),
    ):
        config = families()[family].Config
        changes = {words: {**getattr(config.tiny(variant), words).to_dict(), **wide}} if words else wide
        model, processor = tiny_model(families()[family], variant, tokenizer, **changes)
        found[family] = tmp_path_factory.mktemp("quantised") / family
        model.save_pretrained(found[family])
        processor.save_pretrained(found[family])
    return found


@pytest.mark.parametrize("family", ["mgm", "owl3", "ovis2"])
@pytest.mark.parametrize("bits", KINDS)
def test_only_the_language_models_own_matrices_are_quantised(folders, family, bits):
    loaded = longview.load(folders[family], device="cpu", **{bits: True})
    model, kind = loaded.model, KINDS[bits]
    quantised = {name for name, module in model.named_modules() if isinstance(module, kind)}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    kept = linear - quantised
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    others = [mark for part, marks in model.parts.items() if part != "language" for mark in marks]
    assert kept == {name for name in linear if name == head or any(mark in f"{name}." for mark in others)}
    assert len([name for name in quantised if ".layers." in name]) == len(quantised) > 10
    exact = longview.load(folders[family], device="cpu")
    question = [longview.ask("What?", longview.image(noise(1)))]
    assert loaded.answer(question, max_tokens=3).tokens
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        found, expected = loaded.model(input_ids=ids).logits, exact.model(input_ids=ids).logits
    alike = torch.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0)
    assert 0.9 < alike < 0.9999999, "near, and not the same"


@pytest.mark.parametrize("bits", KINDS)
def test_towers_mining_and_projector_of_mgm_are_bit_for_bit_what_they_were(folders, bits):
    pixels = torch.randn(1, 3, 64, 64)
    exact, loaded = longview.load(folders["mgm"]), longview.load(folders["mgm"], **{bits: True})
    with torch.no_grad():
        assert torch.equal(loaded.model.encode(pixels), exact.model.encode(pixels))


def test_what_cannot_be_quantised_is_named(monkeypatch, folders):
    model = families()["mgm"].Model
    for arguments, complaint in (
        ((True, True, "cpu"), "contradict each other"),
        ((False, True, "mps"), "--load-4bit needs bitsandbytes, which does not run on mps"),
    ):
        with pytest.raises(RequestError, match=complaint):
            quantization(model, *arguments, None)
    assert "lm_head" in unquantised(model)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"--load-8bit needs bitsandbytes.*longview\[quant\]"):
        quantization(model, True, False, "cuda", None)


def test_folders_of_parts_are_for_the_family_that_has_them(folders):
    for option in ("vision_tower", "vision_tower_aux", "model_base"):
        with pytest.raises(RequestError, match=f"{option} has no meaning for it"):
            engine.load(folders["owl3"], **{option: "x"})
