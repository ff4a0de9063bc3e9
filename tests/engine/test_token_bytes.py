"""Log-probabilities name tokens by text and bytes, whatever the tokenizer, and parts of characters too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import longview
from longview.engine.token_bytes import TokenBytes

TEXTS = ("a large blue star", "naïve 🎉 红色\n\tx  y", "…")
TOKENIZERS = Path(__file__).parents[1] / "golden" / "mgm" / "tokenizers"


@pytest.fixture(scope="module")
def engine():
    return longview.load("demo", device="cpu")


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_byte_level_vocabulary_are_those_of_the_text(engine, tokenizer, text):
    for each in (tokenizer, engine.processor.tokenizer):
        ids = each(text, add_special_tokens=False)["input_ids"]
        assert b"".join(map(TokenBytes(each), ids)) == text.encode()


@pytest.mark.parametrize("path", sorted(TOKENIZERS.glob("*.json")), ids=lambda path: path.stem)
def test_the_bytes_of_every_releases_vocabulary_are_what_it_decodes(path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
    spelt = TokenBytes(tokenizer)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert b"".join(map(spelt, ids)).decode().lstrip(" ") == decoded.lstrip(" ")


def test_a_byte_a_special_token_and_an_id_beyond_the_vocabulary_of_sentencepiece():
    pieces = {"<unk>": 0, "<0xF0>": 1, "<0x9F>": 2, "<0x8E>": 3, "<0x89>": 4, "▁red": 5, "▁": 6}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    spelt = TokenBytes(tokenizer)
    assert [spelt(token) for token in (1, 2, 3, 4)] == [b"\xf0", b"\x9f", b"\x8e", b"\x89"]
    assert spelt(5) == b" red"
    assert spelt(tokenizer.eos_token_id) == b"</s>"
    assert spelt(1000) == b""


def test_log_probabilities_are_told_as_openai_tells_them(engine):
    question = [longview.ask("What is at the top left?", longview.image("examples/shapes.jpg"))]
    answer = engine.answer(question, logprobs=2)
    *words, end = answer.logprobs
    assert "".join(each.token for each in words) == answer.text == "a large blue star"
    assert bytes(byte for each in words for byte in each.bytes).decode() == answer.text
    assert [each.id for each in answer.logprobs] == list(answer.tokens)
    assert end.token == "<|im_end|>"
    told = json.loads(json.dumps(answer.as_dict()))["logprobs"][1]
    assert told["token"] == " large"
    assert told["bytes"] == list(b" large")
    assert told["logprob"] == told["top_logprobs"][0]["logprob"] < 0
    assert [set(each) for each in told["top_logprobs"]] == [{"token", "bytes", "logprob", "id"}] * 2


def test_a_part_of_a_character_is_shown_as_one_that_is_missing(tokenizer):
    first = tokenizer("🎉", add_special_tokens=False)["input_ids"][0]
    assert TokenBytes(tokenizer)(first).decode("utf-8", errors="replace") == "\N{REPLACEMENT CHARACTER}"
