"""Answers that keep a form: a regular expression, or JSON that fits a schema. By llguidance, which compiles the form to
an automaton over bytes and says before each token which ones may follow."""

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
    """Makes constraints for one tokenizer. What has to be worked out about the tokenizer is worked out once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Any, Any] | None = None

    def matcher(self, params: SamplingParams, tokenizer: Any, end_tokens: Sequence[int]) -> Matcher | None:
        """What a request asks for, or None where it asks for no form.

        Raises:
            RequestError: the form is malformed.
            MissingExtraError: llguidance is not installed.
        """
        if params.regex is None and params.json_schema is None:
            return None
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError:
            raise MissingExtraError("an answer of a given form", "llguidance") from None
        with self._lock:
            if self._known is None or self._known[0] is not tokenizer:
                self._known = tokenizer, from_tokenizer(tokenizer, eos_token=list(end_tokens))
            letters = self._known[1]
        name, form = ("regex", params.regex) if params.regex is not None else ("json_schema", params.json_schema)
        assert form is not None
        try:
            if name == "regex":
                grammar = LLMatcher.grammar_from_regex(form)
            else:  # without white space at will, of which a confused model writes no end
                grammar = LLMatcher.grammar_from_json_schema(form, {"whitespace_flexible": False})
            matcher = LLMatcher(letters, grammar)
            error = matcher.get_error()
        except ValueError as failed:
            error = str(failed)
        if error:
            reason = " ".join(error.split())
            raise RequestError(f"{name} {form!r:.60} cannot be followed: {reason:.200}")
        return Matcher(matcher)


class Matcher:
    """Which tokens may follow in one answer."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """The answer has the form, and nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits (V,) with −∞ where a token may not follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        may = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool))
        # a model may have more rows in its head than its tokenizer has tokens
        may = torch.nn.functional.pad(may, (0, len(logits) - len(may)))
        return logits.masked_fill(~may.to(logits.device), -torch.inf)

    def took(self, token: int) -> None:
        """This token follows."""
        self._matcher.consume_token(token)
