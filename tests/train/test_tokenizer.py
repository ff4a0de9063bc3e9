from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from longview.train.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer

WORDS = {"red", "circle", "What", "colour", "is", "the", "triangles"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(WORDS), folder, 512)
    return AutoTokenizer.from_pretrained(folder)


def test_each_word_is_one_token_in_every_form(tokenizer):
    for word in WORDS:
        for form in (word, f" {word}", word.lower(), f" {word.lower()}", word.capitalize()):
            assert len(tokenizer(form)["input_ids"]) == 1, form


def test_a_placeholder_is_five_ordinary_tokens(tokenizer):
    ids = tokenizer("<|image|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<", "|", "image", "|", ">"]
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_the_chat_tokens_are_special_and_come_last(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(tokenizer) - 3, len(tokenizer)))
    assert tokenizer("<|im_start|>user")["input_ids"][0] == ids[1]


@pytest.mark.parametrize(
    "text", ["What colour is the circle?", "unbekannt: Übergröße 漢字 🙂", "<|image|>\n\nred  red"]
)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_words_give_the_same_tokenizer():
    assert build_tokenizer(WORDS).to_str() == build_tokenizer(sorted(WORDS)).to_str()
