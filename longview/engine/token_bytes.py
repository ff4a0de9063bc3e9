"""The bytes of single tokens, for log-probabilities: a token may be part of a character."""

from __future__ import annotations

import functools
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How a vocabulary of SentencePiece spells a byte."""


def _letters() -> dict[str, int]:
    """How a byte-level vocabulary spells bytes: printable ones as themselves, the others as letters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


class TokenBytes:
    """Token ids → bytes, for one tokenizer. The bytes of an answer's tokens, joined, are its text in UTF-8.

    SentencePiece drops a space at the beginning of a text, which the first token keeps here.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @functools.cached_property
    def _added(self) -> dict[int, str]:
        return {number: token.content for number, token in self._tokenizer.added_tokens_decoder.items()}

    @functools.cached_property
    def _letters(self) -> dict[str, int] | None:
        """Of a vocabulary that is spelt in bytes, as GPT-2's, Qwen's and Llama 3's are; None of SentencePiece's."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return _letters() if "ByteLevel" in str(getattr(backend, "decoder", "")) else None

    def __call__(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # the output layer may be larger than the vocabulary
            return b""
        if self._letters is not None:
            return bytes(self._letters[letter] for letter in piece)
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
