"""Tokenizers of Llama's kind give the ids of sentencepiece, called as the authors' slow tokenizer calls it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from longview.messages import Message
from longview.models import checkpoint
from longview.models.llama_tokenizer import is_legacy
from longview.models.mgm import Config, Processor
from longview.models.mgm.compat import IMAGE
from longview.models.mgm.conversation import TEMPLATES

CORPUS = [
    "system user assistant Answer the questions.\n",
    "What is shown? A red cat, two cats.\n\n",
    "hello  there, you",
]
CHATML = ("<|im_start|>", "<|im_end|>")
TEXTS = (
    "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\nWhat is shown?<|im_end|>",
    "<|im_start|>user\n<image>\n a cat <|im_end|> <|im_start|>assistant\n",
    "USER: <image>\nhello  there <image> you<image>\n\n cats ASSISTANT: a</s>USER: b ASSISTANT:",
    "  two cats </s> and </s>\n a Löwe 🦁 ▁x <unk>",
    "",
    " ",
)
SETTINGS = [
    {"dummy": dummy, "legacy": legacy, "bos": bos, "squeeze": squeeze}
    for dummy, legacy, bos, squeeze in itertools.product((True, False), (True, False, None), (True, False), (False,))
] + [{"dummy": dummy, "legacy": True, "bos": True, "squeeze": True} for dummy in (True, False)]


def named(settings: dict) -> str:
    return "-".join(f"{key}_{value}".lower() for key, value in settings.items())


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Folders with a tokenizer.model and settings beside it, as transformers 4 saved those of Vicuna and Yi."""
    place = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20),
        model_prefix=str(place / "trained"),
        model_type="bpe",
        vocab_size=360,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        user_defined_symbols=list(CHATML),
        minloglevel=5,
    )
    trained = (place / "trained.model").read_bytes()
    numbers = itertools.count()

    def make(dummy: bool, legacy: bool | None, bos: bool, squeeze: bool, **changes) -> Path:
        folder = place / str(next(numbers))
        folder.mkdir()
        proto = sentencepiece_model_pb2.ModelProto.FromString(trained)
        proto.normalizer_spec.add_dummy_prefix = dummy
        proto.normalizer_spec.remove_extra_whitespaces = squeeze
        (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
        special = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
        added = ["<unk>", "<s>", "</s>", *CHATML]
        settings = {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": bos,
            "add_eos_token": False,
            "added_tokens_decoder": {str(n): {**special, "content": token} for n, token in enumerate(added)},
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            **({} if legacy is None else {"legacy": legacy}),
            **changes,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


def slow_ids(folder: Path, text: str) -> list[int]:
    """What `LlamaTokenizer` of transformers 4.36 with use_fast=False makes of a text: calls of sentencepiece."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["content"]: int(n) for n, token in settings["added_tokens_decoder"].items()}
    special = {token["content"] for token in settings["added_tokens_decoder"].values() if token["special"]}
    legacy = settings.get("legacy", True)
    proto = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    if not legacy:
        proto.normalizer_spec.add_dummy_prefix = False
    model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    space = model.piece_to_id("▁")
    if text and not legacy:
        text = "▁" + text.replace("▁", " ")
    found: list[tuple[int, bool]] = []
    for chunk in (c for c in re.split("(" + "|".join(map(re.escape, added)) + ")", text) if c):
        if chunk in added:
            found.append((added[chunk], chunk in special))
            continue
        apart = not legacy and chunk.startswith(("▁", " "))  # sentencepiece would drop the space
        pieces = model.encode("<unk>" + chunk)[len(model.encode("<unk>")) :] if apart else model.encode(chunk)
        found += [(piece, False) for piece in pieces]
    if not legacy and len(found) > 1 and found[0][0] == space and found[1][1]:
        found = found[1:]
    return [model.bos_id()] * settings.get("add_bos_token", True) + [number for number, _ in found]


def official_ids(folder: Path, prompt: str) -> list[int]:
    """The authors' way with a prompt: what stands between pictures is tokenised alone, and begins once."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    begin = [1] * settings.get("add_bos_token", True)
    ids = [*begin]
    for number, text in enumerate(prompt.split(IMAGE)):
        ids += [-200] * (number > 0) + slow_ids(folder, text)[len(begin) :]
    return ids


def opened(folder: Path, template: str | None = None) -> Processor:
    return Processor(checkpoint.open_tokenizer(folder), Config.tiny(), template)


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_a_text_has_the_ids_that_sentencepiece_gives_it(folder_of, tmp_path, settings):
    folder = folder_of(**settings)
    processor = opened(folder)
    assert processor.template is TEMPLATES["chatml_direct"]
    for text in TEXTS:
        assert processor.tokenize(text) == official_ids(folder, text), text
    processor.save_pretrained(tmp_path)
    again = opened(tmp_path)
    assert is_legacy(again.tokenizer) == is_legacy(processor.tokenizer) == (settings["legacy"] is not False)
    for text in TEXTS:
        assert again.tokenize(text) == processor.tokenize(text), "a saved folder opens as what it was"


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_a_conversation_has_the_ids_that_sentencepiece_gives_its_prompt(folder_of, settings):
    folder = folder_of(**settings)
    texts = (" What is shown?", "a cat", "hello")
    turns = [*zip(("human", "gpt", "human"), texts, strict=True), ("gpt", None)]
    messages = [Message.of(role, text) for role, text in zip(("user", "assistant", "user"), texts, strict=True)]
    for template in ("chatml_direct", "vicuna_v1"):
        processor = opened(folder, template)
        prompt = processor.render([{"from": role, "value": text} for role, text in turns])
        ids = processor.prepare(messages, []).text_inputs["input_ids"][0].tolist()
        assert ids == official_ids(folder, prompt)


@pytest.mark.parametrize("changes", [{"normalized": True}, {"special": False}], ids=str)
@pytest.mark.parametrize("legacy", [True, False])
def test_added_tokens_are_found_in_the_text_as_it_is_written(folder_of, legacy, changes):
    folder = folder_of(dummy=True, legacy=legacy, bos=True, squeeze=False)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for token in settings["added_tokens_decoder"].values():
        if token["content"] in CHATML:
            token.update(changes)
    path.write_text(json.dumps(settings))
    for text in TEXTS:
        assert opened(folder).tokenize(text) == official_ids(folder, text), text


@pytest.mark.parametrize("legacy", [True, False])
def test_what_a_user_types_does_not_change_how_the_template_is_tokenised(folder_of, legacy):
    processor = opened(folder_of(dummy=True, legacy=legacy, bos=True, squeeze=False), "vicuna_v1")
    first, second = Message.of("user", "hello"), Message.of("user", "</s>")
    answer = Message.of("assistant", "a cat")
    plain = processor.prepare([first, answer, first], []).text_inputs["input_ids"][0].tolist()
    typed = processor.prepare([first, answer, second], []).text_inputs["input_ids"][0].tolist()
    end = processor.tokenizer.eos_token_id
    assert plain.count(end) == typed.count(end) == 1
    behind = len(processor.tokenizer.tokenize("USER: ")) - 2
    begin = plain.index(end) + 1
    assert typed[: begin + behind] == plain[: begin + behind]


def test_a_folder_with_no_tokenizer_model_follows_its_tokenizer_json(folder_of, tmp_path):
    """As transformers 4 saved Mixtral's: a space before each text, by the file's normalizer."""
    folder = folder_of(dummy=True, legacy=True, bos=True, squeeze=False)
    opened(folder).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "LlamaTokenizerFast"}))
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    written |= {"normalizer": {"type": "Sequence", "normalizers": [prepend, replace]}, "pre_tokenizer": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    for text in TEXTS:
        assert opened(tmp_path).tokenize(text) == official_ids(folder, text), text
