"""Tokenizers of Llama's kind, whose ids are those of sentencepiece as the authors' slow tokenizer calls it.

transformers 5 builds all of them alike, with a space before the text, whatever tokenizer.model and tokenizer.json say.
Here the model's own `normalizer_spec` decides, and in tokenizer_config.json `legacy`, `add_bos_token` and
`add_prefix_space`:

| `legacy`      | what stands between added tokens                                                        |
|---------------|-----------------------------------------------------------------------------------------|
| true, or none | is encoded alone, with the model's dummy prefix, if it has one                          |
| false         | has no prefix; the whole text begins with one, unless it begins with a special token    |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPACE = "▁"
"""How sentencepiece writes a space."""
_MODEL, _FILE, _SETTINGS = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
_KEPT = (
    *("bos_token", "eos_token", "unk_token", "pad_token", "model_max_length", "padding_side", "truncation_side"),
    *("clean_up_tokenization_spaces", "chat_template"),
)


def follow(tokenizer: Any, folder: Path) -> PreTrainedTokenizerFast:
    """The `LlamaTokenizer` that transformers opened in a folder, with the rules for spaces that the folder states.

    A tokenizer.model decides, as where the authors open it with `use_fast=False`; without one, tokenizer.json does.
    """
    path = folder / _SETTINGS
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:  # the authors' tokenizers find them in the text as it is written
        token["normalized"] = False
    options = {name: getattr(tokenizer, name) for name in _KEPT}
    if (folder / _MODEL).is_file():
        legacy = settings.get("legacy") is not False
        backend = Tokenizer.from_str(json.dumps(state))
        _follow_model(backend, folder / _MODEL, legacy, settings.get("add_prefix_space") is not False)
        for name, default in (("add_bos_token", True), ("add_eos_token", False)):
            options[name] = settings.get(name, default)
    else:
        written = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        rules = {name: written.get(name) for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor")}
        backend = Tokenizer.from_str(json.dumps(state | rules))
        legacy = settings.get("legacy", "first" not in str(written.get("pre_tokenizer")))
    return PreTrainedTokenizerFast(tokenizer_object=backend, legacy=legacy, **options)


def is_legacy(tokenizer: Any) -> bool:
    """Whether a tokenizer has sentencepiece's older treatment of spaces; false for one of another kind."""
    written = getattr(tokenizer, "init_kwargs", {}).get("legacy", False)
    return bool(getattr(tokenizer, "legacy", written))


def prefixes_once(tokenizer: Any) -> bool:
    """Whether the first text gets a space, but none behind added tokens."""
    return getattr(tokenizer.backend_tokenizer.pre_tokenizer, "prepend_scheme", None) == "first"


def _follow_model(backend: Tokenizer, model: Path, legacy: bool, begins: bool) -> None:
    """Give a tokenizer the rules of a tokenizer.model.

    Args:
        begins: Unless legacy: a text begins with a space.
    """
    from sentencepiece import sentencepiece_model_pb2

    kind = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # generated as it is imported
    spec = kind.FromString(model.read_bytes()).normalizer_spec
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", SPACE))
    prefixes = spec.add_dummy_prefix if legacy else begins
    if prefixes and legacy:
        steps.append(normalizers.Prepend(SPACE))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = (
        pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False) if prefixes and not legacy else None
    )
    parts: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefixes else parts)
