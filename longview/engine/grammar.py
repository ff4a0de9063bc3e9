"""Constrained decoding: answers that match a regular expression, or are JSON of a schema.

By llguidance, which compiles the grammar to an automaton over bytes and masks the tokens that may come next.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longview.errors import MissingExtraError, RequestError
from longview.requests import SamplingParams


class Grammars:
    """Makes matchers for one tokenizer, whose vocabulary is analysed once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizer: tuple[Any, Any] | None = None  # ours, llguidance's

    def matcher(self, params: SamplingParams, tokenizer: Any, end_tokens: Sequence[int]) -> Matcher | None:
        """The matcher of a request, or None where its answer is not constrained.

        Raises:
            RequestError: the regular expression or the schema is malformed.
            MissingExtraError: llguidance is not installed.
        """
        name, given = ("json_schema", params.json_schema) if params.regex is None else ("regex", params.regex)
        if given is None:
            return None
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise MissingExtraError("an answer of a given form", "llguidance") from None
        with self._lock:
            if self._tokenizer is None or self._tokenizer[0] is not tokenizer:
                self._tokenizer = tokenizer, from_tokenizer(tokenizer, eos_token=list(end_tokens))
            vocabulary = self._tokenizer[1]
        try:
            if name == "regex":
                grammar = LLMatcher.grammar_from_regex(given)
            else:  # with flexible white space a small model may write nothing else, without end
                grammar = LLMatcher.grammar_from_json_schema(given, {"whitespace_flexible": False})
            matcher = LLMatcher(vocabulary, grammar)
            error = matcher.get_error()
        except ValueError as failed:
            error = str(failed)
        if error:
            reason = " ".join(error.split())
            raise RequestError(f"{name} {given!r:.60} cannot be followed: {reason:.200}")
        return Matcher(matcher)


class Matcher:
    """Which tokens may come next in one answer; see `longview.engine.sampling.Matcher`."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """The answer is complete, and no token may come next."""
        return self._matcher.is_stopped()

    def mask_logits(self, logits: Tensor) -> Tensor:
        """Logits (V,) with −∞ for each token that may not come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool))
        # the output layer may be larger than the vocabulary
        allowed = torch.nn.functional.pad(allowed, (0, len(logits) - len(allowed)))
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Append a token to the answer."""
        self._matcher.consume_token(token)
