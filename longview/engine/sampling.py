"""The sampler: logits and the settings of a request → the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from longview.errors import CheckpointError
from longview.messages import TokenLogprob
from longview.requests import SamplingParams


class Matcher(Protocol):
    """Which tokens may follow, where an answer has a form to keep."""

    @property
    def complete(self) -> bool:
        """The answer has the form, and nothing may follow."""

    def allowed(self, logits: Tensor) -> Tensor:
        """Logits (V,) with −∞ where a token may not follow."""

    def took(self, token: int) -> None:
        """This token follows."""


class Sampler:
    """Chooses the tokens of one request. Its random numbers are its own: neighbours in a batch change nothing.

    Args:
        matcher: Says which tokens may follow; see `longview.engine.grammar`.
        ends: Tokens that end an answer.
    """

    def __init__(
        self, params: SamplingParams, matcher: Matcher | None = None, ends: Sequence[int] = (), choice: int = 0
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.ends = list(ends)
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((params.seed + choice) % 2**63)

    @property
    def plain(self) -> bool:
        """It takes the likeliest token and asks for nothing else, so that many can choose at once."""
        params = self.params
        return (
            params.temperature == 0
            and params.repetition_penalty == 1
            and not params.presence_penalty
            and not params.frequency_penalty
            and not params.min_tokens
            and params.logprobs is None
            and self.matcher is None
        )

    def __call__(self, logits: Tensor, history: Sequence[int], answered: int = 0) -> int:
        """Logits (V,) and the ids so far, of which the last `answered` are the answer's → the next id.

        Raises:
            CheckpointError: the logits are no numbers.
        """
        params = self.params
        logits = logits.float()
        if not torch.isfinite(logits.max()):
            raise not_numbers()
        logits = self._penalised(logits, history, answered)
        if answered < params.min_tokens:
            logits = logits.index_fill(0, torch.tensor(self.ends, device=logits.device), -torch.inf)
        if self.matcher is not None:
            logits = self.matcher.allowed(logits)
        if params.temperature == 0:
            return self._took(int(logits.argmax()))
        # the likeliest token's score is 0 first, so that the smallest temperature divides nothing into infinity
        logits = (logits - logits.max()).cpu() / params.temperature
        if 0 < params.top_k < len(logits):
            logits = logits.masked_fill(logits < logits.topk(params.top_k).values[-1], -torch.inf)
        if params.min_p > 0:
            logits = logits.masked_fill(logits < math.log(params.min_p), -torch.inf)
        if params.top_p < 1:
            ranked, order = logits.sort(descending=True)
            probabilities = ranked.softmax(-1)
            # a token stays while those before it have not reached top_p, so the first always does
            dropped = probabilities.cumsum(-1) - probabilities >= params.top_p
            logits = logits.index_fill(0, order[dropped], -torch.inf)
        return self._took(int(torch.multinomial(logits.softmax(-1), 1, generator=self.generator)))

    def _took(self, token: int) -> int:
        if self.matcher is not None:
            self.matcher.took(token)
        return token

    def _penalised(self, logits: Tensor, history: Sequence[int], answered: int) -> Tensor:
        params = self.params
        if params.repetition_penalty != 1.0 and history:
            seen = torch.tensor(sorted(set(history)), device=logits.device)
            scores, penalty = logits[seen], params.repetition_penalty
            logits = logits.index_copy(0, seen, torch.where(scores < 0, scores * penalty, scores / penalty))
        if answered and (params.presence_penalty or params.frequency_penalty):
            counts = torch.bincount(torch.tensor(history[-answered:]), minlength=len(logits)).to(logits)
            logits = logits - params.presence_penalty * (counts > 0) - params.frequency_penalty * counts
        return logits

    def logprob(self, logits: Tensor, token: int) -> TokenLogprob:
        """How likely the model itself found a token, before any setting changed that, and which it found likeliest."""
        assert self.params.logprobs is not None
        scores = logits.float().log_softmax(-1)
        best = scores.topk(self.params.logprobs)
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenLogprob(token, float(scores[token]), tuple(top))


def not_numbers() -> CheckpointError:
    """The error for logits that are NaN or infinite."""
    return CheckpointError("the model's scores are no numbers: its weights are damaged, or the dtype too narrow")
